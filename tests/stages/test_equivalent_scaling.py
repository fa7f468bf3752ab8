"""Learned equivalent scaling on tiny networks: what it learns, under which ranges, and what it makes of odd inputs."""

import json
import statistics

import pytest
import torch
from tiny import smallest_unet, unet
from torch import nn
from workbench import EQUIVALENT_SCALING, workbench

from dmqbench.calibration.capture import capture_inputs
from dmqbench.calibration.run import run_stage
from dmqbench.quant.layers import quant_layers
from dmqbench.quant.scaling import SMALLEST_EQUIVALENT_SCALE
from dmqbench.quant.spec import BitWidth, StepGroups
from dmqbench.stages import equivalent_scaling, equivalent_scaling_settings
from dmqbench.stages.equivalent_scaling import EquivalentScaling

W4A4 = BitWidth(4, 4)
PER_STEP = StepGroups.per_step(4)
SKIP = "up_blocks.0.resnets.0.conv_shortcut"
"""A layer whose input is cut."""


def stage_of(bench=None, **settings):
    return EquivalentScaling.of(workbench(W4A4) if bench is None else bench, **{**EQUIVALENT_SCALING, **settings})


def learned(bench=None, **settings):
    stage = stage_of(bench, **settings)
    run_stage(stage, "cpu", [])
    return stage


def scales(stage):
    return {name: learner.scale.detach().clone() for name, learner in stage.learners.items()}


def errors(stage):
    """(before, after) on validation points, one entry per layer."""
    layers = stage.findings()["layers"].values()
    pairs = [(layer["held_out_error_before"], layer["held_out_error"]) for layer in layers]
    return torch.tensor(pairs, dtype=torch.float64).unbind(1)


def assert_same_scales(found, expected):
    """All but a few: a difference in the last bit may move one value over the edge between two codes."""
    assert found.keys() == expected.keys()
    one, other = torch.cat(list(found.values())), torch.cat(list(expected.values()))
    assert torch.isclose(one, other, atol=1e-4, rtol=1e-4).float().mean() > 0.9
    assert not torch.isclose(one, torch.ones_like(one), atol=1e-4).float().mean() > 0.5


@pytest.fixture(scope="module")
def joint():
    stage = learned()
    stage.forwards_of_learning = stage.network_forwards  # before a test asks for findings, which cost some more
    return stage


# ---- what it learns


def test_held_out_error_falls():
    stage = learned(
        workbench(BitWidth(8, 4)),
        ranges="deployed",
        weighting="uniform",
        iterations=20,
        batch=16,
        samples=32,
        travel=0.4,
    )
    before, after = errors(stage)
    assert (after / before).mean() < 0.85
    assert (after < before).float().mean() > 0.8


def test_scales_live_in_the_layers_and_in_the_state(joint):
    state = joint.state()
    for name, layer in quant_layers(joint.bench.network).items():
        assert layer.equivalent_scale is not None and (layer.equivalent_scale != 1).any()
        assert torch.equal(state[f"{name}.equivalent_scale"], layer.equivalent_scale)


@pytest.mark.parametrize(("travel", "rate"), [(0.08, 0.01), (0.8, 0.1), (40.0, 0.1)])
def test_the_rate_covers_the_travel_within_bounds(travel, rate):
    assert stage_of(travel=travel).settings.learning_rate == pytest.approx(rate)


def test_scales_stay_positive_under_any_learning_rate(monkeypatch):
    monkeypatch.setattr(equivalent_scaling_settings, "LARGEST_RATE", 5.0)
    smallest = []

    class Watched(EquivalentScaling):
        def _step(self, names, at):
            super()._step(names, at)
            smallest.append(min(float(self.learners[name].scale.min()) for name in names))

    stage = Watched.of(workbench(W4A4), **{**EQUIVALENT_SCALING, "travel": 40.0})
    run_stage(stage, "cpu", [])
    assert len(smallest) == 8
    assert min(smallest) == pytest.approx(SMALLEST_EQUIVALENT_SCALE)  # the rate was great enough to reach it
    assert all(scale.isfinite().all() for scale in scales(stage).values())


