"""Ranges found by the stages against observers applied by hand to every row and every captured activation."""

import pytest
import torch
from tiny import dit, smallest_unet
from workbench import ACTIVATION_RANGE, MSE, workbench

from dmqbench.calibration.run import run_stage
from dmqbench.quant.context import StepContext
from dmqbench.quant.functional import affine_parameters
from dmqbench.quant.layers import quant_layers, quantization
from dmqbench.quant.observers import mse_search
from dmqbench.quant.spec import BitWidth, InputGroups, StepGroups
from dmqbench.quant.state import activation_quantizers
from dmqbench.stages.ranges import ActivationRange, ActivationSample, WeightRange

STEPS = {
    "shared": StepGroups.shared(),
    "per step": StepGroups.per_step(4),
    "groups of steps": StepGroups.of_size(4, 3),
}
every_grouping = pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS.keys())
COARSE = {**MSE, "candidates": 10}


def run(stage):
    run_stage(stage, "cpu", [])
    return stage


@pytest.mark.parametrize("observer", ["mse", "min_max"])
def test_weight_ranges_are_the_observer_s_of_every_row_by_itself(observer):
    bench = workbench(BitWidth(3, 6))
    run(WeightRange.of(bench, **{**COARSE, "observer": observer}))
    layers = quant_layers(bench.network)
    assert any(layer.weight_quantizer.groups.count == 2 for layer in layers.values())
    for name, layer in layers.items():
        quantizer = layer.weight_quantizer
        for group, part in enumerate(quantizer.groups.slices):
            for row in range(len(layer.weight)):
                values = layer.weight[row, part].flatten()[None]
                if observer == "mse":
                    ends = mse_search(values, torch.tensor([8]), candidates=10, exponent=2.4)
                else:
                    ends = values.amin(1), values.amax(1)
                scale, zero_point = affine_parameters(*ends, 8)
                torch.testing.assert_close(quantizer.scale[row, group], scale[0], rtol=1e-6, atol=0, msg=name)
                assert quantizer.zero_point[row, group] == zero_point[0]


def test_a_network_without_quantized_weights_passes_through():
    bench = workbench(BitWidth(32, 8))
    stage = run(WeightRange.of(bench, **MSE))
    assert stage.state() == {}
    assert len(bench.record.of("unit")) == 1


def captured(bench, points):
    """Layer → (inputs with channels first [C, points, …], step of every point), from hooks on one big batch."""
    layers, seen = quant_layers(bench.network), {}
    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
        for name, layer in layers.items()
    ]
    batch = ACTIVATION_RANGE["batch"]
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    for chunk in points.split(batch):
        point = bench.bank.cal.at(chunk)
        with torch.no_grad(), quantization(bench.network, weight=True, activation=False):
            bench.adapter.denoise(point.x, point.timestep, point.cond, point.step)
        for name in layers:
            parts[name].append(seen[name])
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts[name]) for name in layers}, points % bench.bank.cal.calls


def by_row_and_group(layer, x, steps_of_points, steps: StepGroups):
    """(row, group) → all its values, flat."""
    for row in range(steps.rows):
        member = [not steps.row_of_call or steps.row_of_call[step] == row for step in steps_of_points.tolist()]
        chosen = x[torch.tensor(member)].movedim(layer.channel_axis, 0)
        for group, part in enumerate(layer.activation_quantizer.groups.slices):
            yield row, group, chosen[part].flatten()


def calibrated(steps, **settings):
    bench = workbench(BitWidth(4, 4), steps=steps)
    run(WeightRange.of(bench, **COARSE))
    run(ActivationRange.of(bench, **{**ACTIVATION_RANGE, "candidates": 20, **settings}))
    return bench


@every_grouping
@pytest.mark.parametrize("values_per_row", [100_000, 50])
def test_min_max_ranges_are_exact_even_when_values_are_thinned(steps, values_per_row):
    bench = calibrated(steps, observer="min_max", values_per_row=values_per_row)
    inputs, at = captured(bench, bench.bank.cal.spread(24))
    for name, layer in quant_layers(bench.network).items():
        quantizer = layer.activation_quantizer
        assert quantizer.scale.shape == (steps.rows, quantizer.groups.count)
        for row, group, values in by_row_and_group(layer, inputs[name], at, steps):
            scale, zero_point = affine_parameters(values.amin(), values.amax(), 16)
            assert quantizer.scale[row, group] == scale, (name, row, group)
            assert quantizer.zero_point[row, group] == zero_point


@every_grouping
def test_mse_ranges_are_the_search_s_over_all_values_when_none_is_thinned(steps):
    bench = calibrated(steps)
    inputs, at = captured(bench, bench.bank.cal.spread(24))
    for name, layer in quant_layers(bench.network).items():
        quantizer = layer.activation_quantizer
        for row, group, values in by_row_and_group(layer, inputs[name], at, steps):
            ends = mse_search(values[None], torch.tensor([16]), candidates=20, exponent=2.4)
            scale, _ = affine_parameters(*ends, 16)
            # The order of the sum is another one: a neighbour of the best candidate may win by the last bit.
            torch.testing.assert_close(quantizer.scale[row, group], scale[0], rtol=0.011, atol=0, msg=name)


