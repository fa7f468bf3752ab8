"""One comparable table as text, for a terminal and in Markdown. Imports no torch."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from dmqbench.eval.protocol import entries_of
from dmqbench.eval.statistics import paired_difference
from dmqbench.results import Result, Table, score

_NAME_WIDTH = 11
_SHARED_ENTRIES = ("sampler", "steps", "eta", "guidance", "clip", "chunk", "engine", "seed")
_SETTING_NAMES = {"seed": "metrics.seed"}


class Cell(NamedTuple):
    """Text of one cell; ``best`` is shown bold."""

    text: str
    best: bool = False


class Line(NamedTuple):
    """One row of cells; ``section`` says that a new group of bits begins, ``faint`` marks floors."""

    cells: tuple[Cell, ...]
    section: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Sheet:
    """A table ready to be shown: ``lefts`` columns hold words, the others numbers."""

    title: str
    columns: tuple[str, ...]
    lefts: int
    lines: tuple[Line, ...]
    notes: tuple[str, ...]

    def without(self, hidden: Sequence[str]) -> "Sheet":
        """Return the sheet without the ``hidden`` columns, and a note that says so."""
        kept = [number for number, column in enumerate(self.columns) if column not in hidden]
        note = f"no room for {', '.join(hidden)}: use a wider terminal or --format md"
        return replace(
            self,
            columns=tuple(self.columns[number] for number in kept),
            lines=tuple(line._replace(cells=tuple(line.cells[number] for number in kept)) for line in self.lines),
            notes=(*self.notes, note),
        )


def sheet_of(table: Table, compact: bool) -> Sheet:
    """Lay out ``table``; ``compact`` shortens numbers so that 80 columns hold them.

    What all quantized rows share (scope, and ranges and seed where they do) stands in the title, the rest in
    columns.
    """
    varying = {name: _distinct(table, name) for name in ("ranges", "seed")}
    extra = tuple(name for name, values in varying.items() if len(values) > 1)
    words = ("method", "bits", *extra)
    best = {metric: _best(table, metric) for metric in table.metrics}
    lines = []
    for number, row in enumerate(table.rows):
        cells = [Cell(row.method), Cell(row.bits), *(Cell(_word(getattr(row, name))) for name in extra)]
        cells += [
            Cell(_size(row.size_mib, compact)),
            *(_metric_cell(row, name, number in best[name], compact) for name in table.metrics),
        ]
        cells.append(Cell(_duration(row.calibration_seconds)))
        lines.append(Line(tuple(cells), section=number > 0 and row.bits != table.rows[number - 1].bits))
    lines += _floor_lines(table, len(words), compact)
    return Sheet(
        title=_title(table, varying),
        columns=(*words, "MiB", *table.metrics, "calib." if compact else "calibration"),
        lefts=len(words),
        lines=tuple(lines),
        notes=tuple(_notes(table, any(best.values()))),
    )


def fitted(table: Table, console: Console) -> tuple[Sheet, RichTable]:
    """Return the fullest sheet that the console holds: shorter numbers first, then fewer columns.

    Cutting numbers off would change them, so columns go: calibration time, size, then metrics from the last.
    """
    full, compact = (sheet_of(table, compact=short) for short in (False, True))
    expendable = (compact.columns[-1], "MiB", *reversed(table.metrics[1:]))
    shorter = (compact.without(expendable[:count]) for count in range(1, len(expendable) + 1))
    shown = [(sheet, rich_table(sheet)) for sheet in (full, compact, *shorter)]
    return next((pair for pair in shown if _fits(pair[1], console)), shown[-1])


def rich_table(sheet: Sheet) -> RichTable:
    """Return the sheet for a terminal."""
    shown = RichTable(
        title=sheet.title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    name_width = max([_NAME_WIDTH, *(len(line.cells[0].text) for line in sheet.lines if not line.faint)])
    for number, column in enumerate(sheet.columns):
        shown.add_column(
            column.replace("_", "_\n"),
            justify="left" if number < sheet.lefts else "right",
            max_width=None if number else name_width,
        )
    for line in sheet.lines:
        if line.section:
            shown.add_section()
        shown.add_row(*(_styled(cell) for cell in line.cells), style="dim" if line.faint else None)
    return shown


def markdown(sheet: Sheet) -> str:
    """Return the sheet as a Markdown heading, table and notes."""
    ruler = [":--" if number < sheet.lefts else "--:" for number in range(len(sheet.columns))]
    rows = [sheet.columns, tuple(ruler)]
    rows += [tuple(f"**{cell.text}**" if cell.best else cell.text for cell in line.cells) for line in sheet.lines]
    body = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return "\n\n".join([f"### {sheet.title}", body, *sheet.notes])


def _title(table: Table, varying: Mapping[str, list[Any]]) -> str:
    first = table.rows[0]
    parts = [f"{first.model} (embedded)" if first.embedded else first.model]
    parts += [f"data {first.dataset}"] if first.dataset and first.dataset != first.model else []
    parts += [f"scope {table.scope}"] if table.scope else []
    parts += [f"{name} {values[0]}" for name, values in varying.items() if len(values) == 1 and values[0] is not None]
    return " · ".join(parts)


def _distinct(table: Table, name: str) -> list[Any]:
    return list(dict.fromkeys(getattr(row, name) for row in table.rows if not row.full_precision))


def _best(table: Table, metric: str) -> frozenset[int]:
    """Return the places of the rows that are best of their bits and seed, or cannot be told from the best.

    Where one row stands alone there is nothing to be best of.
    """
    rivals: dict[tuple[str, int], list[int]] = defaultdict(list)
    for place, row in enumerate(table.rows):
        if metric in row.metrics and score(row.metrics[metric]) is not None:
            rivals[row.bits, row.seed].append(place)
    found: set[int] = set()
    for places in (places for places in rivals.values() if len(places) > 1):
        best = max(places, key=lambda place: score(table.rows[place].metrics[metric]) or 0.0)
        tied = (place for place in places if _cannot_tell(table.rows[place], table.rows[best], metric))
        found.update((best, *tied))
    return frozenset(found)


def _cannot_tell(row: Result, best: Result, metric: str) -> bool:
    """Whether the data leave open which is better.

    Paired metrics have values per image: the interval of the paired difference decides. Of others only the
    row's own interval is known.
    """
    ours, theirs = row.per_image.get(metric), best.per_image.get(metric)
    if ours and theirs and len(ours) == len(theirs):
        higher_is_better = row.metrics[metric]["higher_is_better"]
        return paired_difference(ours, theirs, higher_is_better).verdict == "cannot tell"
    interval, value = row.metrics[metric].get("ci95"), best.metrics[metric].get("value")
    return bool(interval) and value is not None and interval[0] <= value <= interval[1]


def _metric_cell(row: Result, metric: str, best: bool, compact: bool) -> Cell:
    record = row.metrics.get(metric)
    if record is None:
        return Cell("n/a" if metric in row.record.get("unavailable", {}) else "–")
    return Cell(_value(record, compact, with_interval=not compact or metric == "psnr"), best)


def _value(record: Mapping[str, Any], compact: bool, with_interval: bool) -> str:
    value, interval = record.get("value"), record.get("ci95")
    if value is None:
        return "identical" if record.get("exact") else "–"
    text = _number(value, 3 if compact else 4)
    half = (interval[1] - interval[0]) / 2 if interval and value else 0
    return f"{text}±{_number(half, 1 if compact else 2)}" if half and with_interval else text


def _number(value: float, digits: int) -> str:
    """Return ``value`` with that many significant digits."""
    if value == 0:
        return "0"
    rounded = f"{value:.{digits - 1}e}"
    mantissa, exponent = rounded.split("e")
    power = int(exponent)
    if not -3 < power < digits + 3:
        return f"{mantissa}e{power}"
    return f"{float(rounded):.{max(0, digits - 1 - power)}f}"


def _size(mib: float | None, compact: bool) -> str:
    if mib is None:
        return "–"
    decimals = 0 if mib >= 100 else 1 if compact and mib >= 1 else 2
    return f"{mib:.{decimals}f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{seconds / 3600:.1f} h"


def _word(value: Any) -> str:
    return "–" if value is None else str(value)


def _floor_lines(table: Table, words: int, compact: bool) -> Iterable[Line]:
    """Return one line per kind of floor: what the metrics read where nothing was quantized."""
    floors: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for row in table.rows:
        for metric, record in row.metrics.items():
            if floor := record.get("floor"):
                floors[floor.get("kind", "")].setdefault(metric, floor)
    for number, (kind, by_metric) in enumerate(floors.items()):
        label = f"{kind.replace('_', ' ')} floor".strip()
        values = (Cell(_floor_value(by_metric.get(metric), compact)) for metric in table.metrics)
        blanks = (Cell("") for _ in range(words))
        cells = (Cell(label), *list(blanks)[1:], Cell(""), *values, Cell(""))
        yield Line(cells, section=number == 0, faint=True)


def _floor_value(floor: Mapping[str, Any] | None, compact: bool) -> str:
    if floor is None:
        return ""
    value = floor["value"]
    if value is None:
        return "identical"
    return _number(value, 4 if not compact else 3 if abs(value) >= 1e-3 else 2)


def _notes(table: Table, compared: bool) -> Iterable[str]:
    counts: dict[int, list[str]] = defaultdict(list)
    for metric in table.metrics:
        counts[next(row.metrics[metric]["n"] for row in table.rows if metric in row.metrics)].append(metric)
    yield ("n: " + ", ".join(f"{n} ({' '.join(names)})" for n, names in counts.items()) + "; " + _setting(table))
    legend = "; bold: best of its bits, and what the intervals cannot tell from it (paired where they can be)"
    yield "±: half the 95 % interval" + (legend if compared else "")
    if any(row.record.get("cost", {}).get("simulated") for row in table.rows if not row.full_precision):
        yield "quantization is simulated in floating point: sizes follow from the bits, no speed is claimed"
    reasons = {(name, why) for row in table.rows for name, why in row.record.get("unavailable", {}).items()}
    yield from (f"{name} not available: {why}" for name, why in sorted(reasons))


def _setting(table: Table) -> str:
    """Return the protocol entries that all metrics of the table share, in words."""
    protocols = [protocol for metric in table.metrics for protocol in table.protocols(metric)]
    parsed = [entries_of(protocol) for protocol in protocols]
    shared = {key: {entries.get(key) for entries in parsed} for key in _SHARED_ENTRIES}
    single = {key: values.pop() for key, values in shared.items() if len(values) == 1}
    return ", ".join(
        f"{_SETTING_NAMES.get(key, key)} {value.partition('@')[0]}"
        for key, value in single.items()
        if value is not None
    )


def _styled(cell: Cell) -> Text:
    return Text(cell.text, style="bold green" if cell.best else "")


def _fits(table: RichTable, console: Console) -> bool:
    unbounded = console.options.update(width=10_000)
    return console.measure(table, options=unbounded).maximum <= console.width
