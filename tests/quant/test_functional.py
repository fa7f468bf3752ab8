"""Laws of uniform quantization, and its gradients against closed forms."""

import itertools

import numpy as np
import pytest
import torch
from clipping import chain
from hypothesis import given
from hypothesis import strategies as st

from dmqbench.quant.functional import (
    CLIPPINGS,
    affine_parameters,
    dynamic_parameters,
    fake_quantize,
    quantize,
    rectified_sigmoid,
    rectified_sigmoid_inverse,
    round_through,
    rounding_regularizer,
    soft_round_weight,
)

LEVELS = st.sampled_from([2, 3, 4, 8, 16, 64, 256, 65536])
ANY_FLOAT = st.floats(width=32, allow_nan=False, allow_infinity=False)
ORDINARY = st.floats(-1000, 1000, width=32)


def grid_of(values: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    return affine_parameters(values.amin(), values.amax(), levels)


@st.composite
def values_and_levels(draw, elements=ORDINARY):
    values = draw(st.lists(elements, min_size=1, max_size=40))
    return torch.tensor(values, dtype=torch.float32), draw(LEVELS)


@given(values_and_levels())
def test_quantizing_twice_changes_nothing(case):
    values, levels = case
    grid = grid_of(values, levels)
    once = fake_quantize(values, *grid, levels)
    assert torch.equal(fake_quantize(once, *grid, levels), once)


@given(values_and_levels())
def test_order_is_kept(case):
    values, levels = case
    ordered = values.sort().values
    assert (fake_quantize(ordered, *grid_of(values, levels), levels).diff() >= 0).all()


@given(values_and_levels())
def test_error_is_at_most_half_a_step_inside_the_grid(case):
    values, levels = case
    scale, zero_point = grid_of(values, levels)
    bottom, top = -zero_point * scale, (levels - 1 - zero_point) * scale
    inside = values.clamp(bottom, top)
    error = (fake_quantize(inside, scale, zero_point, levels) - inside).abs()
    rounding_of_floats = 1e-6 * torch.maximum(top, -bottom)
    assert (error <= scale / 2 + rounding_of_floats).all()


@given(values_and_levels())
def test_the_range_is_covered_to_half_a_step(case):
    values, levels = case
    scale, zero_point = grid_of(values, levels)
    error = (fake_quantize(values, scale, zero_point, levels) - values).abs()
    assert error.max() <= scale * (1 + 1e-6 * levels)


@given(values_and_levels(), ORDINARY)
def test_codes_stay_within_the_levels_also_outside_the_range(case, factor):
    values, levels = case
    scale, zero_point = grid_of(values, levels)
    codes = quantize(values * factor, scale, zero_point, levels) + zero_point
    assert torch.equal(codes, codes.round())
    assert codes.min() >= 0 and codes.max() <= levels - 1


@given(st.integers(0, 2**31), st.lists(st.sampled_from([2, 4, 8, 16]), min_size=1, max_size=6))
def test_each_row_has_at_most_its_own_levels(seed, levels):
    weight = torch.randn(len(levels), 200, generator=torch.Generator().manual_seed(seed))
    per_row = torch.tensor(levels)[:, None]
    grid = affine_parameters(weight.amin(1, keepdim=True), weight.amax(1, keepdim=True), per_row)
    quantized = fake_quantize(weight, *grid, per_row)
    assert [len(row.unique()) <= allowed for row, allowed in zip(quantized, levels, strict=True)] == [True] * len(
        levels
    )
    one_by_one = [
        fake_quantize(row, scale, zero_point, allowed)
        for row, scale, zero_point, allowed in zip(weight, *grid, levels, strict=True)
    ]
    assert torch.equal(quantized, torch.stack(one_by_one))


@given(values_and_levels(ANY_FLOAT))
def test_zero_is_exact(case):
    values, levels = case
    assert fake_quantize(torch.zeros(1), *grid_of(values, levels), levels).item() == 0


@given(values_and_levels(ANY_FLOAT))
def test_every_finite_input_stays_finite_forward_and_backward(case):
    values, levels = case
    values.requires_grad_(True)
    scale, zero_point = dynamic_parameters(values[None], levels, (1,))
    assert scale.isfinite().all() and (scale > 0).all()
    quantized = fake_quantize(values[None], scale, zero_point, levels)
    assert quantized.isfinite().all()
    (gradient,) = torch.autograd.grad(quantized.sum(), values)
    assert gradient.isfinite().all()


@given(values_and_levels(ANY_FLOAT), st.sampled_from([1e-30, 1e-18, 1e-3, 1.0, 1e30]))
def test_values_far_outside_the_range_have_finite_gradients(case, size):
    values, levels = case
    values.requires_grad_(True)
    scale = torch.tensor(size, requires_grad=True)
    zero_point = torch.tensor(float(levels // 2), requires_grad=True)
    quantized = fake_quantize(values, scale, zero_point, levels)
    assert quantized.isfinite().all()
    gradients = torch.autograd.grad(quantized.sum(), (values, scale, zero_point))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("constant", [0.0, 3.0, -0.25, 1e-42, -1e38])
def test_a_constant_is_reproduced(constant):
    values = torch.full((5,), constant)
    quantized = fake_quantize(values, *grid_of(values, 16), 16)
    torch.testing.assert_close(quantized, values, rtol=1e-6, atol=1e-30)


def test_nothing_in_is_nothing_out():
    nothing = torch.zeros(0, 3, requires_grad=True)
    scale = torch.ones(1, requires_grad=True)
    quantized = fake_quantize(nothing, scale, torch.zeros(1), 16)
    assert quantized.shape == (0, 3)
    quantized.sum().backward()
    assert scale.grad is not None and scale.grad.item() == 0


def test_not_a_number_is_not_hidden():
    assert fake_quantize(torch.tensor([torch.nan]), torch.ones(1), torch.zeros(1), 4).isnan().all()


@pytest.mark.parametrize("clipping", CLIPPINGS)
@given(st.integers(0, 2**31), st.lists(LEVELS, min_size=1, max_size=5))
def test_gradients_are_those_of_the_chain_of_operations(clipping, seed, levels):
    """Rows of different levels, some values far outside, some on the grid, some within half a step of its ends."""
    random = torch.Generator().manual_seed(seed)
    per_row = torch.tensor(levels)[:, None]
    scale = torch.rand(len(levels), 1, dtype=torch.float64, generator=random) + 0.1
    zero_point = (torch.rand(len(levels), 1, dtype=torch.float64, generator=random) * (per_row - 1)).round()
    ends = torch.stack([-zero_point, per_row - 1 - zero_point]).flatten(1).T * scale
    near = [ends + scale * share for share in (-0.6, -0.5, -0.4, 0.0, 0.4, 0.5, 0.6)]
    far = torch.randn(len(levels), 20, dtype=torch.float64, generator=random) * scale * per_row
    leaves = [tensor.requires_grad_(True) for tensor in (torch.cat([far, *near], dim=1), scale, zero_point)]
    x, scale, zero_point = leaves
    upstream = torch.randn(x.shape, dtype=torch.float64, generator=random)
    ours = fake_quantize(x, scale, zero_point, per_row, clipping)
    theirs = chain(x, scale, zero_point, per_row, clipping)
    torch.testing.assert_close(ours, theirs)
    for gradient, expected in zip(
        torch.autograd.grad(ours, leaves, upstream), torch.autograd.grad(theirs, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "clipping, inside", [("after_rounding", [0, 1, 1, 1, 1, 1, 0]), ("before_rounding", [0, 0, 1, 1, 1, 0, 0])]
)
def test_where_a_value_near_the_ends_counts_as_inside(clipping, inside):
    """A half rounds to even, so that −2.5 belongs to the end at −2, and 1.5 lies beyond the one at 1."""
    x = torch.tensor([-2.6, -2.5, -2.0, 0.0, 1.0, 1.4, 1.5], requires_grad=True)
    quantized = fake_quantize(x, torch.tensor(1.0), torch.tensor(2.0), 4, clipping)
    (gradient,) = torch.autograd.grad(quantized.sum(), x)
    assert gradient.tolist() == inside


def test_scale_and_zero_point_gradients_of_clipped_values_are_finite_differences():
    x = torch.tensor([-7.0, 9.0, 30.0], dtype=torch.float64)
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    zero_point = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    gradients = torch.autograd.grad(fake_quantize(x, scale, zero_point, 8).sum(), (scale, zero_point))
    nudge = 1e-6
    of_scale = (
        fake_quantize(x, scale + nudge, zero_point, 8) - fake_quantize(x, scale - nudge, zero_point, 8)
    ).sum() / (2 * nudge)
    assert gradients[0].item() == pytest.approx(of_scale.item(), rel=1e-6)
    one_code = fake_quantize(x, scale, zero_point + 1, 8) - fake_quantize(x, scale, zero_point, 8)
    assert gradients[1].item() == pytest.approx(one_code.sum().item())


def test_gradients_are_reduced_to_the_shape_of_per_row_and_per_sample_parameters():
    x = torch.randn(4, 3, 5, 5)
    for shape in ((1, 3, 1, 1), (4, 1, 1, 1), (4, 3, 1, 1), (1, 1, 1, 1)):
        scale = torch.full(shape, 0.1, requires_grad=True)
        fake_quantize(x, scale, torch.full(shape, 7.0), 16).sum().backward()
        pieces = torch.zeros(shape)
        for index in itertools.product(*map(range, shape)):
            slot = tuple(i if size > 1 else slice(None) for i, size in zip(index, shape, strict=True))
            single = torch.tensor(0.1, requires_grad=True)
            fake_quantize(x[slot], single, torch.tensor(7.0), 16).sum().backward()
            pieces[index] = single.grad
        torch.testing.assert_close(scale.grad, pieces, rtol=1e-4, atol=1e-4)


@given(st.integers(0, 2**31), st.integers(2, 5))
def test_dynamic_ranges_do_not_depend_on_who_shares_the_batch(seed, batch):
    x = torch.randn(batch, 6, 3, generator=torch.Generator().manual_seed(seed))
    scale, zero_point = dynamic_parameters(x, 16, (1, 2))
    for i in range(batch):
        alone = dynamic_parameters(x[i : i + 1], 16, (1, 2))
        assert torch.equal(scale[i : i + 1], alone[0]) and torch.equal(zero_point[i : i + 1], alone[1])


@given(st.floats(0, 1))
def test_rectified_sigmoid_inverse_is_its_inverse(fraction):
    alpha = rectified_sigmoid_inverse(torch.tensor(fraction, dtype=torch.float64))
    assert rectified_sigmoid(alpha).item() == pytest.approx(fraction, abs=1e-9)


def test_rectified_sigmoid_reaches_both_ends():
    assert rectified_sigmoid(torch.tensor([-10.0, 0.0, 10.0])).tolist() == [0, 0.5, 1]


@given(st.lists(st.floats(-6, 6), min_size=1, max_size=20), st.floats(2, 20))
def test_rounding_regularizer_in_closed_form(alpha, beta):
    expected = 0.0
    for value in alpha:
        h = min(max(1.2 / (1 + np.exp(-value)) - 0.1, 0), 1)
        expected += 1 - abs(2 * h - 1) ** beta
    actual = rounding_regularizer(torch.tensor(alpha, dtype=torch.float64), beta).item()
    assert actual == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_gradient_of_soft_rounding_is_a_finite_difference():
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    scale, zero_point = affine_parameters(
        weight.amin(1, keepdim=True), weight.amax(1, keepdim=True), torch.tensor([[4], [8], [16]])
    )
    alpha = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    levels = torch.tensor([[4.0], [8.0], [16.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a: soft_round_weight(weight, a, scale, zero_point, levels), alpha)


def test_rounding_through_rounds_half_to_even_and_passes_the_gradient():
    x = torch.tensor([0.5, 1.5, -2.25, 2.75], requires_grad=True)
    rounded = round_through(x)
    rounded.backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert rounded.tolist() == [0.0, 2.0, -2.0, 3.0] and x.grad is not None
    assert x.grad.tolist() == [1.0, 2.0, 3.0, 4.0]
