"""Windows of consecutive calls: what is drawn, how often, and what it reads of recorded trajectories."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmqbench.calibration.windows import Windows, all_windows, draw_windows, first_calls
from dmqbench.data.bank import Trajectories


def recorded(count, calls):
    """Trajectories in which every number tells its trajectory, call and place."""
    shape = (1, 2, 2)
    states = torch.arange(count * (calls + 1) * 4, dtype=torch.float32).reshape(count, calls + 1, *shape)
    outputs = -torch.arange(count * calls * 4, dtype=torch.float32).reshape(count, calls, *shape)
    cond = {"class_labels": torch.arange(count) * 3}
    return Trajectories(states, outputs, cond, tuple(range(10 * calls, 0, -10)))


SIZES = st.integers(1, 12).flatmap(lambda calls: st.tuples(st.just(calls), st.integers(1, calls)))
COUNTS = st.integers(1, 9)


@given(SIZES, st.integers(0, 5))
def test_windows_of_a_grid_follow_one_another_and_leave_less_than_one_at_each_end(sizes, offset):
    calls, length = sizes
    offset = min(offset, calls % length)
    firsts = first_calls(calls, length, offset).tolist()
    covered = [call for first in firsts for call in range(first, first + length)]
    assert covered == list(range(offset, offset + length * (calls // length)))
    assert covered[-1] < calls


@pytest.mark.parametrize(("calls", "length"), [(4, 5), (1, 2), (4, 0), (4, -1)])
def test_a_window_that_does_not_fit_is_one_line(calls, length):
    with pytest.raises(ValueError, match=f"a window of {length} calls does not fit into {calls}$"):
        first_calls(calls, length)


@given(SIZES, COUNTS, st.integers(1, 9), st.integers(0, 1000))
def test_a_draw_is_whole_windows_of_different_trajectories_evenly_over_one_grid(sizes, population, count, iteration):
    calls, length = sizes
    drawn = draw_windows(3, "stage", "unit", iteration, recorded(population, calls), length, count)
    assert len(drawn) == min(count, population)
    assert drawn.samples == len(drawn) * length
    assert len(set(drawn.trajectory.tolist())) == len(drawn)
    assert set(drawn.trajectory.tolist()) <= set(range(population))
    assert (drawn.first >= 0).all() and (drawn.first + length <= calls).all()
    offset = int(drawn.first.min()) % length
    places = first_calls(calls, length, offset).tolist()
    times = Counter(drawn.first.tolist())
    assert set(times) <= set(places)
    counted = [times[place] for place in places]
    assert max(counted) - min(counted) <= 1


def test_where_windows_do_not_fill_the_trajectory_every_call_is_reached_and_no_grid_is_favoured():
    trajectories = recorded(9, 7)
    draws = [draw_windows(0, "stage", "unit", iteration, trajectories, 3, 4) for iteration in range(300)]
    offsets = Counter(int(drawn.first.min()) for drawn in draws)
    assert set(offsets) == {0, 1}
    assert min(offsets.values()) > 110  # of 300; 150 ± 9 are expected
    reached = Counter(call for drawn in draws for call in drawn.calls.flatten().tolist())
    assert set(reached) == set(range(7))
    inner = [reached[call] for call in range(1, 6)]
    assert len(set(inner)) == 1  # on either grid


def test_where_there_is_one_grid_every_call_is_drawn_equally_often():
    drawn = [draw_windows(0, "stage", "unit", iteration, recorded(4, 8), 2, 4) for iteration in range(20)]
    reached = Counter(call for windows in drawn for call in windows.calls.flatten().tolist())
    assert reached == dict.fromkeys(range(8), 20)
    pairs = Counter(pair for one in drawn for pair in zip(one.trajectory.tolist(), one.first.tolist(), strict=True))
    assert len(pairs) == 16  # no trajectory keeps to a part of its calls


def test_a_draw_is_a_function_of_its_coordinates_alone():
    trajectories = recorded(6, 9)

    def drawn(*key):
        found = draw_windows(*key, trajectories, 2, 5)
        return found.trajectory.tolist(), found.first.tolist()

    key = (1, "stage", "unit", 7)
    first = drawn(*key)
    torch.manual_seed(99)
    torch.rand(5)
    assert drawn(*key) == first
    others = [(2, "stage", "unit", 7), (1, "other", "unit", 7), (1, "stage", "other", 7), (1, "stage", "unit", 8)]
    assert all(drawn(*other) != first for other in others)


@given(SIZES, st.integers(1, 5), st.data())
def test_inputs_and_outputs_are_those_of_each_call_by_itself(sizes, population, data):
    calls, length = sizes
    of = recorded(population, calls)
    numbers = st.tuples(st.integers(0, population - 1), st.integers(0, calls - length))
    chosen = data.draw(st.lists(numbers, min_size=1, max_size=4))
    trajectory, first = (torch.tensor(part) for part in zip(*chosen, strict=True))
    windows = Windows(trajectory, first, length)
    inputs, outputs = windows.inputs(of), windows.outputs(of)
    sample = 0
    for one, start in chosen:
        for call in range(start, start + length):
            assert torch.equal(inputs.x[sample], of.x[one, call])
            assert torch.equal(outputs[sample], of.output[one, call])
            assert int(inputs.timestep[sample]) == of.timesteps[call]
            assert int(inputs.step[sample]) == call
            assert int(inputs.cond["class_labels"][sample]) == 3 * one
            sample += 1
    assert sample == windows.samples == len(inputs.x) == len(outputs) == len(inputs.step)


@given(SIZES, st.integers(1, 7), st.integers(1, 40))
def test_all_windows_are_the_grid_and_what_it_leaves_on_every_trajectory_once(sizes, population, batch):
    calls, length = sizes
    parts = list(all_windows(recorded(population, calls), length, batch))
    found = [pair for part in parts for pair in zip(part.trajectory.tolist(), part.first.tolist(), strict=True)]
    firsts = sorted({*range(0, calls - length + 1, length), calls - length})
    assert found == [(one, first) for first in firsts for one in range(population)]
    assert {call for part in parts for call in part.calls.flatten().tolist()} == set(range(calls))
    for part in parts:
        assert len(set(part.first.tolist())) == 1
        assert part.samples <= max(batch, length)
