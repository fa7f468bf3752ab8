"""Learned rounding starts at the weight, ends hard, and minimises the error that brute force minimises."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmqbench.quant.functional import affine_parameters, rectified_sigmoid, rounding_regularizer
from dmqbench.quant.quantizer import WeightQuantizer
from dmqbench.quant.spec import InputGroups

ROWS_OF_LEVELS = st.lists(st.sampled_from([2, 4, 8, 16, 256]), min_size=1, max_size=4)


def calibrated(weight: torch.Tensor, levels: list[int]) -> WeightQuantizer:
    quantizer = WeightQuantizer(torch.tensor(levels), InputGroups(weight.shape[1]), weight.ndim)
    rows = weight.flatten(1)
    scale, zero_point = affine_parameters(rows.amin(1), rows.amax(1), torch.tensor(levels))
    quantizer.set_parameters_(scale[:, None], zero_point[:, None])
    return quantizer


@given(st.integers(0, 2**31), ROWS_OF_LEVELS)
def test_soft_rounding_starts_at_the_weight_inside_the_grid(seed, levels):
    weight = torch.randn(len(levels), 6, 3, 3, generator=torch.Generator().manual_seed(seed))
    quantizer = calibrated(weight, levels)
    bottom = (-quantizer.zero_point * quantizer.scale)[..., None, None]
    top = ((torch.tensor(levels)[:, None] - 1 - quantizer.zero_point) * quantizer.scale)[..., None, None]
    quantizer.learn_rounding_(weight)
    torch.testing.assert_close(quantizer(weight), weight.clamp(bottom, top), rtol=1e-4, atol=1e-5)


@given(st.integers(0, 2**31), ROWS_OF_LEVELS)
def test_hard_rounding_at_the_start_is_to_nearest(seed, levels):
    weight = torch.randn(len(levels), 30, generator=torch.Generator().manual_seed(seed))
    quantizer = calibrated(weight, levels)
    nearest = quantizer.integers(weight)
    quantizer.learn_rounding_(weight)
    fraction = (weight / quantizer.scale).frac().abs()
    undecided = (fraction - 0.5).abs() < 1e-4
    assert torch.equal(quantizer.integers(weight)[~undecided], nearest[~undecided])


def test_a_settled_alpha_rounds_the_same_softly_and_hard():
    weight = torch.randn(4, 10, generator=torch.Generator().manual_seed(3))
    quantizer = calibrated(weight, [4, 8, 16, 16])
    alpha = quantizer.learn_rounding_(weight)
    up = torch.rand(4, 10, generator=torch.Generator().manual_seed(4)) > 0.5
    with torch.no_grad():
        alpha.copy_(torch.where(up, 20.0, -20.0))
        assert set(rectified_sigmoid(alpha).unique().tolist()) == {0.0, 1.0}
        soft = quantizer(weight)
    quantizer.fix_(weight)
    assert quantizer.alpha is None
    assert torch.equal(quantizer.reconstruct(), soft)
    assert torch.equal(quantizer(weight), soft)


@pytest.mark.parametrize("seed", range(4))
def test_learned_rounding_comes_near_the_best_of_all_roundings_and_beats_nearest(seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 8, generator=generator)
    shared = torch.randn(64, 1, generator=generator)
    inputs = shared + 0.3 * torch.randn(64, 8, generator=generator)
    quantizer = calibrated(weight, [8] * 4)
    scale, zero_point = quantizer.scale[:, None], quantizer.zero_point[:, None]

    def output_error(rounded: torch.Tensor) -> torch.Tensor:
        return ((weight - rounded) @ inputs.T).square().mean(dim=1).sum()

    nearest = output_error(quantizer(weight)).item()
    choices = torch.tensor(list(itertools.product((0.0, 1.0), repeat=8)))
    integers = (weight[:, None] / scale).floor() + choices
    every = weight[:, None] - integers.clamp(-zero_point, 7 - zero_point) * scale
    best = (every @ inputs.T).square().mean(dim=2).amin(dim=1).sum().item()

    alpha = quantizer.learn_rounding_(weight)
    optimizer = torch.optim.Adam([alpha], lr=0.1)
    for iteration in range(400):
        optimizer.zero_grad()
        loss = output_error(quantizer(weight))
        if iteration >= 80:
            loss = loss + 0.01 * rounding_regularizer(alpha, 20 - 18 * (iteration - 80) / 320)
        loss.backward()
        optimizer.step()
    quantizer.fix_(weight)
    learned = output_error(quantizer(weight)).item()

    assert best <= learned * (1 + 1e-5)
    assert learned <= best + 0.25 * (nearest - best)
