"""The page itself: what it shows of a store's results, put into the template. Imports no torch.

Its size is bounded: images, trajectories in one plot, layer maps and channels each have a budget; what does not fit is
named.
"""

import base64
import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from dmqbench.results.cells import bits_text
from dmqbench.results.correlations import correlations
from dmqbench.results.cost_sheet import cost_sheet
from dmqbench.results.diagnosis import Diagnosis, diagnosis_of
from dmqbench.results.differences import Contrast, baselines, contrasts
from dmqbench.results.figure import Figure
from dmqbench.results.page.axes import Json
from dmqbench.results.page.figures import AXES, colours, cost, proxy_scatter, trade_off, trajectories
from dmqbench.results.page.gallery import LONGEST_SIDE, gallery_of
from dmqbench.results.page.jobs import figures_of_jobs, job_data
from dmqbench.results.page.render import render
from dmqbench.results.result import Result, printable
from dmqbench.results.sheets import Line, Sheet, sheet_of
from dmqbench.results.studies import STUDIES
from dmqbench.results.studies.error_accumulation import boundaries_of
from dmqbench.results.studies.findings import FindingsReader
from dmqbench.results.tables import Table, comparable_tables, why_apart
from dmqbench.store.files import save_atomic

EMBEDDED = (
    "They were trained by this project and are tiny. They can never show a paper's cell or percentage, the rank of "
    "methods on real models, perceptual quality, or hours and memory at scale."
)

_PROXY_METRIC = "psnr"


@dataclass(frozen=True)
class Row:
    """One line of a table as the template needs it: ``sorts`` are what its cells are sorted by."""

    line: Line
    sorts: tuple[Any, ...]
    job: str = ""
    method: str = ""
    bits: str = ""


@dataclass(frozen=True)
class Differences:
    """One line of the table of differences: a row, a seed or several, and what each metric says."""

    method: str
    bits: str
    ranges: str
    seeds: str
    by_metric: dict[str, Contrast] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """One comparable table and what belongs to it."""

    sheet: Sheet
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    floors: tuple[Row, ...]
    why: str | None
    against: str
    differences: tuple[Differences, ...]
    costs: Sheet | None
    figures: Json = field(default_factory=dict)

    @property
    def jobs(self) -> list[Row]:
        return [row for row in self.rows if row.job]

    @property
    def has_odd_plots(self) -> bool:
        """Whether one plot of the table stands alone in its row."""
        return bool(self.figures["trajectories"]) == bool(self.figures["proxies"])

    @property
    def has_several_ranges(self) -> bool:
        return len({line.ranges for line in self.differences}) > 1

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(row.method for row in self.rows if row.method))

    @property
    def widths(self) -> list[str]:
        return list(dict.fromkeys(row.bits for row in self.rows if row.bits))


@dataclass(frozen=True)
class Place:
    """Where a figure stands on the page: whether in the whole width, and whether what is taller is scrolled."""

    title: str
    description: str
    is_wide: bool
    is_tall: bool


def write_page(root: Path, results: Sequence[Result], path: Path, against: str | None = None) -> Path:
    """Write the page of ``results``, which lie in the store ``root``, to ``path`` and return it."""
    save_atomic(path, page(root, results, against))
    return path


def page(root: Path, results: Sequence[Result], against: str | None = None) -> str:
    """Return the page as HTML; equal stores give equal pages.

    What is missing or damaged beside the results (samples, diagnoses, findings) is a line on the page, never an error.
    """
    tables = comparable_tables(results)
    diagnoses = {row.folder.name: diagnosis_of(row) for row in results}
    reader = FindingsReader(root)
    palette = colours(tables)
    boundaries = _boundaries(results, diagnoses, reader)
    sections = [_section(table, tables, palette, diagnoses, boundaries, against) for table in tables]
    shown = {job.folder.name: job for table in tables for job in table.rows}
    jobs = figures_of_jobs(shown, diagnoses, reader)
    parts = {key: figure for study in STUDIES for key, figure in study.parts(results, reader).items()}
    data = {
        "tables": [section.figures for section in sections],
        "parts": {key: render(figure) for key, figure in parts.items()},
        "jobs": {id: job_data(row, jobs[id]) for id, row in shown.items()},
        "galleries": _galleries(root, shown.values()),
    }
    scripts = [get_plotlyjs(), _asset("page.js")]
    return _template().render(
        name=printable(root.absolute().name),
        sections=sections,
        results=results,
        models=list(dict.fromkeys(printable(row.model) for row in results)),
        embedded=EMBEDDED if any(row.embedded for row in results) else "",
        scripts=[Markup(script) for script in scripts],
        hashes=" ".join(f"'sha256-{_digest(script)}'" for script in scripts),
        style=Markup(_asset("page.css")),
        axes=AXES,
        parts=_places(parts),
        figures=_places({key: figure for job in jobs.values() for key, figure in job.figures.items()}),
        layered=next((figure for job in jobs.values() for figure in job.layers.values()), None),
        data=data,
    )


