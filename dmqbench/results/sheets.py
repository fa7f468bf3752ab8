"""One comparable table as text, for a terminal and in Markdown. Imports no torch."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from dmqbench.config.schema import UNKNOWN
from dmqbench.eval.protocol import Floor, Measurement, entries_of, unknown_entries
from dmqbench.results.compare import compare
from dmqbench.results.correlations import correlations
from dmqbench.results.result import Result, printable
from dmqbench.results.seeds import SeedGroup, Spread, seed_groups
from dmqbench.results.tables import Table

Best = Mapping[str, frozenset[int]]
"""Places of the best rows, by metric."""

_NAME_WIDTH = 11
_LOPSIDED = 0.2
"""Share of its half by which an interval may lie off its value and still be written as ±."""
_SHARED_ENTRIES = ("sampler", "steps", "eta", "guidance", "clip", "chunk", "engine", "seed")
_SETTING_NAMES = {"seed": "metrics.seed"}
_DECLARED = "†"
SIMULATED = "quantization is simulated in floating point: sizes follow from the bits, no speed is claimed"


class Cell(NamedTuple):
    """Text of one cell; ``best`` is shown bold."""

    text: str
    best: bool = False


class Line(NamedTuple):
    """One row of cells; ``section`` says that a new group of bits begins.

    ``kind``: "job" of one result, the ``row``; "mean" over seeds; "floor", what a metric reads without quantization.
    """

    cells: tuple[Cell, ...]
    section: bool = False
    kind: Literal["job", "mean", "floor"] = "job"
    row: Result | None = None

    @property
    def faint(self) -> bool:
        return self.kind != "job"


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


def sheet_of(table: Table, compact: bool, best: Best | None = None) -> Sheet:
    """Lay out ``table``; ``compact`` shortens numbers so that 80 columns hold them; ``best`` spares asking again.

    What all quantized rows share (scope, and ranges and seed where they do) stands in the title, the rest in
    columns.
    """
    extra = varying(table)
    words = ("method", "bits", *extra)
    best = best_of(table) if best is None else best
    means = {id(group.rows[-1]): group for group in seed_groups(table.rows)}
    lines = []
    for number, row in enumerate(table.rows):
        cells = [Cell(printable(row.label)), Cell(bits_text(row)), *(Cell(_word(getattr(row, name))) for name in extra)]
        cells += [
            Cell(_size(row.size_mib, compact)),
            *(_metric_cell(row, name, number in best[name], compact) for name in table.metrics),
        ]
        cells.append(Cell(_duration(row.calibration_seconds)))
        section = number > 0 and row.bits != table.rows[number - 1].bits
        lines.append(Line(tuple(cells), section, row=row))
        if id(row) in means:
            lines.append(_mean_line(means[id(row)], extra, table.metrics, compact))
    lines += _floor_lines(table, len(words), compact)
    return Sheet(
        title=title_of(table),
        columns=(*words, "MiB", *table.metrics, "calib." if compact else "calibration"),
        lefts=len(words),
        lines=tuple(lines),
        notes=tuple(_notes(table, any(best.values()))),
    )


def fitted(table: Table, console: Console) -> tuple[Sheet, RichTable]:
    """Return the fullest sheet that the console holds: shorter numbers first, then fewer columns.

    Cutting numbers off would change them, so columns go: calibration time, size, then metrics from the last.
    """
    best = best_of(table)
    full, compact = (sheet_of(table, short, best) for short in (False, True))
    expendable = (compact.columns[-1], "MiB", *reversed(table.metrics[1:]))
    shorter = (compact.without(expendable[:count]) for count in range(1, len(expendable) + 1))
    sheet, shown = full, rich_table(full)
    for narrower in chain([compact], shorter):
        if _fits(shown, console):
            break
        sheet, shown = narrower, rich_table(narrower)
    return sheet, shown


def rich_table(sheet: Sheet) -> RichTable:
    """Return the sheet for a terminal."""
    shown = RichTable(
        title=Text(sheet.title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    name_width = max([_NAME_WIDTH, *(len(line.cells[0].text) for line in sheet.lines if not line.faint)])
    for number, column in enumerate(sheet.columns):
        shown.add_column(
            Text(column.replace("_", "_\n")),
            justify="left" if number < sheet.lefts else "right",
            overflow="fold",
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
    rows = [[_in_markdown(column) for column in sheet.columns], ruler]
    rows += [[f"**{text}**" if best else text for text, best in _markdown_cells(line)] for line in sheet.lines]
    body = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return "\n\n".join([f"### {_in_markdown(sheet.title)}", body, *map(_in_markdown, sheet.notes)])


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


def bits_text(row: Result) -> str:
    """Return the bits, marked where somebody said them and nothing here has seen them."""
    return printable(row.bits) + (_DECLARED if row.declared_bits else "")


def number_text(value: float, digits: int) -> str:
    """Return ``value`` with that many significant digits."""
    if value == 0:
        return "0"
    rounded = f"{value:.{digits - 1}e}"
    mantissa, exponent = rounded.split("e")
    power = int(exponent)
    if not -3 < power < digits + 3:
        return f"{mantissa}e{power}"
    return f"{float(rounded):.{max(0, digits - 1 - power)}f}"


def _markdown_cells(line: Line) -> Iterator[tuple[str, bool]]:
    return ((_in_markdown(cell.text), cell.best) for cell in line.cells)


def _in_markdown(text: str) -> str:
    """Keep names from a store out of the table's own marks, and out of HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def _mean_line(group: SeedGroup, extra: Sequence[str], metrics: Sequence[str], compact: bool) -> Line:
    """Return the line below the seeds of one method and bits: mean over seeds ± half of its interval."""
    first, count = group.rows[0], f"{len(group.rows)} seeds"
    words = [printable(first.label), bits_text(first)]
    words += [count if name == "seed" else _word(getattr(first, name)) for name in extra]
    values = (_spread_text(group.spread(metric), compact) for metric in metrics)
    return Line(tuple(Cell(text) for text in (*words, _size(first.size_mib, compact), *values, "")), kind="mean")


