"""Equivalent scaling of one layer, against the unfused form written out and against brute force."""

import pytest
import torch
import torch.nn.functional as F
from clipping import chain
from hypothesis import given
from hypothesis import strategies as st

from dmqbench.quant.functional import CLIPPINGS, affine_parameters
from dmqbench.quant.scaling import (
    ScaledLayer,
    channel_extremes,
    min_max_parameters,
    scaled_ends,
    scaled_fake_quantized_weight,
    spread,
    weight_magnitudes,
    weighted_gradient,
)
from dmqbench.quant.spec import InputGroups

CHANNELS, ROWS, BATCH = 6, 5, 4
CUT = (2,)
CASES = {
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, padding=1), (ROWS, CHANNELS, 3, 3), (BATCH, CHANNELS, 5, 4), 1, ()),
    "conv1d": (lambda x, w, b: F.conv1d(x, w, b, stride=2), (ROWS, CHANNELS, 3), (BATCH, CHANNELS, 7), 1, ()),
    "tokens": (F.linear, (ROWS, CHANNELS), (BATCH, 7, CHANNELS), -1, ()),
    "vectors": (F.linear, (ROWS, CHANNELS), (BATCH, CHANNELS), -1, ()),
    "split conv2d": (F.conv2d, (ROWS, CHANNELS, 1, 1), (BATCH, CHANNELS, 4, 4), 1, CUT),
    "split tokens": (F.linear, (ROWS, CHANNELS), (BATCH, 7, CHANNELS), -1, CUT),
}
SIDES = {"both": (4, 16), "weights only": (4, None), "activations only": (None, 16)}


def parametrized(test):
    test = pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES.keys())(test)
    test = pytest.mark.parametrize("with_zero", [True, False])(test)
    return pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())(test)


def made(case, sides=SIDES["both"], with_zero=True, clipping=CLIPPINGS[0]):
    """(layer, τ, input, full-precision output), in double precision so that no tie is decided by rounding."""
    linear_map, weight_shape, input_shape, axis, boundaries = case
    weight = torch.randn(weight_shape, dtype=torch.float64) + 0.3
    bias = torch.randn(ROWS, dtype=torch.float64)
    x = torch.randn(input_shape, dtype=torch.float64) * 2 + 0.5
    scale = torch.rand(CHANNELS, dtype=torch.float64) + 0.4
    levels = None if sides[0] is None else torch.full((ROWS,), sides[0])
    groups = InputGroups(CHANNELS, boundaries)
    layer = ScaledLayer(linear_map, weight, bias, axis, groups, levels, sides[1], with_zero, clipping)
    return layer, scale, x, linear_map(x, weight, bias)


