"""Rows of a table that differ in the calibration seed alone, and their mean."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dmqbench.eval.statistics import student_interval
from dmqbench.results.result import Result
from dmqbench.store.files import canonical_json


class Spread(NamedTuple):
    """The mean over ``n`` seeds, and half of its 95 % interval (Student's, n − 1 degrees of freedom)."""

    mean: float
    half: float
    n: int


@dataclass(frozen=True)
class SeedGroup:
    """At least two results of one method, bits, ranges and settings, each of another seed."""

    rows: tuple[Result, ...]

    def values(self, metric: str) -> list[float] | None:
        """Return those of all seeds; ``None`` where one has none."""
        known = [value for row in self.rows if (value := row.value(metric)) is not None]
        return known if len(known) == len(self.rows) else None

    def spread(self, metric: str) -> Spread | None:
        """Return the mean over the seeds; ``None`` where a seed has no value."""
        values = self.values(metric)
        return None if values is None else spread(values)


def spread(values: Sequence[float]) -> Spread:
    """Return the mean of at least two values, and half of its interval."""
    interval = student_interval(values)
    if interval is None:
        raise ValueError(f"a mean over seeds needs at least two values, got {len(values)}")
    return Spread((interval.low + interval.high) / 2, (interval.high - interval.low) / 2, len(values))


def seed_groups(rows: Sequence[Result]) -> list[SeedGroup]:
    """Return the groups among ``rows`` in which there is a mean over seeds to speak of."""
    groups: dict[Any, dict[int, Result]] = defaultdict(dict)
    for row in rows:
        if not row.full_precision:
            groups[same_but_seed(row)].setdefault(row.seed, row)
    return [SeedGroup(tuple(group.values())) for group in groups.values() if len(group) > 1]


def same_but_seed(row: Result) -> tuple[Any, ...]:
    """What two results share that differ in nothing but their seed."""
    settings = canonical_json([row.config.get("method"), row.budget_sizes])
    return row.label, row.method, row.bits, str(row.scope), str(row.ranges), settings
