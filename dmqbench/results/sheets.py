"""One comparable table laid out in cells, to be shown on a terminal, in Markdown, in LaTeX or on the page."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from dmqbench.eval.measurement import Floor
from dmqbench.results.best import Best, best_of
from dmqbench.results.cells import bits_text, duration_text, floor_text, size_text, value_text, word_text
from dmqbench.results.notes import notes_of
from dmqbench.results.result import Result, printable
from dmqbench.results.tables import Table


class Cell(NamedTuple):
    """Text of one cell; ``best`` is shown bold."""

    text: str
    best: bool = False


class Line(NamedTuple):
    """One row of cells; ``section`` says that a new group of bits begins.

    ``floor``: it is what a metric reads where no method differs; others are of a result, the ``row``, or of several.
    """

    cells: tuple[Cell, ...]
    section: bool = False
    floor: bool = False
    row: Result | None = None


@dataclass(frozen=True)
class Sheet:
    """A table ready to be shown: ``lefts`` columns hold words, the others numbers."""

    title: str
    columns: tuple[str, ...]
    lefts: int
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    directions: Mapping[str, str] = field(default_factory=dict)
    """Arrows of the columns in which more, or less, is better."""

    @property
    def headings(self) -> tuple[str, ...]:
        """The columns as a reader finds them, with their arrows."""
        return tuple(f"{column} {self.directions.get(column, '')}".strip() for column in self.columns)

    def without(self, hidden: Sequence[str]) -> "Sheet":
        """Return the sheet without the ``hidden`` columns."""
        kept = [number for number, column in enumerate(self.columns) if column not in hidden]
        return replace(
            self,
            columns=tuple(self.columns[number] for number in kept),
            lines=tuple(line._replace(cells=tuple(line.cells[number] for number in kept)) for line in self.lines),
        )

    def cut(self, hidden: Sequence[str]) -> "Sheet":
        """Return the sheet without the ``hidden`` columns, and a note that says so."""
        note = f"no room for {', '.join(hidden)}: use a wider terminal or --format md"
        return replace(self.without(hidden), notes=(*self.notes, note))


def sheet_of(table: Table, compact: bool, best: Best | None = None) -> Sheet:
    """Lay out ``table``; ``compact`` shortens numbers so that 80 columns hold them; ``best`` spares asking again.

    What all quantized rows share (scope, and ranges and seed where they do) stands in the title, the rest in
    columns.
    """
    extra = varying(table)
    words = ("method", "bits", *extra)
    best = best_of(table) if best is None else best
    lines = []
    for number, row in enumerate(table.rows):
        cells = [
            Cell(printable(row.label)),
            Cell(bits_text(row)),
            *(Cell(word_text(getattr(row, name))) for name in extra),
        ]
        cells += [
            Cell(size_text(row.size_mib, compact)),
            *(_metric_cell(row, name, number in best[name], compact) for name in table.metrics),
        ]
        cells.append(Cell(duration_text(row.calibration_seconds)))
        section = number > 0 and row.bits != table.rows[number - 1].bits
        lines.append(Line(tuple(cells), section, row=row))
    lines += _floor_lines(table, len(words), compact)
    return Sheet(
        title=title_of(table),
        columns=(*words, "MiB", *table.metrics, "calib." if compact else "calibration"),
        lefts=len(words),
        lines=tuple(lines),
        notes=tuple(notes_of(table, any(best.values()))),
        directions=directions_of(table),
    )


def directions_of(table: Table) -> dict[str, str]:
    """Return the arrow of each metric whose direction is known: up where more is better."""
    known = {
        name: measurement.higher_is_better
        for row in table.rows
        for name, measurement in row.measurements.items()
        if measurement.higher_is_better is not None
    }
    return {name: "↑" if higher else "↓" for name, higher in known.items()}


def title_of(table: Table) -> str:
    """Return what all rows of a table share: model, data, scope, and ranges and seed where they do."""
    first = table.rows[0]
    parts = [f"{first.model} (embedded)" if first.embedded else first.model]
    parts += [f"data {first.dataset}"] if first.dataset and first.dataset != first.model else []
    parts += [first.task] if first.task else []
    parts += [f"scope {table.scope}"] if table.scope else []
    shared = ((name, values[0]) for name, values in _entries(table).items() if len(values) == 1)
    parts += [f"{name} {value}" for name, value in shared if value is not None]
    return printable(" · ".join(parts))


def varying(table: Table) -> tuple[str, ...]:
    """Return the entries, of ranges and seed, in which quantized rows differ: each has a column."""
    return tuple(name for name, values in _entries(table).items() if len(values) > 1)


def _entries(table: Table) -> dict[str, list[Any]]:
    return {name: _distinct(table, name) for name in ("ranges", "seed")}


def _distinct(table: Table, name: str) -> list[Any]:
    return list(dict.fromkeys(getattr(row, name) for row in table.rows if not row.full_precision))


def _metric_cell(row: Result, metric: str, best: bool, compact: bool) -> Cell:
    measurement = row.measurements.get(metric)
    if measurement is None:
        return Cell("n/a" if metric in row.unavailable else "–")
    return Cell(value_text(measurement, compact, with_interval=not compact or metric == "psnr"), best)


def _floor_lines(table: Table, words: int, compact: bool) -> Iterable[Line]:
    """Return one line per kind of floor: what the metrics read where nothing was quantized."""
    floors: dict[str, dict[str, Floor]] = defaultdict(dict)
    for row in table.rows:
        for metric, measurement in row.measurements.items():
            if measurement.floor is not None:
                floors[measurement.floor.kind].setdefault(metric, measurement.floor)
    for number, (kind, by_metric) in enumerate(floors.items()):
        label = f"{kind.replace('_', ' ')} floor"
        values = (Cell(floor_text(by_metric.get(metric), compact)) for metric in table.metrics)
        blanks = (Cell("") for _ in range(words))
        cells = (Cell(label), *list(blanks)[1:], Cell(""), *values, Cell(""))
        yield Line(cells, number == 0, floor=True)