@pytest.mark.parametrize(("bits", "trained"), [(BitWidth(4, 32), "weights"), (BitWidth(32, 4), "activations")])
def test_one_side_alone_is_learned(bits, trained):
    bench = workbench(bits, network=unet())
    stage = learned(bench, ranges="deployed", weighting="uniform", batch=16, iterations=12)
    quantized = [layer.weight_quantizer for layer in quant_layers(stage.bench.network).values()]
    assert all((quantizer is not None) == (trained == "weights") for quantizer in quantized)
    before, after = errors(stage)
    assert (after / before).mean() < 1
    assert all((scale != 1).any() for scale in scales(stage).values())


def test_patience_keeps_the_best_scale_be_it_one(monkeypatch):
    monkeypatch.setattr(equivalent_scaling, "SLICE", 2)
    wild = {"travel": 20.0, "iterations": 8}
    before, after = errors(learned(**wild))
    assert (after > before).any()
    stage = learned(**wild, patience=1)
    before, after = errors(stage)
    assert (after <= before * (1 + 1e-6)).all()
    assert any((scale == 1).all() for scale in scales(stage).values())
    assert any(learner.stopped for learner in stage.learners.values())


# ---- in which order


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("settings", [{}, {"ranges": "deployed"}], ids=["batch", "deployed"])
def test_layer_after_layer_learns_the_same_scales_as_all_together(guidance, settings):
    """Also where a network call computes two samples per point."""
    settings = {**settings, "iterations": 3}
    together = learned(workbench(W4A4, guidance=guidance, steps=PER_STEP), **settings)
    in_turn = learned(workbench(W4A4, guidance=guidance, steps=PER_STEP), **settings, schedule="cached", memory_mib=1)
    assert 1 < len(in_turn.groups) < len(in_turn.units())
    assert_same_scales(scales(in_turn), scales(together))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_what_is_kept_of_a_point_is_what_is_seen_of_it(guidance):
    """20 points in batches of 8: the last one is not full."""
    stage = stage_of(workbench(W4A4, guidance=guidance), schedule="cached", samples=20)
    stage.start_unit(SKIP)

    def seen(picks):
        batches = []
        points = stage.points[picks]
        stage.views.show(lambda _, batch: batches.append(batch), "cal", points, [SKIP])
        return batches[0]

    for picks in ([0, 1, 2], [19, 3, 8, 16], [7, 17]):
        kept = stage.views.kept_samples(SKIP, "cal", torch.tensor(picks))
        assert torch.equal(kept.bin, seen(picks).bin)
        torch.testing.assert_close(kept.x, seen(picks).x)
        torch.testing.assert_close(kept.output, seen(picks).output)


def test_memory_does_not_change_the_result(joint):
    assert_same_scales(scales(learned(memory_mib=0)), scales(joint))


def test_auto_takes_the_schedule_of_fewer_network_passes():
    def groups(**settings):
        return stage_of(schedule="auto", **settings).groups

    # 24 points: kept in one pass when everything fits, against batches of 8.
    assert groups(iterations=3) == []
    assert len(groups(iterations=4)) == 1
    count = len(stage_of(schedule="cached", memory_mib=1).groups)
    assert count > 1
    assert groups(iterations=3 * count, memory_mib=1) == []
    assert len(groups(iterations=3 * count + 1, memory_mib=1)) == count
    assert groups(iterations=1000, memory_mib=0) == []  # not even one layer fits


def test_cost_is_that_of_the_schedule(joint):
    """Forward passes in full precision, and three times the layers' share for every sample learned from."""
    learning = 3 * 8 * 8 * sum(joint.share_of_network.values())
    assert joint.forwards_of_learning == pytest.approx(8 * 8 + learning)
    assert learned(schedule="cached").network_forwards == pytest.approx(1 + 24 + learning)


# ---- under which ranges


