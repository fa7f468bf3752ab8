"""The stage of power-of-two scaling against votes counted by hand, behind layers that were scaled before."""

import json
import logging

import pytest
import torch
from tiny import dit, text_unet, unet
from workbench import MSE
from workbench import workbench as workbench_of

from dmqbench.calibration.checkpoint import UnitCheckpoint
from dmqbench.calibration.run import run_stage
from dmqbench.calibration.stage import CalibrationDiverged
from dmqbench.quant.layers import quant_layers, quantization
from dmqbench.quant.spec import BitWidth, Scope, StepGroups
from dmqbench.stages.power_of_two_scaling import PowerOfTwoScaling, layers_to_scale
from dmqbench.stages.ranges import ActivationRange, WeightRange

SHORTCUTS = [
    "down_blocks.1.resnets.0.conv_shortcut",
    "up_blocks.0.resnets.0.conv_shortcut",
    "up_blocks.0.resnets.1.conv_shortcut",
    "up_blocks.1.resnets.0.conv_shortcut",
    "up_blocks.1.resnets.1.conv_shortcut",
]
PTS = {"layers": "skip", "selection": "vote", "agreement": 0.6, "depth": 3, "samples": 24, "batch": 8}
STEPS = {"shared": StepGroups.shared(), "per step": StepGroups.per_step(4), "groups": StepGroups.of_size(4, 3)}
every_grouping = pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS.keys())


def workbench(bits, *, network=None, **settings):
    """With two resolutions by default, of which each has its shortcuts."""
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return workbench_of(bits, network=unet(**blocks) if network is None else network, **settings)


def give_ranges(bench):
    coarse = {**MSE, "observer": "min_max"}
    run_stage(WeightRange.of(bench, **coarse), "cpu", [])
    run_stage(ActivationRange.of(bench, **coarse, samples=32, batch=8, values_per_row=100), "cpu", [])


def ranged(steps=STEPS["shared"], **settings):
    """A workbench whose weights and activations have ranges."""
    bench = workbench(BitWidth(4, 4), steps=steps, **settings)
    give_ranges(bench)
    return bench


def scaled(bench, **settings):
    stage = PowerOfTwoScaling.of(bench, **{**PTS, **settings})
    run_stage(stage, "cpu", [])
    return stage


def seen_by(bench, name, trajectories, points):
    """(input of the layer, step) on ``points``, everything before it quantized; one pass of 8 at a time."""
    layer, parts, steps = quant_layers(bench.network)[name], [], []
    handle = layer.register_forward_pre_hook(lambda _, args: parts.append(args[0]))
    for part in points.split(8):
        point = trajectories.at(part)
        with torch.no_grad(), quantization(bench.network, weight=True, activation=True):
            bench.adapter.denoise(point.x, point.timestep, point.cond, point.step, bench.denoising.guidance)
        steps += [point.step] * bench.branches
    handle.remove()
    return torch.cat(parts), torch.cat(steps)


def by_hand(layer, x, step, steps, threshold, depth=3):
    """Exponents [rows, C] and agreement [rows, C] by counting the votes of every channel."""
    quantizer = layer.activation_quantizer
    exponents = torch.zeros(steps.rows, x.shape[1], dtype=torch.int8)
    shares = torch.zeros(steps.rows, x.shape[1], dtype=torch.float64)
    row_of = torch.tensor(steps.row_of_call)[step] if steps.row_of_call else torch.zeros_like(step)
    for row in range(steps.rows):
        members = x[row_of == row]
        for channel in range(x.shape[1]):
            group = int(quantizer.group_of_channel[channel])
            s, z = quantizer.scale[row, group], quantizer.zero_point[row, group]
            errors = []
            divisor = 1.0 if layer.equivalent_scale is None else layer.equivalent_scale[channel]
            for exponent in range(-depth, 1):
                q = s * 2.0**exponent
                values = members[:, channel] / divisor
                codes = ((values / q).round() + z).clamp(0, quantizer.levels - 1)
                errors.append((values - q * (codes - z)).square().mean((1, 2)))
            votes = torch.stack(errors).argmin(0).tolist()
            winner = max(range(depth + 1), key=votes.count)
            shares[row, channel] = votes.count(winner) / len(votes)
            if shares[row, channel] >= threshold:
                exponents[row, channel] = winner - depth
    return exponents, shares


