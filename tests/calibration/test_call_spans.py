"""Cutting calls into groups and spans."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmqbench.calibration.windows import spans_of
from dmqbench.quant.spec import StepGroups

CUTS = {
    "ranges per group": ((20, 5, StepGroups.of_size(20, 5)), [[(0, 5)], [(5, 10)], [(10, 15)], [(15, 20)]]),
    "ranges per step": ((5, 2, StepGroups.per_step(5)), [[(0, 2)], [(2, 4)], [(4, 5)]]),
    "shared ranges": ((5, 2, StepGroups.shared()), [[(0, 2), (2, 4), (4, 5)]]),
    "all calls": ((4, 4, StepGroups.of_size(4, 2)), [[(0, 4)]]),
    "more than there are": ((4, 99, StepGroups.of_size(4, 2)), [[(0, 4)]]),
    "one call": ((3, 1, StepGroups.of_size(3, 2)), [[(0, 1), (1, 2)], [(2, 3)]]),
    "ranges that straddle": ((12, 3, StepGroups.of_size(12, 4)), [[(0, 3), (3, 6), (6, 9), (9, 12)]]),
    "ranges of twice the horizon": ((8, 2, StepGroups.of_size(8, 4)), [[(0, 2), (2, 4)], [(4, 6), (6, 8)]]),
}


@pytest.mark.parametrize(("arguments", "expected"), CUTS.values(), ids=CUTS.keys())
def test_calls_are_cut_into_groups_and_groups_that_share_a_row_are_joined(arguments, expected):
    calls, horizon, steps = arguments
    spans = spans_of(calls, horizon, steps.row_of_call, together=False)
    assert [[(group.start, group.stop) for group in span.groups] for span in spans] == expected
    assert [span.name for span in spans] == [f"calls {each[0][0]}-{each[-1][1] - 1}" for each in expected]
    assert len(spans_of(calls, horizon, steps.row_of_call, together=True)) == 1


@given(st.integers(1, 40), st.integers(1, 45), st.integers(1, 45), st.booleans())
def test_spans_cover_all_calls_in_order_and_share_no_row(calls, horizon, size, together):
    rows = StepGroups.of_size(calls, size).row_of_call
    spans = spans_of(calls, horizon, rows, together)
    groups = [group for span in spans for group in span.groups]
    assert [call for group in groups for call in group] == list(range(calls))
    assert all(len(group) == horizon for group in groups[:-1])
    assert 1 <= len(groups[-1]) <= horizon
    of_spans = [{rows[call] for call in span.calls} for span in spans]
    assert all(not left & right for left, right in pairwise(of_spans))
    if not together:  # and no span could be cut further
        inner = [pair for span in spans for pair in pairwise(span.groups)]
        assert all(rows[left.stop - 1] == rows[right.start] for left, right in inner)


def test_no_group_ends_inside_a_runge_kutta_step():
    spans = spans_of(14, 3, (), together=False, off_trajectory=(1, 2, 3, 5, 6, 7, 9, 10, 11))
    assert [(group.start, group.stop) for span in spans for group in span.groups] == [(0, 4), (4, 8), (8, 12), (12, 14)]
