"""Bits of rows: kurtosis against scipy, the laws of an allocation, and the choice against counting by hand."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kurtosis as scipy_kurtosis

from dmqbench.quant.allocation import (
    SMALLEST_MAGNITUDE,
    allocate,
    blocked,
    moved_rows,
    prescale,
    row_bits,
    row_kurtosis,
    row_order,
)


def random(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- pre-scaling


def test_channels_of_input_and_weight_become_equally_large():
    x, weight = torch.rand(5, generator=random(1)) + 0.1, torch.rand(5, generator=random(2)) + 0.1
    scale = prescale(x, weight)
    torch.testing.assert_close(x / scale, weight * scale)


def test_a_dead_channel_keeps_a_finite_positive_scale():
    scale = prescale(torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0]))
    assert scale.tolist() == pytest.approx([SMALLEST_MAGNITUDE**0.5, SMALLEST_MAGNITUDE**-0.5, 1.0])


# ---- kurtosis and order


def test_kurtosis_is_the_population_fourth_moment():
    weight = torch.randn(6, 4, 3, 3, generator=random()) ** 3
    expected = scipy_kurtosis(weight.flatten(1).double().numpy(), axis=1, fisher=False, bias=True)
    torch.testing.assert_close(row_kurtosis(weight), torch.from_numpy(expected))


@pytest.mark.parametrize("shape", [(3, 1), (3, 7), (3, 1001)])
def test_a_constant_row_comes_after_all_others(shape):
    weight = torch.randn(shape, generator=random())
    weight[0], weight[1] = 0.1, 0.0
    kurtosis = row_kurtosis(weight)
    assert kurtosis[:2].tolist() == [0.0, 0.0]
    assert shape[1] == 1 or kurtosis[2] >= 1
    assert row_order("kurtosis", kurtosis, random())[1:].tolist() == ([1, 2] if shape[1] == 1 else [0, 1])


def test_of_equal_rows_the_earlier_comes_first():
    kurtosis = torch.tensor([2.0, 5.0, 2.0, 5.0, 2.0] * 20)
    order = row_order("kurtosis", kurtosis, random()).tolist()
    assert order == sorted(range(100), key=lambda row: (-float(kurtosis[row]), row))


def test_the_other_orders_do_not_look_at_the_weights():
    one, other = torch.arange(30.0), torch.rand(30, generator=random())
    for rule in ("random", "head_tail"):
        assert torch.equal(row_order(rule, one, random(3)), row_order(rule, other, random(3)))
    assert row_order("head_tail", one, random()).tolist() == list(range(30))
    assert sorted(row_order("random", one, random(3)).tolist()) == list(range(30))
    assert not torch.equal(row_order("random", one, random(3)), row_order("random", one, random(4)))


# ---- bits


@pytest.mark.parametrize(
    ("rows", "bits", "tenths", "plus", "expected"),
    [
        (64, 4, 5, False, (0, 6, 12, 18, 24, 30)),
        (10, 2, 5, False, (0, 1, 2, 3, 4, 5)),
        (19, 4, 2, False, (0, 1, 2)),
        (64, 4, 1, False, (0, 6)),
        (64, 4, 0, False, (0,)),
        (9, 4, 5, False, (0,)),
        (64, 1, 5, False, (0,)),
        (64, 8, 5, False, (0,)),
        (64, 2, 5, True, (0, 6)),
        (64, 1, 5, True, (0, 6)),
        (64, 8, 5, True, (0,)),
        (9, 2, 5, True, (0,)),
    ],
)
def test_tenths_of_the_rows_move(rows, bits, tenths, plus, expected):
    assert moved_rows(rows, bits, tenths, plus) == expected
    assert (blocked(bits, plus) is not None) == (bits == 8 or (bits == 1 and not plus))


@given(rows=st.integers(1, 200), bits=st.integers(1, 8), tenths=st.integers(0, 5), plus=st.booleans(), data=st.data())
def test_the_mean_stays_exactly(rows, bits, tenths, plus, data):
    order = torch.tensor(data.draw(st.permutations(range(rows))))
    for moved in moved_rows(rows, bits, tenths, plus):
        found = row_bits(order, moved, bits, plus)
        assert found.sum() == bits * rows + (moved if plus else 0)
        assert (found == bits + 1).sum() == moved
        assert (found == bits - 1).sum() == (0 if plus else moved)
        assert found.min() >= 1 and found.max() <= 8
        assert (found[order[:moved]] == bits + 1).all()


def test_more_than_half_of_the_rows_cannot_move():
    assert row_bits(torch.arange(4), 2, 3, plus=False).tolist() == [4, 4, 2, 2]
    with pytest.raises(ValueError, match="3 of 5 rows cannot be promoted"):
        row_bits(torch.arange(5), 3, 3, plus=False)


# ---- the choice


def test_the_choice_is_that_of_adding_up_row_by_row():
    rows, moves = 20, (0, 2, 4, 6, 8, 10)
    for seed in range(20):
        errors = {width: torch.rand(rows, generator=random(seed * 3 + width)) * 4.0**-width for width in (2, 3, 4)}
        order = torch.randperm(rows, generator=random(seed))
        found = allocate(errors, 2.0, order, 3, moves, plus=False)
        sums = []
        for moved in moves:
            promoted, demoted = set(order.tolist()[:moved]), set(order.tolist()[rows - moved :])
            widths = [4 if row in promoted else 2 if row in demoted else 3 for row in range(rows)]
            sums.append(sum(float(errors[width][row]) for row, width in enumerate(widths)) / 2)
        assert found.errors == pytest.approx(tuple(sums))
        assert found.tenths == sums.index(min(sums))
        assert found.moved == moves[found.tenths]
        assert sum(found.bits) == 3 * rows


def test_of_equal_errors_the_fewest_rows_move():
    errors = dict(zip((1, 2, 3), itertools.repeat(torch.ones(20)), strict=False))
    assert allocate(errors, 1.0, torch.arange(20), 2, (0, 2, 4), plus=False).moved == 0


def test_plus_is_not_a_choice():
    errors = {2: torch.zeros(20), 3: torch.ones(20)}
    found = allocate(errors, 0.0, torch.arange(20), 2, (0, 2), plus=True)
    assert (found.moved, found.tenths, found.errors) == (2, 1, (0.0, 2.0))
    assert found.bits == (3, 3, *[2] * 18)
