"""Which results stand in one table: those whose values have equal protocols."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from dmqbench.config.names import UNKNOWN
from dmqbench.config.plugins import metrics
from dmqbench.eval.protocol import agree, differing_entries
from dmqbench.results.result import Result

_FULL_PRECISION_FREE = ("scope", "engine")
"""Entries that say nothing of a model in which nothing is quantized."""


@dataclass(frozen=True)
class Table:
    """Results whose columns each have one protocol, in the order of ``Result.rank``."""

    rows: tuple[Result, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that any row has, in the order of ``metric_facts.OWN_METRICS``."""
        known = list(metrics())
        measured = dict.fromkeys(chain.from_iterable(row.measurements for row in self.rows))
        return tuple(sorted(measured, key=lambda name: known.index(name) if name in known else len(known)))

    @property
    def scope(self) -> str | None:
        known = [row.scope for row in self.rows if not row.full_precision]
        return next((scope for scope in known if scope != UNKNOWN), known[0] if known else None)

    def accepts(self, result: Result) -> bool:
        """Whether ``result`` has the rows' model, task, dataset and scope, and their protocol in every metric."""
        return all(_comparable(row, result) for row in self.rows)

    def protocols(self, metric: str) -> tuple[str, ...]:
        """Distinct protocol ids of one column; those that leave something open come last."""
        rows = sorted(self.rows, key=_leaves_open)
        return tuple(dict.fromkeys(row.measurements[metric].protocol for row in rows if metric in row.measurements))


def comparable_tables(results: Iterable[Result]) -> list[Table]:
    """Return tables in which no column mixes protocols and no table scopes; first come, first served.

    A full-precision row, or one made elsewhere, stands in every table that it can be compared with.
    """
    ordered = sorted(results, key=_home)
    tables: list[Table] = []
    for result in (result for result in ordered if not _leaves_open(result)):
        _place(result, tables)
    for result in (result for result in ordered if _leaves_open(result)):
        homes = [index for index, table in enumerate(tables) if table.accepts(result)]
        for index in homes:
            tables[index] = Table((*tables[index].rows, result))
        if not homes:
            tables.append(Table((result,)))
    return [Table(tuple(sorted(table.rows, key=lambda row: row.rank))) for table in tables]


def _home(result: Result) -> tuple[Any, ...]:
    """A sorting key that puts results together that may share a table."""
    return result.model, str(result.dataset), result.task or "", str(result.scope), result.rank


def why_apart(tables: Sequence[Table]) -> str | None:
    """Say in one line what keeps the results of one model in several tables; ``None`` if nothing does."""
    if len(tables) < 2:
        return None
    differences: dict[str, tuple[str, ...]] = {}
    for metric in dict.fromkeys(chain.from_iterable(table.metrics for table in tables)):
        first = [table.protocols(metric)[0] for table in tables if metric in table.metrics]
        differences |= differing_entries(first)
    apart = {
        "task": [table.rows[0].task or "generate" for table in tables],
        "scope": [str(table.scope) for table in tables if table.scope],
        "dataset": [str(table.rows[0].dataset) for table in tables],
    }
    differences |= {key: tuple(dict.fromkeys(values)) for key, values in apart.items() if len({*values}) > 1}
    entries = "; ".join(f"{key} {' | '.join(values)}" for key, values in differences.items())
    return f"in separate tables, because the protocols differ: {entries or 'in a part that only the hash shows'}"


def _leaves_open(result: Result) -> bool:
    """Whether its protocol fits more than one other: nothing is quantized, or not all is known."""
    return result.full_precision or result.foreign


def _place(result: Result, tables: list[Table]) -> None:
    for index, table in enumerate(tables):
        if table.accepts(result):
            tables[index] = Table((*table.rows, result))
            return
    tables.append(Table((result,)))


def _comparable(a: Result, b: Result) -> bool:
    if (a.model, a.dataset, a.task) != (b.model, b.dataset, b.task):
        return False
    scope_free = a.full_precision or b.full_precision
    if not scope_free and a.scope != b.scope and UNKNOWN not in (a.scope, b.scope):
        return False
    shared = a.measurements.keys() & b.measurements.keys()
    pairs = ((a.measurements[name].protocol, b.measurements[name].protocol) for name in shared)
    return all(agree(first, second, _FULL_PRECISION_FREE if scope_free else ()) for first, second in pairs)
