"""Quantized layers beside torch's: equal when off, the algebra when on, and freezing."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dmqbench.quant.context import StepContext
from dmqbench.quant.functional import affine_parameters, fake_quantize
from dmqbench.quant.layer import QuantLayer
from dmqbench.quant.layers import (
    QuantConv2d,
    QuantLinear,
    freeze_,
    freeze_weight_,
    quant_layers,
    quantization,
    quantize_layers_,
    set_quantization_,
)
from dmqbench.quant.plan import LayerPlan, PrecisionPlan
from dmqbench.quant.spec import StepGroups

CHANNELS = 6
CASES = {
    "conv1d": (lambda: nn.Conv1d(CHANNELS, 8, 3, padding=1), (2, CHANNELS, 9)),
    "conv2d": (lambda: nn.Conv2d(CHANNELS, 8, 3, padding=1, stride=2), (2, CHANNELS, 8, 8)),
    "conv2d dilated, circular, without bias": (
        lambda: nn.Conv2d(CHANNELS, 8, 3, padding=2, dilation=2, padding_mode="circular", bias=False),
        (2, CHANNELS, 8, 8),
    ),
    "conv2d in groups": (lambda: nn.Conv2d(CHANNELS, 8, 3, groups=2), (2, CHANNELS, 8, 8)),
    "linear on vectors": (lambda: nn.Linear(CHANNELS, 8), (3, CHANNELS)),
    "linear on tokens": (lambda: nn.Linear(CHANNELS, 8, bias=False), (2, 5, CHANNELS)),
}
every_kind = pytest.mark.parametrize(("make", "shape"), CASES.values(), ids=CASES.keys())


def quantized(layer, *, weight_bits=4, activation_bits=8, boundaries=(), steps=None):
    """A network of one quantizable layer, that layer, and its step context."""
    network, context = nn.Sequential(layer), StepContext()
    plan = PrecisionPlan((LayerPlan("0", weight_bits, activation_bits, boundaries),))
    quantize_layers_(network, plan, context, steps)
    return network, network[0], context


@torch.no_grad()
def calibrate_(layer: QuantLayer, x: torch.Tensor) -> None:
    """Min-max ranges for the weight and, the same for all steps, for the activation."""
    weights, activation = layer.weight_quantizer, layer.activation_quantizer
    if weights is not None:
        grids = [
            affine_parameters(rows.amin(1), rows.amax(1), weights.levels)
            for rows in weights.rows(layer.scaled_weight())
        ]
        weights.set_parameters_(*(torch.stack(tables, 1) for tables in zip(*grids, strict=True)))
    if activation is not None:
        x = layer.scaled_input(x)
        parts = [x.narrow(layer.channel_axis, p.start, p.stop - p.start) for p in activation.groups.slices]
        low, high = (torch.stack([getattr(part, end)() for part in parts]) for end in ("amin", "amax"))
        grid = affine_parameters(low, high, activation.levels)
        activation.set_parameters_(*(t.expand(len(activation.scale), -1) for t in grid))


@every_kind
def test_a_layer_that_is_switched_off_is_the_torch_layer(make, shape):
    layer, x = make(), torch.randn(shape)
    expected = layer(x)
    network, _, _ = quantized(layer)
    assert torch.equal(network(x), expected)


@every_kind
def test_a_quantized_layer_shares_the_parameters_and_keeps_their_names(make, shape):
    layer = make()
    network, quant, _ = quantized(layer)
    assert quant.weight is layer.weight and quant.bias is layer.bias
    assert {"0." + name for name in layer.state_dict()} <= set(network.state_dict())


@every_kind
def test_the_quantized_forward_is_the_layer_of_quantized_operands(make, shape):
    layer, x = make(), torch.randn(shape)
    network, quant, _ = quantized(layer)
    calibrate_(quant, x)
    set_quantization_(network, weight=True, activation=True)
    rows = layer.weight.flatten(1)
    scale, zero_point = (t.unsqueeze(1) for t in affine_parameters(rows.amin(1), rows.amax(1), 16))
    weight = fake_quantize(rows, scale, zero_point, 16).view_as(layer.weight)
    x_hat = fake_quantize(x, *affine_parameters(x.amin(), x.amax(), 256), 256)
    with torch.no_grad():
        expected = torch.func.functional_call(layer, {"weight": weight}, (x_hat,))
        torch.testing.assert_close(network(x), expected, rtol=1e-6, atol=1e-6)


def test_the_two_switches_act_alone():
    x = torch.randn(3, CHANNELS)
    network, quant, _ = quantized(nn.Linear(CHANNELS, 8))
    calibrate_(quant, x)
    with torch.no_grad():
        with quantization(network, weight=True, activation=False):
            only_weight = network(x)
            with quantization(network, weight=False, activation=True):
                only_activation = network(x)
            assert quant.weight_on and not quant.activation_on
        assert not quant.weight_on
        assert torch.equal(only_weight, F.linear(x, quant.weight_quantizer(quant.weight), quant.bias))
        assert torch.equal(only_activation, F.linear(quant.activation_quantizer(x), quant.weight, quant.bias))


@pytest.mark.parametrize(
    ("weight_bits", "activation_bits"), [(32, 8), (4, 32), (32, 32)], ids=["w32a8", "w4a32", "w32a32"]
)
def test_32_bits_leave_a_side_in_full_precision(weight_bits, activation_bits):
    layer, x = nn.Conv2d(CHANNELS, 4, 1), torch.randn(2, CHANNELS, 3, 3)
    network, quant, _ = quantized(layer, weight_bits=weight_bits, activation_bits=activation_bits)
    calibrate_(quant, x)
    freeze_(network)
    weight = layer.weight if weight_bits == 32 else quant.weight_quantizer.reconstruct()
    x_hat = x if activation_bits == 32 else quant.activation_quantizer(x)
    with torch.no_grad():
        torch.testing.assert_close(network(x), F.conv2d(x_hat, weight, layer.bias))
    assert (quant.weight_quantizer is None) == (weight_bits == 32)
    assert (quant.activation_quantizer is None) == (activation_bits == 32)


def test_a_cut_input_is_the_sum_of_two_quantized_layers():
    layer, x = nn.Conv2d(CHANNELS, 8, 3, padding=1), torch.randn(2, CHANNELS, 5, 5)
    x[:, 4:] *= 30
    network, quant, _ = quantized(layer, boundaries=(4,))
    calibrate_(quant, x)
    set_quantization_(network, weight=True, activation=True)
    total = layer.bias.detach().view(1, -1, 1, 1)
    for part in (slice(0, 4), slice(4, 6)):
        half = nn.Conv2d(part.stop - part.start, 8, 3, padding=1, bias=False)
        half.weight = nn.Parameter(layer.weight[:, part].detach().clone())
        half_network, half_quant, _ = quantized(half)
        calibrate_(half_quant, x[:, part])
        set_quantization_(half_network, weight=True, activation=True)
        total = total + half_network(x[:, part]).detach()
    torch.testing.assert_close(network(x).detach(), total, rtol=1e-5, atol=1e-5)


@every_kind
def test_an_equivalent_scale_changes_nothing_in_full_precision(make, shape):
    layer, x = make(), torch.randn(shape)
    expected = layer(x)
    network, quant, _ = quantized(layer, weight_bits=32, activation_bits=32)
    scale = torch.rand(CHANNELS) + 0.5
    if getattr(layer, "groups", 1) != 1:
        with pytest.raises(ValueError, match="ungrouped"):
            quant.set_equivalent_scale_(scale)
        return
    quant.set_equivalent_scale_(scale)
    set_quantization_(network, weight=True, activation=True)
    torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)


def test_an_equivalent_scale_is_what_both_quantizers_see():
    layer, x = nn.Linear(CHANNELS, 8), torch.randn(4, CHANNELS)
    network, quant, _ = quantized(layer)
    scale = torch.rand(CHANNELS) + 0.5
    quant.set_equivalent_scale_(scale)
    calibrate_(quant, x)
    set_quantization_(network, weight=True, activation=True)
    with torch.no_grad():
        weight = quant.weight_quantizer(layer.weight * scale)
        expected = F.linear(quant.activation_quantizer(x / scale), weight, layer.bias)
        assert torch.equal(network(x), expected)
        with quantization(network, weight=False, activation=False):
            assert torch.equal(network(x), layer(x))
    with pytest.raises(ValueError, match="one value per input channel"):
        quant.set_equivalent_scale_(torch.ones(8))


@every_kind
def test_a_low_rank_adapter_starts_at_nothing_and_merges_exactly(make, shape):
    layer, x = make(), torch.randn(shape)
    network, quant, _ = quantized(layer, weight_bits=32, activation_bits=32)
    down, up = quant.add_adapter_(2, torch.Generator().manual_seed(0))
    set_quantization_(network, weight=True, activation=True)
    with torch.no_grad():
        assert torch.equal(network(x), layer(x))
        up.normal_()
        merged = layer.weight + (up @ down).view_as(layer.weight)
        expected = torch.func.functional_call(layer, {"weight": merged}, (x,))
        torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)
    network(x).sum().backward()
    assert down.grad.abs().sum() > 0 and up.grad.abs().sum() > 0


@every_kind
def test_an_adapter_of_every_tap_is_a_product_for_every_tap(make, shape):
    layer = make()
    _, quant, _ = quantized(layer, weight_bits=32, activation_bits=32)
    down, up = quant.add_adapter_(2, torch.Generator().manual_seed(0), per_tap=True)
    assert torch.equal(quant.scaled_weight(), layer.weight)
    with torch.no_grad():
        up.normal_()
    rows, channels, *taps = layer.weight.shape
    rank, change = 2, quant.scaled_weight() - layer.weight
    for place in itertools.product(*map(range, taps)):
        tap = sum(p * math.prod(taps[i + 1 :]) for i, p in enumerate(place))
        of_tap = math.prod(taps)
        outer = torch.stack([up[:, k * of_tap + tap] for k in range(rank)], dim=1)
        inner = torch.stack([down[:, c * of_tap + tap] for c in range(channels)], dim=1)
        torch.testing.assert_close(change[(slice(None), slice(None), *place)], outer @ inner, rtol=1e-4, atol=1e-5)
    assert up.shape == (rows, rank * math.prod(taps))


def test_a_frozen_weight_leaves_activations_trainable_and_the_teacher_alone():
    layer, x = nn.Conv2d(CHANNELS, 8, 3), torch.randn(2, CHANNELS, 6, 6)
    untouched = layer.weight.detach().clone()
    expected = layer(x)
    network, quant, _ = quantized(layer)
    calibrate_(quant, x)
    set_quantization_(network, weight=True, activation=True)
    before = network(x)
    freeze_weight_(network)
    assert torch.equal(network(x), before)
    with torch.no_grad():
        quant.weight_quantizer.scale.mul_(7)
    assert torch.equal(network(x), before), "a fixed weight is not quantized again"
    scale = quant.activation_quantizer.scale.requires_grad_(True)
    network(x).square().sum().backward()
    assert scale.grad is not None and scale.grad.abs().sum() > 0
    assert quant.weight.grad is None or torch.equal(quant.weight, untouched)
    assert torch.equal(quant.weight, untouched)
    with quantization(network, weight=False, activation=False):
        assert torch.equal(network(x), expected)


def test_freezing_twice_keeps_the_codes_and_needs_calibrated_ranges():
    network, quant, _ = quantized(nn.Linear(CHANNELS, 8))
    with pytest.raises(RuntimeError, match="layer 0: the activation range is not calibrated"):
        freeze_(network)
    calibrate_(quant, torch.randn(5, CHANNELS))
    freeze_(network)
    assert quant.weight_on and quant.activation_on
    assert not any(parameter.requires_grad for parameter in network.parameters())
    codes = quant.weight_quantizer.codes.clone()
    freeze_(network)
    assert torch.equal(quant.weight_quantizer.codes, codes)


def test_a_new_equivalent_scale_or_adapter_drops_fixed_rounding():
    for change in (
        lambda quant: quant.set_equivalent_scale_(torch.full((CHANNELS,), 2.0)),
        lambda quant: quant.add_adapter_(1, torch.Generator()),
    ):
        network, quant, _ = quantized(nn.Linear(CHANNELS, 8))
        calibrate_(quant, torch.randn(5, CHANNELS))
        freeze_(network)
        change(quant)
        assert quant.fixed_weight is None and quant.weight_quantizer.codes is None


def test_learning_the_rounding_trains_alpha_through_the_layer():
    x = torch.randn(5, CHANNELS)
    network, quant, _ = quantized(nn.Linear(CHANNELS, 8).requires_grad_(False))
    calibrate_(quant, x)
    set_quantization_(network, weight=True, activation=False)
    weights = quant.weight_quantizer
    bottom, top = -weights.zero_point * weights.scale, (15 - weights.zero_point) * weights.scale
    alpha = weights.learn_rounding_(quant.scaled_weight())
    unrounded = F.linear(x, quant.weight.clamp(bottom, top), quant.bias)
    torch.testing.assert_close(network(x), unrounded, rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(network(x).square().sum(), alpha)
    assert (gradient != 0).float().mean() > 0.5


def everything_at_once():
    """Rows at 1 to 4 bits, cut input, equivalent scale, adapter, learned rounding, steps, exponents."""
    layer = nn.Conv2d(CHANNELS, 8, 3, padding=1).requires_grad_(False)
    bits = (1, 2, 3, 4, 4, 3, 2, 1)
    network, quant, context = quantized(layer, weight_bits=bits, boundaries=(4,), steps=StepGroups.of_size(6, 2))
    generator = torch.Generator().manual_seed(0)
    quant.set_equivalent_scale_(torch.rand(CHANNELS, generator=generator) + 0.5)
    _, up = quant.add_adapter_(2, generator)
    with torch.no_grad():
        up.normal_(std=0.1, generator=generator)
    x = torch.randn(3, CHANNELS, 5, 5, generator=generator)
    calibrate_(quant, x)
    activation = quant.activation_quantizer
    growth = torch.tensor([[1.0], [1.5], [2.0]])
    activation.set_parameters_(activation.scale * growth, activation.zero_point)
    activation.exponent = torch.randint(-1, 2, (3, CHANNELS), dtype=torch.int8, generator=generator)
    alpha = quant.weight_quantizer.learn_rounding_(quant.scaled_weight())
    with torch.no_grad():
        alpha.normal_(std=3, generator=generator)
    set_quantization_(network, weight=True, activation=True)
    return network, quant, context, x


def test_everything_composes_on_one_layer():
    network, quant, context, x = everything_at_once()
    step = torch.tensor([5, 0, 2])
    weights, activation = quant.weight_quantizer, quant.activation_quantizer
    activation.scale.requires_grad_(True)
    quant.equivalent_scale.requires_grad_(True)
    trained = [weights.alpha, activation.scale, quant.equivalent_scale]
    with context.at(step):
        gradients = torch.autograd.grad(network(x).square().sum(), trained)
    assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in gradients)

    freeze_(network)
    with context.at(step):
        actual = network(x)
    row_bits = [1, 2, 3, 4, 4, 3, 2, 1]
    group = [0, 0, 0, 0, 1, 1]
    merged = (quant.weight + (quant.adapter_up @ quant.adapter_down).view_as(quant.weight)).double()
    merged = merged * quant.equivalent_scale.view(1, -1, 1, 1)
    weight = torch.zeros_like(merged)
    for row in range(8):
        for channel in range(CHANNELS):
            scale = weights.scale[row, group[channel]].double()
            zero_point = weights.zero_point[row, group[channel]].double()
            codes = weights.codes[row, channel].double()
            assert codes.max() <= 2 ** row_bits[row] - 1
            rounding = (codes - zero_point) - merged[row, channel] / scale
            inside = (codes > 0) & (codes < 2 ** row_bits[row] - 1)
            assert (rounding[inside].abs() < 1 + 1e-4).all(), "rounded up or down, nowhere else"
            weight[row, channel] = (codes - zero_point) * scale
    quantized_input = torch.zeros_like(x, dtype=torch.float64)
    for sample, call in enumerate(step.tolist()):
        for channel in range(CHANNELS):
            row = call // 2
            scale = activation.scale[row, group[channel]].double() * 2.0 ** int(activation.exponent[row, channel])
            zero_point = activation.zero_point[row, group[channel]].double()
            ratio = x[sample, channel].double() / quant.equivalent_scale[channel].double() / scale
            quantized_input[sample, channel] = (ratio.round() + zero_point).clamp(0, 255) - zero_point
            quantized_input[sample, channel] *= scale
    expected = F.conv2d(quantized_input, weight, quant.bias.double(), padding=1)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4)


def test_mixed_steps_of_the_composed_layer_equal_one_by_one():
    network, _, context, x = everything_at_once()
    freeze_(network)
    with context.at(torch.tensor([5, 0, 2])):
        together = network(x)
    for i, call in enumerate((5, 0, 2)):
        with context.at(torch.tensor([call])):
            torch.testing.assert_close(network(x[i : i + 1]), together[i : i + 1], rtol=1e-5, atol=1e-5)


def test_an_empty_batch_passes():
    network, quant, _ = quantized(nn.Linear(CHANNELS, 8))
    calibrate_(quant, torch.randn(5, CHANNELS))
    freeze_(network)
    assert network(torch.zeros(0, CHANNELS)).shape == (0, 8)


def test_layers_are_replaced_where_the_plan_says_and_nowhere_else():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Linear(4, 4), nn.SiLU()), nn.Linear(4, 2))
    plan = PrecisionPlan((LayerPlan("0", 4, 8), LayerPlan("1.0", 4, 8)), ("2",))
    quantize_layers_(network.eval(), plan, StepContext())
    assert list(quant_layers(network)) == ["0", "1.0"]
    assert type(network[0]) is QuantConv2d and type(network[1][0]) is QuantLinear
    assert type(network[2]) is nn.Linear and not network[0].training


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (LayerPlan("missing.layer", 4, 8), "names layer missing.layer, which this model lacks"),
        (LayerPlan("1", 4, 8), "layer 1 is a SiLU"),
        (LayerPlan("0", (4, 4, 4), 8), "has 3 rows for layer 0, the model has 4"),
        (LayerPlan("0", 4, 8, (6,)), r"layer 0: boundaries \(6,\) do not cut 6 channels"),
        (LayerPlan("2", 4, 8, (1,)), "layer 2: the input of a grouped convolution cannot be cut"),
    ],
    ids=["missing", "not quantizable", "rows", "boundaries", "grouped"],
)
def test_a_plan_that_does_not_fit_is_refused_by_name(plan, message):
    network = nn.Sequential(nn.Linear(6, 4), nn.SiLU(), nn.Conv1d(8, 8, 1, groups=2))
    with pytest.raises(ValueError, match=message):
        quantize_layers_(network, PrecisionPlan((plan,)), StepContext())