def exponents_of(layer):
    quantizer = layer.activation_quantizer
    if quantizer.exponent is None:
        return torch.zeros(len(quantizer.scale), quantizer.groups.channels, dtype=torch.int8)
    return quantizer.exponent


@every_grouping
@pytest.mark.parametrize("guidance", [1.0, 2.0], ids=["plain", "guided"])
def test_every_layer_votes_on_inputs_behind_the_scaled_layers_before_it(steps, guidance):
    """A layer's own exponents and later ones do not change its input: afterwards, all votes can be counted again."""
    bench = workbench(BitWidth(4, 4), steps=steps, guidance=guidance)
    for name in SHORTCUTS[:3]:  # the vote is on x / s
        layer = quant_layers(bench.network)[name]
        layer.set_equivalent_scale_(torch.exp2(torch.linspace(-3, 3, layer.weight.shape[1])))
    give_ranges(bench)
    stage = scaled(bench, agreement=0.4)
    assert list(stage.units()) == SHORTCUTS
    findings = stage.findings()
    found = 0
    for name in SHORTCUTS:
        layer = quant_layers(bench.network)[name]
        x, step = seen_by(bench, name, bench.bank.cal, bench.bank.cal.spread(24))
        expected, shares = by_hand(layer, x, step, steps, threshold=0.4)
        # The last bits of an error depend on the order of its sum: one sample may vote for a neighbour.
        assert (exponents_of(layer) != expected).double().mean() <= 0.05, name
        of_rows = torch.tensor(findings["layers"][name]["agreement"], dtype=torch.float64)
        torch.testing.assert_close(of_rows, shares.mean(1), rtol=0, atol=0.02)
        found += int((expected < 0).sum())
    assert found > 5


def test_halves_of_a_skip_are_voted_on_separately():
    """Powers are relative to each half's own scale: a half that is uniformly small needs none."""
    bench = ranged(network=unet())
    layer = quant_layers(bench.network)[SHORTCUTS[1]]
    quantizer = layer.activation_quantizer
    assert quantizer.groups.boundaries == (32,)
    with torch.no_grad():
        quantizer.scale[0, 0] *= 8  # the first half's range is eight times too wide
    scaled(bench, agreement=0.0)
    first, second = exponents_of(layer)[0, :32], exponents_of(layer)[0, 32:]
    assert (first == -3).double().mean() > 0.9
    assert second.double().mean() > first.double().mean() + 1


def plant(bench, name, channel, factor):
    """Multiply one input channel of a layer, for quantized and full-precision passes alike."""

    def grow(_, args):
        x = args[0].clone()
        x[:, channel] *= factor
        return (x,)

    quant_layers(bench.network)[name].register_forward_pre_hook(grow)


@pytest.mark.parametrize("selection", ["vote", "mse"])
def test_a_planted_outlier_channel_is_found_and_the_held_out_error_falls(selection):
    bench = workbench(BitWidth(32, 4), network=unet())
    name, channel = SHORTCUTS[2], 7
    plant(bench, name, channel, 64.0)
    with torch.no_grad():  # so that the rounding of this channel, which nothing can repair, is not all of the error
        quant_layers(bench.network)[name].weight[:, channel] /= 64
    give_ranges(bench)
    stage = scaled(bench, selection=selection, agreement=0.85)
    part = exponents_of(quant_layers(bench.network)[name])[0, :32]
    assert part[channel] == 0
    assert (torch.cat([part[:channel], part[channel + 1 :]]) == -3).double().mean() > 0.9
    facts = stage.findings()["layers"][name]
    assert facts["held_out_error"] < 0.5 * facts["held_out_error_before"]


