"""How multi-step calibration cuts the calls of a sampler: groups with one loss each, spans with one training each."""

from collections.abc import Container, Sequence
from dataclasses import dataclass


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