def test_rows_of_a_step_table_differ():
    bench = calibrated(StepGroups.per_step(4))
    spreads = [
        (layer.activation_quantizer.scale.amax(0) / layer.activation_quantizer.scale.amin(0)).max()
        for layer in quant_layers(bench.network).values()
    ]
    assert max(spreads) > 1.05


def test_thinned_values_give_nearly_the_same_ranges():
    full = quant_layers(calibrated(StepGroups.shared()).network)
    thinned = quant_layers(calibrated(StepGroups.shared(), values_per_row=2000).network)
    ratios = torch.stack(
        [
            (thinned[name].activation_quantizer.scale / layer.activation_quantizer.scale).flatten()[0]
            for name, layer in full.items()
        ]
    )
    assert (ratios - 1).abs().max() < 0.2
    assert (ratios - 1).abs().mean() < 0.05


class Spy:
    """Stands for a quantizer: tells the observer which step is in flight."""

    def __init__(self, context, channels):
        self.context, self.groups, self.channel_axis = context, InputGroups(channels), 1


@every_grouping
def test_thinning_looks_at_every_position_when_samples_come_one_by_one(steps):
    context = StepContext()
    sample = ActivationSample(Spy(context, 4), steps, per_sample=2)
    positions = torch.arange(16.0).reshape(1, 4, 2, 2)
    for call in list(range(4)) * 16:
        with context.at(torch.tensor([call])):
            sample.add(positions)
    for row in range(steps.rows):
        values, low, high = sample.row(0, row)
        assert sorted(set(values.tolist())) == list(range(16))
        assert (low, high) == (0, 15)


def test_a_step_without_points_is_named():
    bench = workbench(BitWidth(4, 4), steps=StepGroups.per_step(4))
    run(WeightRange.of(bench, **COARSE))
    with pytest.raises(ValueError, match="row 2"):
        run(ActivationRange.of(bench, **{**ACTIVATION_RANGE, "samples": 2}))


def test_activations_are_seen_behind_quantized_weights_and_left_off():
    bench = calibrated(StepGroups.shared())
    assert not any(layer.weight_on or layer.activation_on for layer in quant_layers(bench.network).values())
    reference = smallest_unet()
    point = bench.bank.cal.at(bench.bank.cal.spread(6))
    inputs = {}
    name = "up_blocks.0.resnets.1.conv2"
    reference.get_submodule(name).register_forward_pre_hook(lambda _, args: inputs.update(x=args[0]))
    with torch.no_grad():
        reference(point.x, point.timestep, **point.cond)
    behind, _ = captured(bench, bench.bank.cal.spread(6))
    assert not torch.allclose(behind[name], inputs["x"], atol=1e-3)


def test_no_observer_stays_attached_when_a_pass_fails():
    bench = workbench(BitWidth(4, 4))
    run(WeightRange.of(bench, **COARSE))
    stage = ActivationRange.of(bench, **ACTIVATION_RANGE)
    bench.network.conv_out.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("no")))
    with pytest.raises(RuntimeError, match="no"):
        run(stage)
    assert all(layer.activation_quantizer.observer is None for layer in quant_layers(bench.network).values())


def test_new_weight_ranges_replace_a_fixed_rounding():
    """A frozen layer that gets ranges again must not go on computing with its old codes."""
    bench = workbench(BitWidth(3, 6))
    run(WeightRange.of(bench, **MSE))
    layer = next(iter(quant_layers(bench.network).values()))
    layer.weight_on = True
    nearest = layer.effective_weight().clone()
    layer.weight_quantizer.learn_rounding_(layer.scaled_weight())
    layer.weight_quantizer.alpha.data.neg_()  # every weight rounds the other way
    layer.freeze_weight_()
    assert not torch.equal(layer.effective_weight(), nearest)
    run(WeightRange.of(bench, **MSE))
    layer.weight_on = True
    assert torch.equal(layer.effective_weight(), nearest)


@torch.no_grad()
def test_ranges_of_tokens_need_no_calibration_and_lose_less():
    errors = {}
    for granularity in ("tensor", "token"):
        bench = workbench(BitWidth(8, 4), network=dit(), granularity=granularity)
        run(ActivationRange.of(bench, **ACTIVATION_RANGE))
        calibrated = activation_quantizers(bench.network)
        assert len(calibrated) == (0 if granularity == "token" else len(quant_layers(bench.network)))
        point = bench.bank.val.at(bench.bank.val.spread(8))
        exact = bench.denoising.predict(point)
        with quantization(bench.network, weight=False, activation=True):
            quantized = bench.denoising.predict(point)
        errors[granularity] = float((quantized - exact).square().mean())
    assert 0 < errors["token"] < 0.5 * errors["tensor"], errors
