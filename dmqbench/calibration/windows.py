"""Windows of consecutive network calls on recorded trajectories: what fine-tuning computes in one network call.

Recorded states come from full precision, so that the calls of a window do not wait for each other: they are computed as
samples of one batch, and all of them have a gradient.
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmqbench.data.bank import CalibrationBatch, Trajectories
from dmqbench.data.noise import draw_batch, generator


@dataclass(frozen=True)
class Windows:
    """``len(trajectory)`` windows of ``length`` calls each, int64 [n]; ``first`` is the first call of each."""

    trajectory: Tensor
    first: Tensor
    length: int

    def __len__(self) -> int:
        return len(self.trajectory)

    @property
    def samples(self) -> int:
        return len(self) * self.length

    @property
    def calls(self) -> Tensor:
        """The network calls, int64 [n, length]."""
        return self.first[:, None] + torch.arange(self.length)

    def inputs(self, trajectories: Trajectories) -> CalibrationBatch:
        """Inputs of n · length samples, window by window."""
        return trajectories.at((self.trajectory[:, None] * trajectories.calls + self.calls).flatten())

    def outputs(self, trajectories: Trajectories) -> Tensor:
        """What full precision predicted there, guidance included, [n · length, C, H, W]."""
        return trajectories.output[self.trajectory[:, None], self.calls].flatten(0, 1)


def first_calls(calls: int, length: int, offset: int = 0) -> Tensor:
    """First calls of the windows that follow one another from call ``offset`` on without overlap, int64.

    >>> first_calls(20, 6, offset=1).tolist()
    [1, 7, 13]
    """
    if not 1 <= length <= calls:
        raise ValueError(f"a window of {length} calls does not fit into {calls}")
    return torch.arange(offset, calls - length + 1, length)


def draw_windows(
    seed: int, stage: str, unit: str, iteration: int, of: Trajectories, length: int, count: int
) -> Windows:
    """Draw ``count`` windows (or as many as there are trajectories), each of another trajectory.

    Every place of the grid of ``first_calls`` is drawn equally often, as far as ``count`` allows; where windows do not
    fill the trajectory, the grid begins somewhere else each time. A function of its coordinates alone.
    """
    random = generator("windows", seed, stage, unit, iteration)
    offset = int(torch.randint(of.calls % length + 1, (1,), generator=random))
    places = first_calls(of.calls, length, offset)
    trajectory = draw_batch(seed, stage, unit, iteration, len(of), count)
    rounds = -(-len(trajectory) // len(places))
    order = torch.cat([torch.randperm(len(places), generator=random) for _ in range(rounds)])
    return Windows(trajectory, places[order[: len(trajectory)]], length)


def all_windows(of: Trajectories, length: int, batch: int) -> Iterator[Windows]:
    """Windows that hold every call of every trajectory: the grid, and one more at the end that it leaves over.

    At most ``batch`` samples at once, or one window; each part has one first call, and they come in its order.
    """
    places = first_calls(of.calls, length).tolist()
    for first in sorted({*places, of.calls - length}):
        for trajectory in torch.arange(len(of)).split(max(1, batch // length)):
            yield Windows(trajectory, torch.full_like(trajectory, first), length)


@dataclass(frozen=True)
class Span:
    """Groups of calls that are trained together, because they share parameters."""

    groups: tuple[range, ...]

    @property
    def calls(self) -> range:
        return range(self.groups[0].start, self.groups[-1].stop)

    @property
    def name(self) -> str:
        return f"calls {self.calls.start}-{self.calls.stop - 1}"


def spans_of(
    calls: int, horizon: int, row_of_call: Sequence[int], together: bool, off_trajectory: Container[int] = ()
) -> tuple[Span, ...]:
    """Cut ``calls`` into groups of ``horizon`` (the last may be shorter), and join those that share a row.

    Args:
        row_of_call: row of the activation parameters that each call uses; empty where all share one.
        together: all groups share the weights, so that they are one span.
        off_trajectory: calls before which no group ends: the state there is an intermediate point of a Runge-Kutta
            step, and the group goes on to the end of the step.
    """
    groups: list[range] = []
    while not groups or groups[-1].stop < calls:
        start = groups[-1].stop if groups else 0
        stop = min(start + horizon, calls)
        while stop < calls and stop in off_trajectory:
            stop += 1
        groups.append(range(start, stop))
    spans: list[list[range]] = []
    for group in groups:
        one_row = not row_of_call or (spans and row_of_call[group.start] == row_of_call[group.start - 1])
        if spans and (together or one_row):
            spans[-1].append(group)
        else:
            spans.append([group])
    return tuple(Span(tuple(groups)) for groups in spans)


@dataclass(frozen=True)
class WindowErrors:
    """Of a batch of windows."""

    noise: Tensor
    """Mean squared error of every sample's prediction, [n, length]."""
    distilled: Tensor | None = None
    """Mean over the terms of what is distilled, a scalar; None without distillation."""
    terms: float = 0.0
    """How many those are, over the number of predicted values."""