def test_held_out_errors_are_of_the_layer_s_output_on_the_validation_trajectories():
    bench = ranged(StepGroups.per_step(4))
    stage = scaled(bench, agreement=0.3)
    points = bench.bank.val.spread(64)
    for name in SHORTCUTS:
        layer = quant_layers(bench.network)[name]
        x, step = seen_by(bench, name, bench.bank.val, points)
        exponent, errors = layer.activation_quantizer.exponent, []
        for table in (None, exponent):
            layer.activation_quantizer.exponent = table
            with torch.no_grad(), quantization(layer, weight=True, activation=True), bench.adapter.context.at(step):
                difference = layer(x) - torch.nn.functional.conv2d(x, layer.weight, layer.bias)
            errors.append(float(difference.square().sum(1).mean()))
        layer.activation_quantizer.exponent = exponent
        facts = stage.findings()["layers"][name]
        assert [facts["held_out_error_before"], facts["held_out_error"]] == pytest.approx(errors, rel=1e-4)
        (event,) = [event for event in bench.record.of("unit") if event["unit"] == name]
        assert event["held_out_error"] == facts["held_out_error"]
        assert event["scaled"] == facts["scaled"]
        assert event["agreement"] == pytest.approx(sum(facts["agreement"]) / 4)


def test_findings_are_json_and_count_every_row_and_channel():
    bench = ranged(StepGroups.per_step(4))
    findings = scaled(bench, depth=2).findings()
    assert json.loads(json.dumps(findings)) == findings
    assert (findings["selection"], findings["samples"]) == ("vote", 24)
    for name, facts in findings["layers"].items():
        exponents = exponents_of(quant_layers(bench.network)[name])
        assert list(facts["exponents"]) == ["-2", "-1", "0"]
        assert sum(facts["exponents"].values()) == exponents.numel()
        assert facts["scaled"] == pytest.approx(1 - facts["exponents"]["0"] / exponents.numel())


def test_all_layers_are_the_convolutions_and_no_linear_layer():
    bench = ranged(network=text_unet())
    chosen = layers_to_scale(bench, "all")
    kinds = {name: layer.kind for name, layer in quant_layers(bench.network).items()}
    assert set(chosen) == {name for name, kind in kinds.items() if kind == "conv2d"}
    assert "linear" in kinds.values()
    order = [bench.topology.by_name[name].order for name in chosen]
    assert order == sorted(order)
    assert set(layers_to_scale(bench, "skip")) == {name for name in chosen if name.endswith("conv_shortcut")}


def test_all_layers_can_be_scaled():
    bench = ranged()
    stage = scaled(bench, layers="all", samples=8)
    assert len(stage.units()) > len(SHORTCUTS)
    assert set(stage.findings()["layers"]) == set(stage.units())


def test_a_skip_that_the_scope_does_not_split_is_voted_on_as_a_whole():
    bench = ranged(scope=Scope(split=False))
    stage = scaled(bench)
    assert list(stage.units()) == SHORTCUTS
    assert quant_layers(bench.network)[SHORTCUTS[1]].activation_quantizer.groups.count == 1


@pytest.mark.parametrize("layers", ["skip", "all"])
def test_a_model_without_skips_is_told_once_and_passes_through(layers, caplog):
    """A transformer's only convolution is its first layer, outside the common scope."""
    bench = ranged(network=dit())
    before = {name: layer.activation_quantizer.scale.clone() for name, layer in quant_layers(bench.network).items()}
    with caplog.at_level(logging.WARNING):
        stage = scaled(bench, layers=layers)
    assert stage.units() == ()
    assert len(caplog.messages) == len(bench.record.of("nothing_to_do")) == 1
    assert f"layers={layers} finds no convolution" in caplog.messages[0]
    assert "\n" not in caplog.messages[0]
    assert stage.findings()["layers"] == {}
    for name, layer in quant_layers(bench.network).items():
        assert torch.equal(layer.activation_quantizer.scale, before[name])
        assert layer.activation_quantizer.exponent is None


