"""Engines against each other: codes equal, sums exact, outputs to 1e-6; and both are the trained layer."""

import itertools

import numpy as np
import pytest
import torch
from examples import costly
from hypothesis import given
from hypothesis import strategies as st
from integers import fits_int8
from torch import nn
from torch.overrides import TorchFunctionMode

from dmqbench.engines import int_reference, lower_, simulate
from dmqbench.engines.int_reference import accumulators
from dmqbench.quant.context import StepContext
from dmqbench.quant.frozen import freeze_layer
from dmqbench.quant.functional import affine_parameters
from dmqbench.quant.layers import freeze_, quantization, quantize_layers_
from dmqbench.quant.plan import LayerPlan, PrecisionPlan
from dmqbench.quant.spec import StepGroups

CALLS = 5


def make_layer(kind: str, channels: int, rows: int, bias: bool, padding: int, stride: int):
    if kind == "linear":
        return nn.Linear(channels, rows, bias=bias), (channels,)
    if kind == "tokens":
        return nn.Linear(channels, rows, bias=bias), (4, channels)
    if kind == "conv1d":
        return nn.Conv1d(channels, rows, 3, padding=padding, stride=stride, bias=bias), (channels, 7)
    return nn.Conv2d(channels, rows, 3, padding=padding, stride=stride, bias=bias), (channels, 5, 6)