def _spread_text(found: Spread | None, compact: bool) -> str:
    if found is None:
        return "–"
    text = number_text(found.mean, 3 if compact else 4)
    return f"{text}±{number_text(found.half, 1 if compact else 2)}" if found.half else text


def varying(table: Table) -> tuple[str, ...]:
    """Return the entries, of ranges and seed, in which quantized rows differ: each has a column."""
    return tuple(name for name, values in _entries(table).items() if len(values) > 1)


def _entries(table: Table) -> dict[str, list[Any]]:
    return {name: _distinct(table, name) for name in ("ranges", "seed")}


def _distinct(table: Table, name: str) -> list[Any]:
    return list(dict.fromkeys(getattr(row, name) for row in table.rows if not row.full_precision))


def best_of(table: Table) -> Best:
    """Return, per metric, the places of the rows that are best of their bits and seed, or cannot be told from it.

    Where one row stands alone there is nothing to be best of.
    """
    return {metric: _best(table, metric) for metric in table.metrics}


def _best(table: Table, metric: str) -> frozenset[int]:
    rivals: dict[tuple[str, int], list[int]] = defaultdict(list)
    for place, row in enumerate(table.rows):
        found = row.measurements.get(metric)
        if not row.foreign and found is not None and found.score is not None:
            rivals[row.bits, row.seed].append(place)
    chosen: set[int] = set()
    for places in (places for places in rivals.values() if len(places) > 1):
        best = max(places, key=lambda place: table.rows[place].measurements[metric].score or 0.0)
        others = (place for place in places if place != best)
        chosen.update((best, *(place for place in others if _cannot_tell(table.rows[place], table.rows[best], metric))))
    return frozenset(chosen)


def _cannot_tell(row: Result, best: Result, metric: str) -> bool:
    """Whether the data leave open which is better: by their difference, or by the row's own interval if that is all."""
    found = compare(row, best, metric)
    if found.ci95 is not None or found.difference is None:
        return found.verdict == "cannot tell"
    interval, value = row.measurements[metric].ci95, best.value(metric)
    return interval is not None and value is not None and interval[0] <= value <= interval[1]


def _metric_cell(row: Result, metric: str, best: bool, compact: bool) -> Cell:
    found = row.measurements.get(metric)
    if found is None:
        return Cell("n/a" if metric in row.unavailable else "–")
    return Cell(_value(found, compact, with_interval=not compact or metric == "psnr"), best)


def _value(found: Measurement, compact: bool, with_interval: bool) -> str:
    value, interval = found.value, found.ci95
    if value is None:
        return "identical"
    text = number_text(value, 3 if compact else 4)
    if not interval or not value or not with_interval or interval[0] == interval[1]:
        return text
    low, high = interval
    half = (high - low) / 2
    if not compact and abs(high + low - 2 * value) > _LOPSIDED * half:
        return f"{text} [{number_text(low, 3)}, {number_text(high, 3)}]"
    return f"{text}±{number_text(half, 1 if compact else 2)}"