def test_activations_in_full_precision_need_no_word(caplog):
    bench = workbench(BitWidth(4, 32))
    with caplog.at_level(logging.WARNING):
        stage = scaled(bench)
    assert stage.units() == ()
    assert caplog.messages == []


@pytest.mark.parametrize("steps", [STEPS["shared"], STEPS["per step"]], ids=["shared", "per step"])
def test_one_calibration_sample_decides_alone_and_rows_without_one_keep_their_range(steps):
    bench = ranged(steps)
    scaled(bench, samples=1, agreement=1.0)
    tables = [exponents_of(quant_layers(bench.network)[name]) for name in SHORTCUTS]
    assert any(table[0].any() for table in tables)
    assert not any(table[1:].any() for table in tables)


def test_a_constant_and_a_zero_channel_are_no_obstacle():
    bench = ranged()
    name = SHORTCUTS[0]

    def flatten(_, args):
        x = args[0].clone()
        x[:, 0], x[:, 1] = 0, 0.5
        return (x,)

    quant_layers(bench.network)[name].register_forward_pre_hook(flatten)
    facts = scaled(bench).findings()["layers"][name]
    assert facts["held_out_error"] >= 0
    assert exponents_of(quant_layers(bench.network)[name])[0, 0] == -3  # a tie, as in the published code


def test_without_agreement_no_table_is_kept():
    bench = ranged()
    stage = scaled(bench, agreement=1.0, depth=0)
    assert all(layer.activation_quantizer.exponent is None for layer in quant_layers(bench.network).values())
    assert not any(key.endswith("exponent") for key in stage.state())
    assert all(facts["exponents"].keys() == {"0"} for facts in stage.findings()["layers"].values())


def finish(stage, path):
    checkpoint = UnitCheckpoint(path)
    checkpoint.resume(stage)
    run_stage(stage, "cpu", [checkpoint])
    return stage


class Killed(PowerOfTwoScaling):
    """Is interrupted in the second iteration of its third layer."""

    def iterate(self, unit, iteration):
        if (unit, iteration) == (SHORTCUTS[2], 1):
            raise KeyboardInterrupt
        super().iterate(unit, iteration)


def test_a_resumed_stage_has_the_same_bits_and_findings(tmp_path):
    whole = scaled(ranged(STEPS["per step"]))
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        finish(Killed.of(ranged(STEPS["per step"]), **PTS), path)
    bench = ranged(STEPS["per step"])
    resumed = finish(PowerOfTwoScaling.of(bench, **PTS), path)
    assert [event["unit"] for event in bench.record.of("unit")][2:] == SHORTCUTS[2:]
    state, expected = resumed.state(), whole.state()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert any(key.endswith("exponent") for key in expected)
    assert resumed.findings() == whole.findings()
    again = PowerOfTwoScaling.of(ranged(STEPS["per step"]), **PTS)
    assert finish(again, path).findings() == whole.findings()  # nothing was left to do


def test_an_input_that_is_not_finite_names_its_layer():
    bench = ranged()
    plant(bench, SHORTCUTS[1], 3, float("nan"))
    with pytest.raises(CalibrationDiverged, match=rf"power_of_two_scaling, unit {SHORTCUTS[1]}: its input is not"):
        scaled(bench)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": "skips"}, r"layers=skips is not known; nearest: skip \(allowed: skip, all\)"),
        ({"selection": "mean"}, r"selection=mean is not known \(allowed: vote, mse\)"),
        ({"agreement": 1.5}, r"agreement=1.5 is out of range; nearest: 1 \(allowed: 0 to 1\)"),
        ({"depth": 8}, "depth=8 is out of range; nearest: 7"),
        ({}, "has no calibrated static activation range to scale"),
    ],
)
def test_settings_without_meaning_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PowerOfTwoScaling.of(workbench(BitWidth(4, 4)), **{**PTS, **settings})
