"""The quantizer modules: per-row levels, input groups, steps, exponents, dynamic ranges."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmqbench.quant.context import StepContext
from dmqbench.quant.functional import affine_parameters, fake_quantize
from dmqbench.quant.quantizer import ActivationQuantizer, WeightQuantizer
from dmqbench.quant.spec import InputGroups, StepGroups


def set_min_max_(quantizer: WeightQuantizer, weight: torch.Tensor) -> None:
    levels = quantizer.levels
    grids = [affine_parameters(rows.amin(1), rows.amax(1), levels) for rows in quantizer.rows(weight)]
    scales, zero_points = zip(*grids, strict=True)
    quantizer.set_parameters_(torch.stack(scales, 1), torch.stack(zero_points, 1))


def test_rows_with_different_levels_equal_quantizers_of_one_row_each():
    levels = [2, 4, 8, 16, 256]
    weight = torch.randn(5, 4, 3, 3)
    mixed = WeightQuantizer(torch.tensor(levels), InputGroups(4), 4)
    set_min_max_(mixed, weight)
    for row, allowed in enumerate(levels):
        single = WeightQuantizer(torch.tensor([allowed]), InputGroups(4), 4)
        set_min_max_(single, weight[row : row + 1])
        assert torch.equal(mixed(weight)[row : row + 1], single(weight[row : row + 1]))
        assert len(mixed(weight)[row].unique()) <= allowed


def test_input_groups_of_a_weight_equal_separate_quantizers():
    weight = torch.randn(6, 10, 3)
    weight[:, 7:] *= 20
    together = WeightQuantizer(torch.full((6,), 8), InputGroups(10, (3, 7)), 3)
    set_min_max_(together, weight)
    parts = []
    for part in (slice(0, 3), slice(3, 7), slice(7, 10)):
        alone = WeightQuantizer(torch.full((6,), 8), InputGroups(part.stop - part.start), 3)
        set_min_max_(alone, weight[:, part])
        parts.append(alone(weight[:, part]))
    assert torch.equal(together(weight), torch.cat(parts, dim=1))


def test_new_weight_parameters_drop_the_rounding_that_was_for_the_old_grid():
    weight = torch.randn(3, 4)
    quantizer = WeightQuantizer(torch.full((3,), 16), InputGroups(4), 2)
    set_min_max_(quantizer, weight)
    quantizer.fix_(weight)
    set_min_max_(quantizer, 2 * weight)
    with pytest.raises(RuntimeError, match="not fixed"):
        quantizer.reconstruct()


@given(st.integers(0, 2**31), st.sampled_from([2, 16, 256]))
def test_fixed_codes_reproduce_the_rounded_weight(seed, levels):
    weight = torch.randn(4, 5, 2, 2, generator=torch.Generator().manual_seed(seed))
    quantizer = WeightQuantizer(torch.full((4,), levels), InputGroups(5, (2,)), 4)
    set_min_max_(quantizer, weight)
    before = quantizer(weight)
    quantizer.fix_(weight)
    assert quantizer.codes is not None and quantizer.codes.dtype == torch.uint8
    assert int(quantizer.codes.max()) <= levels - 1
    assert torch.equal(quantizer.reconstruct(), before)
    assert torch.equal(quantizer(torch.full_like(weight, torch.nan)), before)


def activation(groups=None, channel_axis=1, steps=None, dynamic=None, levels=16):
    context = StepContext()
    quantizer = ActivationQuantizer(context, levels, groups or InputGroups(6), channel_axis, steps, dynamic=dynamic)
    return quantizer, context


def random_parameters_(quantizer: ActivationQuantizer, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = quantizer.scale.shape
    quantizer.set_parameters_(
        torch.rand(shape, generator=generator) * 0.5 + 0.05,
        torch.randint(0, quantizer.levels, shape, generator=generator).float(),
    )


def test_a_shared_range_never_asks_for_the_step():
    quantizer, _ = activation()
    assert not quantizer.initialised
    random_parameters_(quantizer)
    assert quantizer.initialised
    x = torch.randn(2, 6, 3)
    expected = fake_quantize(x, quantizer.scale.view(1, 1, 1), quantizer.zero_point.view(1, 1, 1), 16)
    assert torch.equal(quantizer(x), expected)


def test_a_range_per_step_without_a_step_is_an_error():
    quantizer, _ = activation(steps=StepGroups.per_step(3))
    random_parameters_(quantizer)
    with pytest.raises(RuntimeError, match="step is not set"):
        quantizer(torch.randn(1, 6))


@pytest.mark.parametrize("steps", [StepGroups.per_step(7), StepGroups.of_size(7, 3)], ids=["each", "groups"])
@pytest.mark.parametrize("channel_axis", [1, -1], ids=["conv", "linear"])
@pytest.mark.parametrize("exponents", [None, 1, "rows"])
def test_a_batch_of_mixed_steps_equals_its_samples_one_by_one(steps, channel_axis, exponents):
    quantizer, context = activation(InputGroups(6, (2,)), channel_axis, steps)
    random_parameters_(quantizer)
    if exponents is not None:
        rows = steps.rows if exponents == "rows" else exponents
        quantizer.exponent = torch.randint(-2, 3, (rows, 6), dtype=torch.int8)
    x = torch.randn(7, 6, 6)
    order = torch.tensor([6, 0, 3, 3, 5, 1, 2])
    with context.at(order):
        together = quantizer(x)
    for i, call in enumerate(order.tolist()):
        with context.at(torch.tensor([call])):
            alone = quantizer(x[i : i + 1])
        assert torch.equal(together[i : i + 1], alone)
        row = steps.row_of_call[call]
        scale = quantizer.scale[row][quantizer.group_of_channel]
        if quantizer.exponent is not None:
            power = quantizer.exponent[row if exponents == "rows" else 0]
            scale = scale * 2.0 ** power.float()
        zero_point = quantizer.zero_point[row][quantizer.group_of_channel]
        shape = (6, 1) if channel_axis == 1 else (1, 6)
        direct = fake_quantize(x[i], scale.view(shape), zero_point.view(shape), 16)
        assert torch.equal(together[i], direct)


def test_input_groups_equal_separate_quantizers_on_each_part():
    groups = InputGroups(6, (4,))
    quantizer, _ = activation(groups)
    random_parameters_(quantizer)
    x = torch.randn(3, 6, 4, 4)
    for index, part in enumerate(groups.slices):
        alone, _ = activation(InputGroups(part.stop - part.start))
        alone.set_parameters_(quantizer.scale[:, index : index + 1], quantizer.zero_point[:, index : index + 1])
        assert torch.equal(quantizer(x)[:, part], alone(x[:, part]))


@pytest.mark.parametrize("shape", [(3, 5, 6), (3, 6)])
def test_dynamic_ranges_of_tokens_are_of_one_token_and_group(shape):
    """Of tokens [B, N, C], and of vectors [B, C], which are one token each."""
    x = torch.randn(shape) * torch.logspace(-2, 2, shape[-2])[:, None]
    for cuts in ((), (2,)):
        quantizer, _ = activation(InputGroups(6, cuts), -1, dynamic="token")
        assert quantizer.initialised
        result = quantizer(x).flatten(0, -2)
        for token, found in zip(x.flatten(0, -2), result, strict=True):
            for part in quantizer.groups.slices:
                piece = token[part]
                expected = fake_quantize(piece, *affine_parameters(piece.amin(), piece.amax(), 16), 16)
                assert torch.equal(found[part], expected)


@pytest.mark.parametrize("channel_axis", [1, -1])
def test_dynamic_ranges_are_per_sample_and_group(channel_axis):
    quantizer, _ = activation(InputGroups(6, (2,)), channel_axis, dynamic="sample")
    assert quantizer.initialised
    x = torch.randn(4, 6, 6)
    x[2] *= 100
    together = quantizer(x)
    alone = torch.cat([quantizer(x[i : i + 1]) for i in range(4)])
    assert torch.equal(together, alone)
    for i in range(4):
        for part in (slice(0, 2), slice(2, 6)):
            piece = x[i].transpose(0, channel_axis)[part] if channel_axis == -1 else x[i, part]
            result = together[i].transpose(0, channel_axis)[part] if channel_axis == -1 else together[i, part]
            expected = fake_quantize(piece, *affine_parameters(piece.amin(), piece.amax(), 16), 16)
            assert torch.equal(result, expected)


def test_gradient_reaches_only_the_rows_that_were_used():
    quantizer, context = activation(steps=StepGroups.per_step(4))
    random_parameters_(quantizer)
    quantizer.scale.requires_grad_(True)
    with context.at(torch.tensor([1, 1, 3])):
        quantizer(torch.randn(3, 6)).sum().backward()
    assert quantizer.scale.grad is not None
    assert (quantizer.scale.grad[:, 0] != 0).tolist() == [False, True, False, True]


def test_parameters_of_the_wrong_shape_are_refused():
    quantizer, _ = activation()
    with pytest.raises(ValueError, match=r"expected \[1, 1\]"):
        quantizer.set_parameters_(torch.ones(5, 1), torch.zeros(5, 1))
    quantizer.set_parameters_(torch.ones(5, 1), torch.zeros(5, 1), StepGroups.per_step(5))
    assert quantizer.per_step and quantizer.row_of_call.tolist() == [0, 1, 2, 3, 4]


def test_an_observer_sees_the_activation_and_lets_it_pass():
    quantizer, _ = activation()
    seen = []
    quantizer.observer = seen.append
    x = torch.randn(2, 6)
    assert quantizer(x) is x and seen[0] is x