def explicit_quantized(values, levels, with_zero, by_row, clipping=CLIPPINGS[0]):
    """Min-max fake quantization of each row by itself, or of the whole tensor."""
    flat = values.flatten(1) if by_row else values.reshape(1, -1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    if with_zero:
        low, high = low.clamp(max=0), high.clamp(min=0)
    step = (high - low) / (levels - 1)
    zero_point = (-low / step).round().clamp(0, levels - 1).detach()
    return chain(flat, step, zero_point, levels, clipping).reshape(values.shape)


def explicit_output(layer, scale, x):
    """(x / τ) → fake quantize → the layer with the fake-quantized τ ⊙ W; every input group by itself."""
    along_input = [1] * x.ndim
    along_input[layer.channel_axis] = -1
    along_weight = (1, -1) + (1,) * (layer.weight.ndim - 2)
    x, weight = x / scale.reshape(along_input), layer.weight * scale.reshape(along_weight)
    cuts = [part.stop - part.start for part in layer.groups.slices]
    if layer.activation_levels is not None:
        parts = x.split(cuts, layer.channel_axis)
        quantized = [explicit_quantized(v, layer.activation_levels, True, False, layer.clipping) for v in parts]
        x = torch.cat(quantized, layer.channel_axis)
    if layer.weight_levels is not None:
        levels, parts = int(layer.weight_levels[0]), weight.split(cuts, 1)
        quantized = [explicit_quantized(v, levels, layer.zero_in_range, True, layer.clipping) for v in parts]
        weight = torch.cat(quantized, 1)
    return layer.linear_map(x, weight, layer.bias)


def explicit_errors(layer, scale, x, target):
    difference = (explicit_output(layer, scale, x) - target).movedim(layer.channel_axis, 1)
    return difference.square().sum(1).flatten(1).mean(1) if x.ndim > 2 else difference.square().sum(1)


def batch_grid(layer, x):
    """τ → the grid of x under its own range."""
    low, high = channel_extremes(x, layer.channel_axis)
    return lambda scale: layer.input_grid(low.amin(0)[None], high.amax(0)[None], scale)


# ---- values


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_without_quantization_scaling_changes_nothing(case):
    layer, scale, x, target = made(case, (None, None))
    assert torch.equal(layer.output(x, batch_grid(layer, x)(scale), layer.quantized_weight(scale)), target)
    torch.testing.assert_close(explicit_output(layer, scale, x), target)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_many_levels_come_close_to_full_precision_under_any_scale(case):
    layer, scale, x, target = made(case, (2**20, 2**20))
    output = layer.output(x, batch_grid(layer, x)(scale), layer.quantized_weight(scale))
    torch.testing.assert_close(output, target, atol=1e-3, rtol=0)
    assert not torch.equal(output, target)


@parametrized
def test_errors_are_those_of_the_unfused_form(case, sides, with_zero):
    layer, scale, x, target = made(case, sides, with_zero)
    found = layer.errors(x, target, batch_grid(layer, x)(scale), layer.quantized_weight(scale))
    expected = explicit_errors(layer, scale, x, target)
    assert (expected > 1e-4).all()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_grid_of_each_sample_is_used_for_that_sample(case):
    layer, scale, x, target = made(case)
    grid = layer.input_grid(*channel_extremes(x, layer.channel_axis), scale)
    weight = layer.quantized_weight(scale)
    found = layer.errors(x, target, grid, weight)
    alone = [explicit_errors(layer, scale, x[i : i + 1], target[i : i + 1]) for i in range(BATCH)]
    torch.testing.assert_close(found, torch.cat(alone))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_ends_are_those_of_the_scaled_tensor(case):
    layer, scale, x, _ = made(case)
    low, high = scaled_ends(*channel_extremes(x, layer.channel_axis), scale, layer.groups)
    channels = x.movedim(layer.channel_axis, 1)
    for sample in range(BATCH):
        for group, part in enumerate(layer.groups.slices):
            values = [v / scale[c] for c in range(part.start, part.stop) for v in channels[sample, c].reshape(-1)]
            assert low[sample, group] == min(values)
            assert high[sample, group] == max(values)


@given(st.integers(0, 2**31))
def test_a_common_factor_of_a_groups_channels_changes_nothing(seed):
    """Grids follow the factor; a power of two makes the arithmetic exact."""
    torch.manual_seed(seed)
    layer, scale, x, target = made(CASES["split conv2d"])
    factor = torch.tensor([4.0] * CUT[0] + [0.25] * (CHANNELS - CUT[0]), dtype=torch.float64)
    errors = [
        layer.errors(x, target, batch_grid(layer, x)(s), layer.quantized_weight(s)) for s in (scale, scale * factor)
    ]
    assert torch.equal(*errors)


def test_rows_may_have_levels_of_their_own():
    weight, scale = torch.randn(3, CHANNELS, 1, 1), torch.rand(CHANNELS) + 0.5
    levels, groups = torch.tensor([2, 4, 256]), InputGroups(CHANNELS)
    found = scaled_fake_quantized_weight(weight, scale, levels, groups, True)
    for row, allowed in enumerate(levels.tolist()):
        one = (weight[row] * scale[:, None, None])[None]
        expected = explicit_quantized(one, allowed, True, by_row=True)[0] / scale[:, None, None]
        torch.testing.assert_close(found[row], expected)


# ---- ranges without zero


def test_a_range_without_zero_clips_a_row_of_one_sign():
    """Specification, §9 #22: levels of an all-positive row are spent on 0 … high − low, what lies above is cut off."""
    low, high = torch.tensor([[0.5]]), torch.tensor([[1.0]])
    scale, zero_point = min_max_parameters(low, high, 16, with_zero=False)
    assert zero_point.item() == 0
    assert scale.item() == pytest.approx(0.5 / 15)
    weight = torch.tensor([[0.5, 0.6, 0.9, 1.0]])
    clipped = scaled_fake_quantized_weight(weight, torch.ones(4), torch.tensor([16]), InputGroups(4), False)
    assert clipped.max().item() == pytest.approx(0.5)
    whole = scaled_fake_quantized_weight(weight, torch.ones(4), torch.tensor([16]), InputGroups(4), True)
    torch.testing.assert_close(whole, weight, atol=1 / 30, rtol=0)


def test_a_range_without_zero_clips_a_negative_row_too():
    scale, zero_point = min_max_parameters(torch.tensor([-1.0]), torch.tensor([-0.5]), 16, with_zero=False)
    assert (scale.item(), zero_point.item()) == (pytest.approx(0.5 / 15), 15)


@given(st.floats(-10, -0.01), st.floats(0.01, 10), st.sampled_from([4, 16, 256]))
def test_ranges_that_hold_zero_anyway_are_the_same_in_both_forms(low, high, levels):
    ends = torch.tensor([low], dtype=torch.float64), torch.tensor([high], dtype=torch.float64)
    for one, other in zip(
        min_max_parameters(*ends, levels, True), min_max_parameters(*ends, levels, False), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("with_zero", [True, False])
def test_a_range_of_no_width_has_a_usable_step(with_zero):
    scale, zero_point = min_max_parameters(torch.zeros(2), torch.zeros(2), 16, with_zero)
    assert scale.tolist() == [1, 1]
    assert zero_point.tolist() == [0, 0]


def test_ranges_with_zero_are_the_common_ones():
    ends = torch.tensor([-0.3, 0.5]), torch.tensor([0.7, 0.9])
    for one, other in zip(min_max_parameters(*ends, 16, True), affine_parameters(*ends, 16), strict=True):
        assert torch.equal(one, other)


# ---- the gradient


def weights_of(errors):
    """Some λ that depend on all errors of the batch."""
    return (1 - errors / errors.sum()) ** 2


@pytest.mark.parametrize("clipping", CLIPPINGS)
@parametrized
def test_the_gradient_is_that_of_the_unfused_form(case, sides, with_zero, clipping):
    layer, scale, x, target = made(case, sides, with_zero, clipping)
    scale.requires_grad_(True)
    errors = explicit_errors(layer, scale, x, target)
    loss = (weights_of(errors.detach()) * errors).mean()
    (expected,) = torch.autograd.grad(loss, scale)
    assert expected.abs().max() > 1e-4
    gradient, found = weighted_gradient(layer, scale, x, target, batch_grid(layer, x), weights_of, part=BATCH)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(found, loss.detach())


@pytest.mark.parametrize(
    "clipping, expected",
    [
        ("after_rounding", [-0.0049, 0.0234, 0.0497, -0.0682]),
        ("before_rounding", [-0.0066, -0.0135, 0.0883, -0.0682]),
    ],
)
def test_the_gradient_of_one_small_layer(clipping, expected):
    """W4A8; the first row was computed with DMQ's published code (LES under the ranges of the batch, τ = 1)."""
    weight = torch.tensor([[0.13, -0.42, 0.77, 0.05], [-0.9, 0.31, 0.22, -0.08]])
    x = torch.tensor([[1, -2, 0.5, 4], [0.1, 0.2, -0.3, 8], [-1, 0.5, 2, -6]])
    layer = ScaledLayer(F.linear, weight, None, 1, InputGroups(4), torch.tensor([16, 16]), 256, False, clipping)
    gradient, _ = weighted_gradient(layer, torch.ones(4), x, x @ weight.T, batch_grid(layer, x), torch.ones_like, 3)
    torch.testing.assert_close(gradient, torch.tensor(expected), atol=6e-5, rtol=0)


@pytest.mark.parametrize("rows", ["shared", "per sample"])
@pytest.mark.parametrize("part", [1, 2, 3, BATCH + 5])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_gradient_does_not_depend_on_the_parts(case, part, rows):
    layer, scale, x, target = made(case)
    low, high = channel_extremes(x, layer.channel_axis)
    if rows == "shared":
        low, high = low.amin(0)[None], high.amax(0)[None]
    grid = lambda scale: layer.input_grid(low, high, scale)  # noqa: E731
    whole = weighted_gradient(layer, scale, x, target, grid, weights_of, part=BATCH)
    parts = weighted_gradient(layer, scale, x, target, grid, weights_of, part=part)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other)


def test_the_weights_of_samples_are_made_once_and_from_all_errors():
    layer, scale, x, target = made(CASES["conv2d"])
    seen = []

    def noted(errors):
        seen.append(errors)
        return torch.ones_like(errors)

    weighted_gradient(layer, scale, x, target, batch_grid(layer, x), noted, part=1)
    (errors,) = seen
    torch.testing.assert_close(errors, explicit_errors(layer, scale, x, target))
    assert not errors.requires_grad


def test_gradients_are_found_where_autograd_is_off():
    layer, scale, x, target = made(CASES["conv2d"])
    with torch.no_grad():
        gradient, _ = weighted_gradient(layer, scale, x, target, batch_grid(layer, x), weights_of, part=BATCH)
    assert gradient.isfinite().all() and gradient.any()
    assert not scale.requires_grad


# ---- what is told of channels


def test_weight_magnitudes_against_a_loop():
    weight = torch.randn(3, 4, 2, 2)
    expected = [max(abs(float(v)) for v in weight[:, channel].reshape(-1)) for channel in range(4)]
    torch.testing.assert_close(weight_magnitudes(weight), torch.tensor(expected))
    torch.testing.assert_close(weight_magnitudes(weight[..., 0, 0]), weight[..., 0, 0].abs().amax(0))


def test_spread_gives_every_channel_its_groups_entry():
    table = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert spread(table, InputGroups(5, (2,))).tolist() == [[1, 1, 2, 2, 2], [3, 3, 4, 4, 4]]
    assert torch.equal(torch.zeros(2, 5) + spread(table[:, :1], InputGroups(5)), table[:, :1].expand(2, 5))