def _section(
    table: Table,
    tables: Sequence[Table],
    palette: dict[str, str],
    diagnoses: dict[str, Diagnosis | str],
    boundaries: dict[str, list[int]],
    against: str | None,
) -> Section:
    sheet = sheet_of(table, compact=False)
    rows = tuple(_row(line, sheet, table) for line in sheet.lines)
    candidates = [against] if against else baselines(table)[:1]
    differences = _differences(contrasts(table, candidates[0])) if candidates else ()
    siblings = [other for other in tables if other.rows[0].model == table.rows[0].model]
    return Section(
        sheet=sheet,
        metrics=table.metrics,
        rows=tuple(row for row in rows if row.line.kind != "floor"),
        floors=tuple(row for row in rows if row.line.kind == "floor"),
        why=why_apart(siblings) if siblings[0] is table else None,
        against=printable(candidates[0]) if candidates else "",
        differences=differences,
        costs=cost_sheet(table),
        figures=_figures(table, palette, diagnoses, boundaries),
    )


def _differences(found: Iterable[Contrast]) -> tuple[Differences, ...]:
    lines: dict[tuple[str, str], Differences] = {}
    for contrast in found:
        row = contrast.row
        line = Differences(printable(row.label), bits_text(row), printable(row.ranges or "–"), contrast.seeds)
        lines.setdefault((row.folder.name, contrast.seeds), line).by_metric[contrast.metric] = contrast
    return tuple(lines.values())


def _figures(
    table: Table, palette: dict[str, str], diagnoses: dict[str, Diagnosis | str], boundaries: dict[str, list[int]]
) -> Json:
    plotted = {
        f"{axis.key} {metric}": trade_off(table, metric, axis, palette) for axis in AXES for metric in table.metrics
    }
    whole = [(row, found) for row in table.rows if not isinstance(found := diagnoses[row.folder.name], str)]
    diagnosed = [(row, found) for row, found in whole if not row.full_precision]
    proxies: dict[str, Json] = {}
    if _PROXY_METRIC in table.metrics and diagnosed:
        found = correlations([row for row, _ in whole], _PROXY_METRIC)
        proxies = {entry.proxy: proxy_scatter(entry, palette) for entry in found if entry.n > 1}
    return {
        "tradeOff": plotted,
        "trajectories": trajectories(diagnosed, palette, boundaries) if diagnosed else None,
        "proxies": proxies,
    }


def _row(line: Line, sheet: Sheet, table: Table) -> Row:
    if line.row is None:
        return Row(line, tuple(cell.text for cell in line.cells))
    row = line.row
    named = {
        "bits": _bits_rank(row),
        "seed": row.seed,
        "MiB": cost(row, "size"),
        sheet.columns[-1]: row.calibration_seconds,
    }
    texts = {column: cell.text for column, cell in zip(sheet.columns, line.cells, strict=True)}
    ranks = {column: _metric_rank(row, column) for column in texts if column in table.metrics}
    sorts = tuple((texts | named | ranks)[column] for column in sheet.columns)
    return Row(line, sorts, row.folder.name, printable(row.label), bits_text(row))


def _bits_rank(row: Result) -> int:
    """Weights before activations; what is unknown comes first."""
    widths = [int(digits) for digits in re.findall(r"\d+", row.bits)]
    return 1000 * widths[0] + widths[-1] if widths else 0


def _metric_rank(row: Result, metric: str) -> float | None:
    found = row.measurements.get(metric)
    if found is None:
        return None
    return math.inf if found.value is None else found.value


def _places(figures: dict[str, Figure]) -> dict[str, Place]:
    narrow = [key for key, figure in figures.items() if figure.narrow]
    alone = narrow[-1:] if len(narrow) % 2 else []
    return {
        key: Place(
            figure.title,
            figure.description,
            is_wide=key not in narrow or key in alone,
            is_tall=any(panel.y.names for panel in figure.panels),
        )
        for key, figure in figures.items()
    }


def _boundaries(
    results: Iterable[Result], diagnoses: dict[str, Diagnosis | str], reader: FindingsReader
) -> dict[str, list[int]]:
    """By diagnosed job, the states between the groups of calls over which it was calibrated."""
    return {
        row.folder.name: found
        for row in results
        if not isinstance(diagnosis := diagnoses[row.folder.name], str)
        and (found := boundaries_of(row, len(diagnosis["timesteps"]), reader)) is not None
    }


def _galleries(root: Path, rows: Iterable[Result]) -> Json:
    samples = [row.samples.ids for row in rows]
    wanted = [id for kind in ("fp", "quantized", "input") for ids in samples if (id := ids[kind])]
    found = gallery_of(root, wanted)
    note = f"reduced to {LONGEST_SIDE} pixels" if found.reduced else ""
    return {
        "strips": {id: strip._asdict() for id, strip in found.strips.items()},
        "missing": found.missing,
        "note": note,
    }


def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["column"] = lambda name: Markup("_<wbr>").join(str(name).split("_"))
    return environment.from_string(_asset("page.html"))


def _asset(name: str) -> str:
    return files("dmqbench.results.page").joinpath(name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
