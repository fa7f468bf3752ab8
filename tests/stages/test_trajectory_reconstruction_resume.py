"""AccuQuant's stage, stopped, damaged and diverging: it goes on to the same bits, or says where it ended."""

import pytest
import torch
from rollouts import JOINT, NAME, finished, interrupted, ranged, stage_of
from safetensors import safe_open
from safetensors.torch import load_file

from dmqbench.calibration.checkpoint import UnitCheckpoint
from dmqbench.calibration.run import run_stage
from dmqbench.calibration.stage import CalibrationDiverged
from dmqbench.quant.layers import quant_layers
from dmqbench.stages.trajectory_gradients import GradientRule
from dmqbench.stages.trajectory_reconstruction import TrajectoryReconstruction

pytestmark = pytest.mark.usefixtures("one_thread_and_any_rate")


def finish(stage, path):
    checkpoint = UnitCheckpoint(path)
    checkpoint.resume(stage)
    run_stage(stage, "cpu", [checkpoint])
    return stage


def units_done(path):
    with safe_open(path, framework="pt") as file:
        return int(file.metadata()["units_done"])


def assert_same(stage, expected):
    state, wanted = stage.state(), expected.state()
    assert state.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(state[name], wanted[name]), name
    assert stage.findings() == expected.findings()
    assert stage.network_forwards == expected.network_forwards


@pytest.mark.parametrize("start", ["fp", "quantized"])
@pytest.mark.parametrize("recipe", ["scales", "joint"])
def test_stopped_in_every_slice_it_goes_on_to_the_same_bits_and_findings(recipe, start, tmp_path):
    changed = {"start": start} if recipe == "scales" else {**JOINT, "start": start, "iterations": 3, "checks": 3}
    expected = finished(**changed)
    assert any(span["best_iteration"] > 0 for span in expected.findings()["spans"])
    path, units = tmp_path / "checkpoint.safetensors", expected.units()
    assert len(units) == (4 if recipe == "scales" else 3)
    for number, unit in enumerate(units):
        last = expected.iterations(unit) - 1
        stage = stage_of(ranged(), interrupted(TrajectoryReconstruction, (number, last)), **changed)
        with pytest.raises(KeyboardInterrupt):
            finish(stage, path)
        assert not path.exists() if number == 0 else units_done(path) == number
    assert_same(finish(stage_of(ranged(), **changed), path), expected)
    done = stage_of(ranged(), **changed)  # killed between its last unit and its artifact
    UnitCheckpoint(path).resume(done)
    assert done.first_unit == len(units)
    assert_same(done, expected)


def weight_is_nan(stage):
    name = next(iter(quant_layers(stage.bench.network)))
    stage.bench.network.get_submodule(name).bias.data.fill_(torch.nan)


def gradient_is_nan(stage):
    """While the loss is finite."""
    through = stage.rule

    def run_and_spoil(problem, parameters):
        value = through.run(problem, parameters)
        parameters[0].grad = torch.full_like(parameters[0], torch.inf)
        return value

    stage.rule = GradientRule(run_and_spoil, through.forwards_per_call)


POISONS = [
    (weight_is_nan, "scales", r"(loss nan|the gradient of scales at 1 is not finite)"),
    (gradient_is_nan, "scales", "the gradient of scales at 1 is not finite"),
    (gradient_is_nan, "joint", "the gradient of scales at 2 is not finite"),
]


@pytest.mark.parametrize(("poison", "recipe", "what"), POISONS)
def test_what_is_not_finite_names_its_unit_and_spares_the_checkpoint(poison, recipe, what, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    stage = stage_of(ranged(), interrupted(TrajectoryReconstruction, (1, 0), poison), recipe=recipe)
    unit = stage.units()[1]
    with pytest.raises(CalibrationDiverged, match=f"stage {NAME}, (unit )?{unit}: .*{what}") as caught:
        finish(stage, path)
    assert "\n" not in str(caught.value)
    assert units_done(path) == 1
    assert all(value.isfinite().all() for name, value in load_file(path).items() if "best_error" not in name)
    assert_same(finish(stage_of(ranged(), recipe=recipe), path), finished(recipe=recipe))