@pytest.mark.parametrize("steps", [StepGroups.shared(), PER_STEP], ids=["shared", "per step"])
def test_deployed_ranges_are_those_of_all_calibration_points(steps):
    bench = workbench(W4A4, steps=steps)
    stage = learned(bench, ranges="deployed", iterations=2)
    learner = stage.learners[SKIP]
    inputs = capture_inputs(bench.denoising, learner.layer, bench.bank.cal, stage.points, 8)
    x, step = inputs.arguments[0][0][:], inputs.step
    assert len(x) == 24
    for row in range(steps.rows):
        of_row = x[step == row] if steps.rows > 1 else x
        torch.testing.assert_close(learner.low[row], of_row.amin((0, 2, 3)))
        torch.testing.assert_close(learner.high[row], of_row.amax((0, 2, 3)))


def test_a_row_of_steps_without_a_point_is_refused():
    with pytest.raises(ValueError, match="no calibration point is at the steps of row 2; raise budget"):
        stage_of(workbench(W4A4, steps=PER_STEP), ranges="deployed", samples=2)


@pytest.mark.parametrize("schedule", ["joint", "cached"])
def test_one_calibration_sample_is_enough(schedule):
    stage = learned(workbench(W4A4, trajectories=1, steps=PER_STEP), samples=1, schedule=schedule)
    assert len(stage.points) == 1
    assert all(scale.isfinite().all() for scale in scales(stage).values())
    assert any((scale != 1).any() for scale in scales(stage).values())


# ---- odd layers


def test_a_grouped_convolution_stays_unscaled_and_the_record_says_so():
    network = smallest_unet()
    network.down_blocks[0].resnets[0].conv1 = nn.Conv2d(8, 8, 3, padding=1, groups=2).requires_grad_(False)
    bench = workbench(W4A4, network=network)
    stage = learned(bench)
    (event,) = bench.record.of("unscaled")
    assert event["layers"] == ["down_blocks.0.resnets.0.conv1"]
    assert "grouped" in event["reason"]
    layers = quant_layers(bench.network)
    assert [name for name, layer in layers.items() if layer.equivalent_scale is None] == event["layers"]
    assert len(stage.findings()["layers"]) == len(layers) - 1


def test_without_a_layer_to_scale_there_is_nothing_to_do_or_to_say():
    stage = learned(workbench(BitWidth(32, 32)))
    assert stage.units() == ()
    assert stage.findings() == {}


# ---- what is told


def test_findings_say_what_the_report_draws(joint):
    found = joint.findings()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    weighting = found["weighting"]
    assert weighting["name"] == "adaptive"
    assert len(weighting["lambda"]) == len(weighting["error"]) == 4
    assert weighting["bin_of_call"] == [0, 1, 2, 3]
    assert sum(weighting["error"]) == pytest.approx(1, abs=1e-3)
    assert found["layers"].keys() == joint.learners.keys()
    uneven = sorted(found["layers"], key=lambda name: found["layers"][name]["disparity"], reverse=True)[:6]
    assert list(found["channels"]) == uneven
    for name, channels in found["channels"].items():
        scale, weight = joint.learners[name].scale, joint.learners[name].layer.weight
        largest = weight.movedim(1, 0).flatten(1).abs().amax(1)
        torch.testing.assert_close(torch.tensor(channels["scale"]), scale.detach(), rtol=1e-3, atol=0)
        torch.testing.assert_close(torch.tensor(channels["weight_after"]), largest * scale, rtol=1e-3, atol=0)
        ratio = torch.tensor(channels["input_before"]) / torch.tensor(channels["input_after"])
        torch.testing.assert_close(ratio, scale.detach(), rtol=2e-3, atol=0)


def test_magnitudes_and_disparity_are_those_of_the_validation_points(joint):
    inputs = capture_inputs(
        joint.bench.denoising, joint.learners[SKIP].layer, joint.bench.bank.val, joint.views.points["val"], 8
    )
    largest = inputs.arguments[0][0][:].abs().amax((0, 2, 3)).tolist()
    expected = max(largest) / statistics.median(largest)
    assert joint.findings()["layers"][SKIP]["disparity"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ranges": "step"}, "ranges=step is not known (allowed: batch, deployed)"),
        ({"schedule": "serial"}, "schedule=serial is not known (allowed: auto, joint, cached)"),
    ],
)
def test_what_is_not_known_is_refused_with_one_line(settings, message):
    with pytest.raises(ValueError) as caught:
        stage_of(**settings)
    assert str(caught.value) == message