@st.composite
def frozen_cases(draw):
    """A frozen network of one random layer, its frozen integers, its context, an input and mixed steps."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    kind = draw(st.sampled_from(["linear", "tokens", "conv1d", "conv2d"]))
    channels, rows = draw(st.integers(2, 6)), draw(st.integers(1, 5))
    layer, shape = make_layer(
        kind, channels, rows, draw(st.booleans()), draw(st.integers(0, 2)), draw(st.integers(1, 2))
    )
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    bits = draw(st.one_of(st.integers(2, 8), st.tuples(*[st.integers(1, 8)] * rows)))
    boundaries = tuple(sorted(draw(st.sets(st.integers(1, channels - 1), max_size=2))))
    steps = draw(st.sampled_from([StepGroups.shared(), StepGroups.per_step(CALLS), StepGroups.of_size(CALLS, 2)]))
    network, context = nn.Sequential(layer), StepContext()
    plan = PrecisionPlan((LayerPlan("0", bits, draw(st.integers(2, 8)), boundaries),))
    quantize_layers_(network, plan, context, steps)
    quant = network[0]
    if draw(st.booleans()):
        quant.set_equivalent_scale_(torch.rand(channels, generator=generator) + 0.5)
    weights, activation = quant.weight_quantizer, quant.activation_quantizer
    grids = [
        affine_parameters(part.amin(1), part.amax(1), weights.levels)
        for part in weights.rows(quant.scaled_weight().detach())
    ]
    weights.set_parameters_(*(torch.stack(tables, 1) for tables in zip(*grids, strict=True)))
    table = (steps.rows, len(boundaries) + 1)
    activation.set_parameters_(
        torch.rand(table, generator=generator) / activation.levels * 8 + 1e-3,
        torch.randint(0, activation.levels, table, generator=generator).float(),
    )
    exponent_rows = draw(st.sampled_from([None, 1, steps.rows]))
    if exponent_rows is not None:
        activation.exponent = torch.randint(-3, 3, (exponent_rows, channels), dtype=torch.int8, generator=generator)
    if draw(st.booleans()):
        with torch.no_grad():
            weights.learn_rounding_(quant.scaled_weight()).normal_(std=2, generator=generator)
    freeze_(network)
    x = torch.randn(3, *shape, generator=generator)
    return network, freeze_layer(quant), context, x, torch.randint(0, CALLS, (3,), generator=generator)


def row_of(layer, call: int) -> int:
    return layer.activation.row_of_call[call].item() if layer.activation.per_step else 0


def written_out_input(layer, x, step) -> np.ndarray:
    """q_x·2^(e−least e) of every element by the definition, int64."""
    activation, axis = layer.activation, layer.channel_axis
    values = np.moveaxis(x.numpy(), axis, 1)
    integers = np.zeros(values.shape, dtype=np.int64)
    group_of = activation.group_of_channel.tolist()
    for sample, channel in itertools.product(range(len(x)), range(values.shape[1])):
        row = row_of(layer, int(step[sample]))
        scale = activation.scale[row, group_of[channel]].numpy()
        zero_point = int(activation.zero_point[row, group_of[channel]])
        power = 0
        if activation.exponent is not None:
            power = int(activation.exponent[min(row, len(activation.exponent) - 1), channel])
        divisor = scale * np.float32(2.0**power)
        if layer.equivalent_scale is not None:
            divisor = divisor * layer.equivalent_scale[channel].numpy()
        ratio = values[sample, channel] / divisor
        codes = np.clip(np.round(ratio).astype(np.int64) + zero_point, 0, activation.levels - 1)
        integers[sample, channel] = (codes - zero_point) * 2 ** (power - layer.least_exponent)
    return np.moveaxis(integers, 1, axis)


def written_out_sum(torch_layer, weight: np.ndarray, integers: np.ndarray) -> np.ndarray:
    """The layer's linear map in int64, by explicit windows."""
    if isinstance(torch_layer, nn.Linear):
        return np.einsum("...c,rc->...r", integers, weight)
    spatial = weight.ndim - 2
    padding, stride = torch_layer.padding, torch_layer.stride
    padded = np.pad(integers, [(0, 0), (0, 0), *((p, p) for p in padding)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=tuple(range(2, 2 + spatial)))
    windows = windows[(slice(None), slice(None), *(slice(None, None, s) for s in stride))]
    letters = "xy"[:spatial], "kl"[:spatial]
    return np.einsum(f"bc{letters[0]}{letters[1]},rc{letters[1]}->br{letters[0]}", windows, weight)


@given(frozen_cases())
def test_accumulators_are_the_sums_of_the_definition(case):
    network, layer, context, x, step = case
    expected_input = written_out_input(layer, x, step)
    with context.at(step):
        sums = accumulators(layer, x)
        powers = layer.channel_powers(x)
        integers = layer.input_integers(x) * (1 if powers is None else powers)
    assert np.array_equal(integers.numpy() * 2.0**-layer.least_exponent, expected_input)
    for part, total in zip(layer.parts, sums, strict=True):
        assert total.dtype == torch.int32
        piece = np.take(expected_input, range(part.start, part.stop), axis=layer.channel_axis)
        weight = layer.weight_integers[:, part].numpy().astype(np.int64)
        assert np.array_equal(total.numpy(), written_out_sum(network[0], weight, piece))


@given(frozen_cases())
def test_simulation_equals_the_integers_and_both_the_trained_layer(case):
    network, layer, context, x, step = case
    with context.at(step), torch.no_grad():
        exact, simulated = int_reference(layer)(x), simulate(layer)(x)
        trained = network(x)
    largest = exact.abs().max()
    assert (simulated - exact).abs().max() <= 1e-6 * largest
    with context.at(step), torch.no_grad():
        quantizer, scaled = network[0].activation_quantizer, network[0].scaled_input(x)
        seen = quantizer(scaled).abs().max()
        apart, near_tie, grid = fused_and_unfused(layer, quantizer, scaled, x)
    weight = network[0].fixed_weight.flatten(1).abs()
    assert apart.max() <= 1 and near_tie[apart > 0].all()
    moved = (apart * grid).max() * weight.sum(dim=1).max()
    assert (trained - exact).abs().max() <= 1e-6 * seen * weight.sum(dim=1).max() + 1e-6 * largest + moved


def fused_and_unfused(layer, quantizer, scaled, x):
    """By how much the integers of one division and of two differ, where x is half-way between two, and their unit."""
    scale, _ = quantizer.parameters_for(scaled)
    ratio = scaled / scale
    near_tie = (ratio - ratio.floor() - 0.5).abs() <= 1e-6 * ratio.abs().clamp_min(1)
    return (layer.input_integers(x) - quantizer.integers(scaled)).abs(), near_tie, scale.expand_as(scaled)


@given(frozen_cases())
@costly(50)
def test_without_an_equivalent_scale_the_fused_integers_are_the_trained_layer_s(case):
    network, layer, context, x, step = case
    if layer.equivalent_scale is None:
        with context.at(step):
            assert torch.equal(layer.input_integers(x), network[0].activation_quantizer.integers(x))


@given(frozen_cases())
def test_the_input_is_divided_once_by_one_cached_vector_per_row(case):
    """codes = round(x / (τ · s · 2^e)) with that very product; nothing else touches the input."""
    _, layer, context, x, step = case
    divisor = layer.activation.tables()[0]
    if layer.equivalent_scale is not None:
        divisor = divisor * layer.equivalent_scale
    rows = torch.tensor([row_of(layer, int(call)) for call in step])
    channels = x.movedim(layer.channel_axis, -1)
    of_sample = divisor[rows].reshape(len(x), *[1] * (x.ndim - 2), -1)
    zero_point = layer.activation.tables()[1][rows].reshape(len(x), *[1] * (x.ndim - 2), -1)
    expected = ((channels / of_sample).round() + zero_point).clamp(0, layer.activation.levels - 1) - zero_point
    divisions = []
    with context.at(step), Divisions(divisions):
        integers = layer.input_integers(x)
        layer.input_integers(x)
    assert torch.equal(integers.movedim(layer.channel_axis, -1), expected)
    assert divisions == [x.shape] * 2


class Divisions(TorchFunctionMode):
    """Notes the shape of every quotient."""

    def __init__(self, shapes):
        super().__init__()
        self.shapes = shapes

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if "div" in getattr(func, "__name__", ""):
            self.shapes.append(result.shape)
        return result


@given(frozen_cases())
def test_shifted_weights_give_the_same_sums_from_plain_codes(case):
    """For kernels that know no exponents: one weight per row of steps, against int64 loops over the definition."""
    network, layer, context, x, step = case
    for sample, call in enumerate(step):
        one, at = x[sample : sample + 1], call[None]
        row = row_of(layer, int(call))
        shifted = layer.shifted_weight_integers(row)
        assert shifted.dtype == torch.int32
        with context.at(at):
            plain = layer.input_integers(one).numpy().astype(np.int64)
            sums = accumulators(layer, one)
        for part, total in zip(layer.parts, sums, strict=True):
            piece = np.take(plain, range(part.start, part.stop), axis=layer.channel_axis)
            expected = written_out_sum(network[0], shifted[:, part].numpy().astype(np.int64), piece)
            assert np.array_equal(total.numpy(), expected)


@given(frozen_cases())
@costly(50)
def test_a_sample_does_not_depend_on_who_shares_its_batch(case):
    _, layer, context, x, step = case
    run = simulate(layer)
    with context.at(step):
        together = run(x)
    for i in range(len(x)):
        with context.at(step[i : i + 1]):
            assert torch.equal(run(x[i : i + 1]), together[i : i + 1])


def calibrated(layer, x, **plan):
    network, context = nn.Sequential(layer), StepContext()
    settings_of = {"weight_bits": 4, "activation_bits": 8} | plan
    quantize_layers_(network, PrecisionPlan((LayerPlan("0", **settings_of),)), context)
    quant = network[0]
    if quant.weight_quantizer is not None:
        rows = quant.weight.detach().flatten(1)
        grid = affine_parameters(rows.amin(1), rows.amax(1), quant.weight_quantizer.levels)
        quant.weight_quantizer.set_parameters_(*(table[:, None] for table in grid))
    if quant.activation_quantizer is not None:
        grid = affine_parameters(x.amin(), x.amax(), quant.activation_quantizer.levels)
        quant.activation_quantizer.set_parameters_(*(table.view(1, 1) for table in grid))
    freeze_(network)
    return network


@pytest.mark.parametrize("engine", ["simulate", "int_reference"])
@pytest.mark.parametrize("groups", [2, 6], ids=["two groups", "depthwise"])
def test_grouped_convolutions(engine, groups):
    x = torch.randn(2, 6, 5, 5)
    network = calibrated(nn.Conv2d(6, 12, 3, groups=groups), x)
    with torch.no_grad():
        expected = network(x)
        lower_(network, engine)
        torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [2, 3, 6], ids=["two groups", "three groups", "depthwise"])
