"""Parts of figures that both renderers stand on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmqbench.results.figure import Axis, Figure, Line, Panel, joined, log_ticks, reaches, segments


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.21, 0.24], ["0.21", "0.22", "0.23", "0.24"]),
        ([0.9, 1.1, None, 0.0], ["0.9", "1", "1.1"]),
        ([1.0, 20.0], ["1", "2", "5", "10", "20"]),
        ([0.07, 0.6], ["0.1", "0.2", "0.5"]),
        ([3.0], ["3"]),
        ([1.0, 50.0], []),
        ([0.0, None], []),
        ([], []),
    ],
)
def test_a_short_logarithmic_axis_has_plain_decimals(values, labels):
    assert [label for _, label in log_ticks(values)] == labels


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=5))
def test_ticks_lie_among_the_values(values):
    ticks = [place for place, _ in log_ticks(values)]
    assert all(min(values) * (1 - 1e-9) <= tick <= max(values) * (1 + 1e-9) for tick in ticks)
    assert ticks == sorted(ticks) and len(ticks) <= 11


def test_intervals_reach_from_their_values():
    assert reaches([1.0, None, 2.0], [(0.5, 2.0), (0.0, 1.0), None]) == ([0.5, None, None], [1.0, None, None])


def test_stretches_have_gaps_between_them():
    line = segments([(0, 3), (3, 5)], [0.5, None], "error", "red", ["a", "b"])
    assert line.x == [0, 3, None, 3, 5, None] and line.y == [0.5, 0.5, None, None, None, None]
    assert line.texts == ["a", "a", "a", "b", "b", "b"]


def test_joined_figures_keep_every_panel_and_note():
    panels = [Panel((Line("", [0], [value], "red"),), Axis("x"), Axis("y")) for value in (1.0, 2.0)]
    both = joined([Figure("first", (panels[0],), ("a",)), Figure("second", (panels[1],), ("b",))], columns=2)
    assert (both.title, both.panels, both.notes, both.columns) == ("first", tuple(panels), ("a", "b"), 2)
