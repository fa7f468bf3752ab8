"""Which rows of a table are best in a metric, as far as the data tell."""

from collections import defaultdict
from collections.abc import Mapping

from dmqbench.results.compare import compare
from dmqbench.results.result import Result
from dmqbench.results.tables import Table

Best = Mapping[str, frozenset[int]]
"""Places of the best rows, by metric."""


def best_of(table: Table) -> Best:
    """Return, per metric, the places of the rows that are best of their bits and seed, or cannot be told from it.

    Where one row stands alone there is nothing to be best of.
    """
    return {metric: _best(table, metric) for metric in table.metrics}


def _best(table: Table, metric: str) -> frozenset[int]:
    rivals: dict[tuple[str, int], list[int]] = defaultdict(list)
    for place, row in enumerate(table.rows):
        measurement = row.measurements.get(metric)
        if not row.foreign and measurement is not None and measurement.score is not None:
            rivals[row.bits, row.seed].append(place)
    chosen: set[int] = set()
    for places in (places for places in rivals.values() if len(places) > 1):
        best = max(places, key=lambda place: table.rows[place].measurements[metric].score or 0.0)
        others = (place for place in places if place != best)
        chosen.update((best, *(place for place in others if _cannot_tell(table.rows[place], table.rows[best], metric))))
    return frozenset(chosen)


def _cannot_tell(row: Result, best: Result, metric: str) -> bool:
    """Whether the data leave open which is better: by their difference, or by the row's own interval if that is all."""
    comparison = compare(row, best, metric)
    if comparison.ci95 is not None or comparison.difference is None:
        return comparison.verdict == "cannot tell"
    interval, value = row.measurements[metric].ci95, best.value(metric)
    return interval is not None and value is not None and interval[0] <= value <= interval[1]
