"""Losses of every unit in the record: few, exact, and without a trace in what is calibrated."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import small_unet
from workbench import MSE, WEIGHT_RECONSTRUCTION, workbench

from dmqbench.calibration.checkpoint import UnitCheckpoint
from dmqbench.calibration.run import run_stage
from dmqbench.calibration.stage import CURVE_POINTS, CalibrationDiverged, curve_iterations
from dmqbench.stages.ranges import WeightRange
from dmqbench.stages.reconstruction import WeightReconstruction


@given(st.integers(0, 100_000))
def test_few_points_are_kept_evenly_with_both_ends(total):
    points = sorted(curve_iterations(total))
    assert len(points) == min(total, CURVE_POINTS)
    if total:
        assert points[0] == 0 and points[-1] == total - 1
    gaps = {after - before for before, after in itertools.pairwise(points)}
    assert not gaps or max(gaps) - min(gaps) <= 1


class Noted(WeightReconstruction):
    """Keeps every loss."""

    def iterate(self, unit, iteration):
        loss = super().iterate(unit, iteration)
        self.noted = {**getattr(self, "noted", {}), (unit, iteration): float(loss.detach())}
        return loss


def stage_of(cls=WeightReconstruction, **settings):
    bench = workbench(network=small_unet())
    run_stage(WeightRange.of(bench, **MSE), "cpu", [])
    return cls.of(bench, **{**WEIGHT_RECONSTRUCTION, **settings})


def test_every_unit_leaves_one_curve_of_its_own_losses():
    stage = stage_of(Noted, iterations=CURVE_POINTS + 13)
    run_stage(stage, "cpu", [])
    curves = stage.bench.record.of("curve")
    assert [line["name"] for curve in curves for line in curve["lines"]] == list(stage.units())
    for curve in curves:
        ((unit, values),) = [(line["name"], line["values"]) for line in curve["lines"]]
        assert (curve["chart"], curve["over"]) == ("loss/weight_reconstruction", "iteration")
        assert curve["at"] == sorted(curve_iterations(CURVE_POINTS + 13))
        assert values == [stage.noted[unit, iteration] for iteration in curve["at"]]


def test_a_stage_without_losses_leaves_no_curve():
    bench = workbench()
    run_stage(WeightRange.of(bench, **MSE), "cpu", [])
    assert bench.record.of("curve") == [] and len(bench.record.of("unit")) == 1


def test_a_unit_that_is_stopped_and_redone_leaves_one_curve(tmp_path):
    class Stopped(WeightReconstruction):
        def iterate(self, unit, iteration):
            if (self.units().index(unit), iteration) == (2, 3):
                raise KeyboardInterrupt
            return super().iterate(unit, iteration)

    def resumed(stage):
        UnitCheckpoint(tmp_path / "state.safetensors").resume(stage)
        run_stage(stage, "cpu", [UnitCheckpoint(tmp_path / "state.safetensors")])

    stopped = stage_of(Stopped)
    with pytest.raises(KeyboardInterrupt):
        resumed(stopped)
    again = stage_of()
    resumed(again)
    curves = stopped.bench.record.of("curve") + again.bench.record.of("curve")
    whole = stage_of()
    run_stage(whole, "cpu", [])
    assert curves == whole.bench.record.of("curve")


def test_a_unit_that_diverges_shows_how():
    class Diverging(WeightReconstruction):
        def iterate(self, unit, iteration):
            loss = super().iterate(unit, iteration)
            return loss * torch.inf if iteration == 2 else loss

    stage = stage_of(Diverging)
    with pytest.raises(CalibrationDiverged):
        run_stage(stage, "cpu", [])
    (curve,) = stage.bench.record.of("curve")
    assert curve["at"] == [0, 1, 2] and curve["lines"][0]["values"][2] == float("inf")
