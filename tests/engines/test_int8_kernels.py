"""Real integer kernels compute what a frozen layer means: uint8 activations, int8 weights, float output."""

import pytest
import torch
from integers import fits_int8
from torch import nn

from dmqbench.engines.int_reference import int_reference
from dmqbench.quant.context import StepContext
from dmqbench.quant.frozen import FrozenLayer, freeze_layer
from dmqbench.quant.functional import affine_parameters
from dmqbench.quant.layers import freeze_, quantize_layers_
from dmqbench.quant.observers import mse_search
from dmqbench.quant.plan import LayerPlan, PrecisionPlan
from dmqbench.quant.spec import StepGroups

onednn_kernels = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qconv2d_pointwise")),
    reason="this build of torch has no oneDNN integer kernels",
)


def frozen(layer: nn.Module, x: torch.Tensor, weight_bits: int) -> FrozenLayer:
    network = nn.Sequential(layer)
    quantize_layers_(network, PrecisionPlan((LayerPlan("0", weight_bits, 8),)), StepContext())
    quant = network[0]
    levels = quant.weight_quantizer.levels
    grid = affine_parameters(*mse_search(quant.weight.detach().flatten(1), levels), levels)
    quant.weight_quantizer.set_parameters_(*(table[:, None] for table in grid))
    quant.activation_quantizer.set_parameters_(
        *(table.view(1, 1) for table in affine_parameters(x.amin(), x.amax(), 256))
    )
    freeze_(network)
    return freeze_layer(quant)


def operands(layer: FrozenLayer, x: torch.Tensor):
    """For a kernel: codes, scale, zero-point of the input; integers, scales, zero-points of the weight."""
    assert fits_int8(layer.weight_integers)
    scale, zero_point = layer.activation.scale.item(), int(layer.activation.zero_point.item())
    codes = (layer.input_integers(x) + zero_point).to(torch.uint8)
    zeros = torch.zeros(len(layer.weight_scale), dtype=torch.int32)
    return (codes, scale, zero_point), (layer.weight_integers.to(torch.int8), layer.weight_scale[:, 0], zeros)


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-6 * expected.abs().max()


@onednn_kernels
@pytest.mark.parametrize("weight_bits", [2, 4, 7])
@pytest.mark.parametrize(
    ("channels", "rows", "kernel", "stride", "padding"),
    [(64, 96, 3, 1, 1), (96, 48, 1, 1, 0), (32, 32, 3, 2, 1)],
    ids=["3x3", "1x1", "strided"],
)
def test_convolution(weight_bits, channels, rows, kernel, stride, padding):
    generator = torch.Generator().manual_seed(weight_bits)
    conv = nn.Conv2d(channels, rows, kernel, stride=stride, padding=padding)
    x = torch.nn.functional.silu(2 * torch.randn(2, channels, 16, 16, generator=generator))
    layer = frozen(conv, x, weight_bits)
    (codes, scale, zero_point), (weight, weight_scale, weight_zeros) = operands(layer, x)
    geometry = [stride, stride], [padding, padding], [1, 1], 1
    packed = torch.ops.onednn.qconv_prepack(weight, weight_scale, scale, zero_point, *geometry, x.shape)
    actual = torch.ops.onednn.qconv2d_pointwise(
        codes,
        scale,
        zero_point,
        packed,
        weight_scale,
        weight_zeros,
        conv.bias.detach(),
        *geometry,
        1.0,
        0,
        torch.float32,
        "none",
        [],
        "",
    )
    assert_same(actual, int_reference(layer)(x).detach())


@onednn_kernels
@pytest.mark.parametrize("weight_bits", [2, 4, 7])
@pytest.mark.parametrize("tokens", [None, 9], ids=["vectors", "tokens"])
def test_linear(weight_bits, tokens):
    generator = torch.Generator().manual_seed(weight_bits)
    linear = nn.Linear(96, 80)
    shape = (4, 96) if tokens is None else (4, tokens, 96)
    x = torch.randn(shape, generator=generator) + 0.3
    layer = frozen(linear, x, weight_bits)
    (codes, scale, zero_point), (weight, weight_scale, weight_zeros) = operands(layer, x)
    packed = torch.ops.onednn.qlinear_prepack(weight, list(x.shape))
    actual = torch.ops.onednn.qlinear_pointwise(
        codes,
        scale,
        zero_point,
        packed,
        weight_scale,
        weight_zeros,
        linear.bias.detach(),
        1.0,
        0,
        torch.float32,
        "none",
        [],
        "",
    )
    assert_same(actual, int_reference(layer)(x).detach())


@onednn_kernels
def test_a_kernel_without_exponents_computes_power_of_two_scaling_from_shifted_weights():
    """W4A8 with e in −3..0: the shifted weights are rebuilt where the step changes, and fit 8 bits."""
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(64, 48, 1)
    x = torch.randn(2, 64, 16, 16, generator=generator)
    x[:, ::9] *= 8
    network, context = nn.Sequential(conv), StepContext()
    quantize_layers_(network, PrecisionPlan((LayerPlan("0", 4, 8),)), context, StepGroups.per_step(2))
    quant = network[0]
    levels = quant.weight_quantizer.levels
    grid = affine_parameters(*mse_search(quant.weight.detach().flatten(1), levels), levels)
    quant.weight_quantizer.set_parameters_(*(table[:, None] for table in grid))
    low, high = x.amin() * torch.tensor([[1.0], [0.7]]), x.amax() * torch.tensor([[1.0], [0.7]])
    quant.activation_quantizer.set_parameters_(*affine_parameters(low, high, 256))
    exponent = torch.full((2, 64), -3)
    exponent[0, ::9], exponent[1, ::3] = 0, -1
    quant.activation_quantizer.exponent = exponent.to(torch.int8)
    freeze_(network)
    layer = freeze_layer(quant)
    geometry = [1, 1], [0, 0], [1, 1], 1
    for row in range(2):
        assert fits_int8(layer.shifted_weight_integers(row))
        weight = layer.shifted_weight_integers(row).to(torch.int8)
        scale = layer.activation.scale[row].item() * 2.0**layer.least_exponent
        zero_point = int(layer.activation.zero_point[row].item())
        with context.at(torch.full((2,), row)):
            codes = (layer.input_integers(x) + zero_point).to(torch.uint8)
            expected = int_reference(layer)(x).detach()
        packed = torch.ops.onednn.qconv_prepack(weight, layer.weight_scale[:, 0], scale, zero_point, *geometry, x.shape)
        actual = torch.ops.onednn.qconv2d_pointwise(
            codes,
            scale,
            zero_point,
            packed,
            layer.weight_scale[:, 0],
            torch.zeros(48, dtype=torch.int32),
            conv.bias.detach(),
            *geometry,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        assert_same(actual, expected)