def test_shifted_weights_of_grouped_convolutions(groups):
    """Row r reads the channels of its own group, and must be shifted by their exponents."""
    x = torch.randn(2, 6, 5, 5)
    network = calibrated(nn.Conv2d(6, 12, 3, groups=groups, bias=False), x)
    network[0].activation_quantizer.exponent = torch.tensor([[-3, 0, -1, -2, 0, -3]], dtype=torch.int8)
    layer = freeze_layer(network[0])
    shifted = layer.linear_map(layer.input_integers(x).double(), layer.shifted_weight_integers(0).double(), None)
    assert torch.equal(shifted, accumulators(layer, x)[0].double())


@pytest.mark.parametrize("engine", ["simulate", "int_reference"])
def test_a_lowered_layer_is_used_only_with_both_sides_on(engine):
    x = torch.randn(2, 6)
    network = calibrated(nn.Linear(6, 3), x)
    layer = network[0]
    with torch.no_grad():
        expected = network(x)
        lower_(network, engine)
        assert layer.fixed_weight is None and freeze_layer(layer).weight_codes is layer.weight_quantizer.codes
        torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)
        with quantization(network, weight=False, activation=False):
            assert torch.equal(network(x), nn.functional.linear(x, layer.weight, layer.bias))
        with quantization(network, weight=True, activation=False):
            assert torch.equal(network(x), nn.functional.linear(x, layer.weight_quantizer.reconstruct(), layer.bias))


