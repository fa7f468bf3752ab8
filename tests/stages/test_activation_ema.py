"""Moving ranges against a recursion written out over batches of one step."""

import pytest
import torch
from workbench import MSE, workbench

from dmqbench.calibration.run import run_stage
from dmqbench.quant.functional import affine_parameters
from dmqbench.quant.layers import quant_layers, quantization
from dmqbench.quant.spec import BitWidth, StepGroups
from dmqbench.stages.activation_ema import ActivationEma
from dmqbench.stages.ranges import WeightRange

STEPS = {"shared": StepGroups.shared(), "per step": StepGroups.per_step(4), "groups": StepGroups.of_size(4, 3)}
every_grouping = pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS.keys())
EMA = {
    "samples": 24,
    "ema_batch": 4,
    "momentum": 0.8,
    "carry": False,
    "skip_part": "moving",
    "later_passes": 0,
    "later_batch": 5,
}
SPLIT = "up_blocks.0.resnets.0.conv_shortcut"


def run(stage):
    run_stage(stage, "cpu", [])
    return stage


def calibrated(steps, guidance=1.0, bits=4, **settings):
    bench = workbench(BitWidth(4, bits), steps=steps, guidance=guidance)
    run(WeightRange.of(bench, **{**MSE, "candidates": 10}))
    run(ActivationEma.of(bench, **{**EMA, **settings}))
    return bench


def expected_ranges(bench, settings):
    """(layer, group) → [(low, high) of every row], by the recursion, from the inputs of the layers of a second pass.

    The layers before are quantized with the ranges that the recursion itself has reached.
    """
    cal, steps = bench.bank.cal, bench.step_groups
    layers = quant_layers(bench.network)
    final = {name: layer.activation_quantizer.scale.clone() for name, layer in layers.items()}
    zeros = {name: layer.activation_quantizer.zero_point.clone() for name, layer in layers.items()}
    state: dict[tuple[str, int], tuple[float, float]] = {}
    table: dict[tuple[str, int], list[tuple[float, float]]] = {}
    points = cal.spread(settings["samples"])
    row_of = {call: steps.row_of_call[call] if steps.row_of_call else 0 for call in range(cal.calls)}
    for row in range(steps.rows):
        if not settings["carry"]:
            state = {}
        members = [point for point in points.tolist() if row_of[point % cal.calls] == row]
        passes = [settings["ema_batch"]] + settings["later_passes"] * [settings["later_batch"]]
        for start, size in [(start, batch) for batch in passes for start in range(0, len(members), batch)]:
            batch = cal.at(torch.tensor(members[start : start + size]))

            def look(layer, args, state=state):
                quantizer = layer.activation_quantizer
                name = layer.plan.name
                channels = args[0].movedim(layer.channel_axis, 0)
                for group, part in enumerate(quantizer.groups.slices):
                    low, high = float(channels[part].min()), float(channels[part].max())
                    if (name, group) in state and not (group and settings["skip_part"] == "last"):
                        m, (old_low, old_high) = settings["momentum"], state[name, group]
                        low, high = m * old_low + (1 - m) * low, m * old_high + (1 - m) * high
                    state[name, group] = low, high
                    scale, zero_point = affine_parameters(torch.tensor(low), torch.tensor(high), quantizer.levels)
                    quantizer.scale[:, group], quantizer.zero_point[:, group] = scale, zero_point

            handles = [layer.register_forward_pre_hook(look) for layer in layers.values()]
            with torch.no_grad(), quantization(bench.network, weight=True, activation=True):
                bench.adapter.denoise(batch.x, batch.timestep, batch.cond, batch.step, bench.denoising.guidance)
            for handle in handles:
                handle.remove()
        for key, ends in state.items():
            table.setdefault(key, []).append(ends)
    for name, layer in layers.items():
        layer.activation_quantizer.set_parameters_(final[name], zeros[name])
    return table


@every_grouping
@pytest.mark.parametrize(("carry", "bits"), [(False, 4), (True, 16)], ids=["reset", "carried"])
@pytest.mark.parametrize(("skip_part", "later_passes"), [("moving", 0), ("last", 2)])
def test_ranges_follow_the_recursion_row_by_row(steps, carry, bits, skip_part, later_passes):
    """Over many updates the last bits differ, and an activation of 4 bits would turn one into a whole step."""
    bits = 16 if later_passes else bits
    settings = {**EMA, "carry": carry, "skip_part": skip_part, "later_passes": later_passes}
    bench = calibrated(steps, bits=bits, **settings)
    expected = expected_ranges(bench, settings)
    layers = quant_layers(bench.network)
    assert layers[SPLIT].activation_quantizer.groups.count == 2
    for (name, group), rows in expected.items():
        quantizer = layers[name].activation_quantizer
        assert quantizer.scale.shape == (steps.rows, quantizer.groups.count)
        for row, (low, high) in enumerate(rows):
            scale, zero_point = affine_parameters(torch.tensor(low), torch.tensor(high), 2**bits)
            torch.testing.assert_close(quantizer.scale[row, group], scale, rtol=2e-4, atol=0, msg=name)
            assert abs(float(quantizer.zero_point[row, group] - zero_point)) <= 1


def test_what_is_carried_from_row_to_row_changes_later_rows_only():
    scales = []
    for carry in (False, True):
        bench = calibrated(StepGroups.per_step(4), carry=carry)
        scales.append(quant_layers(bench.network)[SPLIT].activation_quantizer.scale)
    assert torch.equal(scales[0][0], scales[1][0])
    assert not torch.isclose(scales[0][1:], scales[1][1:], rtol=1e-4).all()


def test_momentum_zero_keeps_the_last_batch_and_a_single_batch_its_range():
    last = calibrated(StepGroups.per_step(4), momentum=0.0)
    single = calibrated(StepGroups.per_step(4), ema_batch=1000)
    bench = calibrated(StepGroups.per_step(4), ema_batch=1000, momentum=0.0)
    name = next(iter(quant_layers(bench.network)))
    of = [quant_layers(each.network)[name].activation_quantizer.scale for each in (last, single, bench)]
    assert torch.equal(of[1], of[2])
    assert not torch.equal(of[0], of[1])


def test_under_guidance_both_branches_are_seen():
    bench = calibrated(StepGroups.per_step(4), guidance=2.0)
    assert all(layer.activation_quantizer.initialised for layer in quant_layers(bench.network).values())
    (facts,) = [event for event in bench.record.of("unit") if event["stage"] == "activation_ema"]
    assert facts["points"] == 24


def test_the_pass_leaves_no_hook_and_the_switches_off():
    bench = calibrated(StepGroups.shared())
    for layer in quant_layers(bench.network).values():
        assert not layer.activation_quantizer._forward_pre_hooks
        assert not (layer.weight_on or layer.activation_on)


def test_old_powers_of_two_go_with_the_old_range():
    bench = workbench(BitWidth(4, 4))
    run(WeightRange.of(bench, **MSE))
    layer = quant_layers(bench.network)[SPLIT]
    layer.activation_quantizer.exponent = torch.zeros(1, layer.weight.shape[1], dtype=torch.int8)
    run(ActivationEma.of(bench, **EMA))
    assert layer.activation_quantizer.exponent is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1.0}, "momentum=1.0 is out of range; nearest: 0.9999"),
        ({"skip_part": "first"}, "skip_part=first is not known"),
        ({"samples": 2}, "no calibration point is at the steps of row 2"),
    ],
)
def test_settings_without_meaning_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ActivationEma.of(workbench(BitWidth(4, 4), steps=StepGroups.per_step(4)), **{**EMA, **settings})