def _size(mib: float | None, compact: bool) -> str:
    if mib is None:
        return "–"
    if mib >= 100:
        return f"{mib:.0f}"
    return f"{mib:.1f}" if compact and mib >= 1 else f"{mib:.2f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{seconds / 3600:.1f} h"


def _word(value: Any) -> str:
    return "–" if value is None else printable(value)


def _floor_lines(table: Table, words: int, compact: bool) -> Iterable[Line]:
    """Return one line per kind of floor: what the metrics read where nothing was quantized."""
    floors: dict[str, dict[str, Floor]] = defaultdict(dict)
    for row in table.rows:
        for metric, found in row.measurements.items():
            if found.floor is not None:
                floors[found.floor.kind].setdefault(metric, found.floor)
    for number, (kind, by_metric) in enumerate(floors.items()):
        label = f"{kind.replace('_', ' ')} floor"
        values = (Cell(_floor_value(by_metric.get(metric), compact)) for metric in table.metrics)
        blanks = (Cell("") for _ in range(words))
        cells = (Cell(label), *list(blanks)[1:], Cell(""), *values, Cell(""))
        yield Line(cells, number == 0, "floor")


def _floor_value(floor: Floor | None, compact: bool) -> str:
    if floor is None:
        return ""
    if floor.value is None:
        return "identical"
    short = 3 if abs(floor.value) >= 1e-3 else 2
    return number_text(floor.value, short if compact else 4)


def _notes(table: Table, compared: bool) -> Iterable[str]:
    counts: dict[int, list[str]] = defaultdict(list)
    for metric in table.metrics:
        counts[next(row.measurements[metric].n for row in table.rows if metric in row.measurements)].append(metric)
    setting = _setting(table)
    sizes = ", ".join(f"{n} ({' '.join(names)})" for n, names in counts.items())
    yield f"n: {sizes}" + (f"; {setting}" if setting else "")
    legend = "; bold: best of its bits, and what the intervals cannot tell from it (paired where they can be)"
    yield "±: half the 95 % interval" + (legend if compared else "")
    floors = {found.floor.kind for row in table.rows for found in row.measurements.values() if found.floor}
    if "other_seed" in floors:
        yield "other seed floor: two sets of full precision that share no noise; sets that do can lie below it"
    if seed_groups(table.rows):
        yield "seeds: mean over the calibration seeds ± half of its 95 % interval (Student's)"
    if any(row.cost.simulated for row in table.rows if not row.full_precision):
        yield SIMULATED
    yield from _input_notes(table, max(counts, default=0))
    yield from _foreign_notes(table)
    yield from _proxy_notes(table)
    reasons = {(name, why) for row in table.rows for name, why in row.unavailable.items()}
    yield from (printable(f"{name} not available: {why}") for name, why in sorted(reasons))


def _input_notes(table: Table, most: int) -> Iterator[str]:
    """Intervals take samples for independent, which those of one image are not quite."""
    known = [count for row in table.rows if (count := row.input_images) is not None]
    fewest = min(known, default=most)
    if fewest < most:
        yield f"samples start from {fewest} images, in turn: where n is larger, intervals take repeats for independent"


def _proxy_notes(table: Table) -> Iterator[str]:
    """How cheap errors go with PSNR over the jobs of the table, where there are enough of them."""
    known = [found for found in correlations(table.rows) if found.spearman is not None]
    if known:
        shown = ", ".join(f"{found.proxy.replace('_', ' ')} {found.spearman:+.2f}" for found in known)
        yield f"rank correlation with psnr over {known[0].n} jobs: {shown}"


def _foreign_notes(table: Table) -> Iterator[str]:
    """Say what nobody told this program about rows made elsewhere."""
    open_entries: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for row in table.rows:
        unknown = {entry for found in row.measurements.values() for entry in unknown_entries(found.protocol)}
        if unknown:
            open_entries[tuple(sorted(unknown))].append(printable(row.label))
    for entries, labels in open_entries.items():
        names = ", ".join(dict.fromkeys(labels))
        yield f"{names}: made elsewhere; unknown and taken as the table's: {', '.join(entries)}"
    if any(row.declared_bits for row in table.rows):
        yield f"{_DECLARED} bits as its author declares them: they cannot be seen in images"


def _setting(table: Table) -> str:
    """Return the protocol entries that all metrics of the table share, in words."""
    protocols = [protocol for metric in table.metrics for protocol in table.protocols(metric)]
    parsed = [entries_of(protocol) for protocol in protocols]
    shared = {key: {entries.get(key) for entries in parsed} - {UNKNOWN} for key in _SHARED_ENTRIES}
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