@pytest.mark.parametrize("side", ["weight_bits", "activation_bits"])
def test_a_layer_with_a_side_in_full_precision_stays_as_it_is(side):
    x = torch.randn(2, 6)
    network = calibrated(nn.Linear(6, 3), x, **{side: 32})
    expected = network(x)
    lower_(network, "simulate")
    assert torch.equal(network(x), expected)
    with pytest.raises(ValueError, match="layer 0: only frozen static"):
        freeze_layer(network[0])


def test_the_simulation_does_not_change_its_input():
    x = torch.randn(2, 6)
    network = calibrated(nn.Linear(6, 3), x)
    lower_(network, "simulate")
    before = x.clone()
    with torch.no_grad():
        network(x)
    assert torch.equal(x, before)


def test_sums_beyond_32_bits_are_refused():
    x = torch.ones(1, 3000)
    network = calibrated(nn.Linear(3000, 1), x, weight_bits=8, activation_bits=16)
    with torch.no_grad():
        network[0].weight_quantizer.codes.fill_(255)
        network[0].weight_quantizer.zero_point.fill_(0)
    with pytest.raises(OverflowError, match="layer 0: an accumulator does not fit 32 bits"):
        accumulators(freeze_layer(network[0]), x)


def test_whether_shifted_weights_fit_8_bits_is_told_row_by_row():
    network = calibrated(nn.Linear(64, 4), torch.randn(3, 64), weight_bits=4)
    layer = freeze_layer(network[0])
    assert layer.least_exponent == 0 and fits_int8(layer.shifted_weight_integers(0))
    assert torch.equal(layer.shifted_weight_integers(0), layer.weight_integers.int())
    exponent = torch.zeros(2, 64, dtype=torch.int8)
    exponent[0, 0], exponent[1, 1] = -3, -4  # the shift is from the least of all rows: 4
    exponent[0, 1:], exponent[1, 0] = -1, -4
    network[0].activation_quantizer.exponent = exponent
    layer = freeze_layer(network[0])
    integers = layer.weight_integers.int()
    assert layer.least_exponent == -4
    assert torch.equal(layer.shifted_weight_integers(0)[:, 0], 2 * integers[:, 0])
    assert torch.equal(layer.shifted_weight_integers(0)[:, 1:], 8 * integers[:, 1:])
    assert torch.equal(layer.shifted_weight_integers(1)[:, 2:], 16 * integers[:, 2:])
    assert fits_int8(layer.shifted_weight_integers(0))  # ±15 · 8 = ±120
    assert not fits_int8(layer.shifted_weight_integers(1))  # some of ±15 · 16


def test_whether_weights_fit_8_bits_is_told():
    layer = freeze_layer(calibrated(nn.Linear(64, 4), torch.randn(3, 64), weight_bits=7)[0])
    assert fits_int8(layer.weight_integers)
    one_sided = nn.Linear(64, 4)
    with torch.no_grad():
        one_sided.weight.abs_()
    layer = freeze_layer(calibrated(one_sided, torch.randn(3, 64), weight_bits=8)[0])
    assert layer.weight_integers.max() == 255 and not fits_int8(layer.weight_integers)
