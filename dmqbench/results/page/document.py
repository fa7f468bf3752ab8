"""The page itself: what it shows of a store's results, put into the template.

Its size is bounded: images, trajectories in one plot, layer maps and channels each have a budget; what does not fit is
named.
"""

import base64
import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
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
from dmqbench.results.page.figures import COSTS, colours, proxy_scatter, trade_off, trajectories
from dmqbench.results.page.gallery import LONGEST_SIDE, gallery_of
from dmqbench.results.page.jobs import figures_of_jobs, job_data
from dmqbench.results.page.render import Json, render
from dmqbench.results.result import Result, printable
from dmqbench.results.seed_sheet import seed_sheet
from dmqbench.results.sheets import Line, Sheet, sheet_of
from dmqbench.results.studies import boundaries_of, studies
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
    over_seeds: Sheet | None = None
    figures: Json = field(default_factory=dict)

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
    content = _Content(FindingsReader(root), results, against)
    rows = {row.folder.name: row for table in content.tables for row in table.rows}
    jobs = figures_of_jobs(rows, content.diagnoses, content.reader)
    parts = {
        key: figure for study in studies().values() for key, figure in study.parts(results, content.reader).items()
    }
    sections = [content.section(table) for table in content.tables]
    data = {
        "tables": [section.figures for section in sections],
        "parts": {key: render(figure) for key, figure in parts.items()},
        "jobs": {id: job_data(row, jobs[id]) for id, row in rows.items()},
        "galleries": _galleries(root, rows.values()),
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
        axes=COSTS,
        parts=_places(parts),
        figures=_places({key: figure for job in jobs.values() for key, figure in job.figures.items()}),
        layered=next((figure for job in jobs.values() for figure in job.layers.values()), None),
        data=data,
    )


@dataclass(frozen=True)
class _Content:
    """Results, and what is read beside them."""

    reader: FindingsReader
    results: Sequence[Result]
    against: str | None

    @cached_property
    def tables(self) -> list[Table]:
        return comparable_tables(self.results)

    @cached_property
    def diagnoses(self) -> dict[str, Diagnosis | str]:
        return {row.folder.name: diagnosis_of(row) for row in self.results}

    @cached_property
    def palette(self) -> dict[str, str]:
        return colours(self.tables)

    def section(self, table: Table) -> Section:
        sheet = sheet_of(table, compact=False)
        rows = tuple(_row(line, sheet, table) for line in sheet.lines)
        baseline = self.against or next(iter(baselines(table)), None)
        siblings = [other for other in self.tables if other.rows[0].model == table.rows[0].model]
        return Section(
            sheet=sheet,
            metrics=table.metrics,
            rows=tuple(row for row in rows if not row.line.floor),
            floors=tuple(row for row in rows if row.line.floor),
            why=why_apart(siblings) if siblings[0] is table else None,
            against=printable(baseline or ""),
            differences=_differences(contrasts(table, baseline)) if baseline else (),
            costs=cost_sheet(table),
            over_seeds=seed_sheet(table),
            figures=self.figures(table),
        )

    def figures(self, table: Table) -> Json:
        pairs = [(row, self.diagnoses[row.folder.name]) for row in table.rows]
        sound = [(row, diagnosis) for row, diagnosis in pairs if not isinstance(diagnosis, str)]
        diagnosed = [(row, diagnosis) for row, diagnosis in sound if not row.full_precision]
        states = {
            row.folder.name: boundaries_of(row, len(diagnosis["timesteps"]), self.reader)
            for row, diagnosis in diagnosed
        }
        boundaries = {id: places for id, places in states.items() if places is not None}
        has_proxies = _PROXY_METRIC in table.metrics and diagnosed
        proxies = correlations([row for row, _ in sound], _PROXY_METRIC) if has_proxies else []
        return {
            "tradeOff": {
                f"{cost.key} {metric}": render(trade_off(table, metric, cost, self.palette))
                for cost in COSTS
                for metric in table.metrics
            },
            "trajectories": render(trajectories(diagnosed, self.palette, boundaries)) if diagnosed else None,
            "proxies": {entry.proxy: render(proxy_scatter(entry, self.palette)) for entry in proxies if entry.n > 1},
        }


def _differences(compared: Iterable[Contrast]) -> tuple[Differences, ...]:
    lines: dict[tuple[str, str], Differences] = {}
    for contrast in compared:
        row = contrast.row
        line = Differences(printable(row.label), bits_text(row), printable(row.ranges or "–"), contrast.seeds)
        lines.setdefault((row.folder.name, contrast.seeds), line).by_metric[contrast.metric] = contrast
    return tuple(lines.values())


def _row(line: Line, sheet: Sheet, table: Table) -> Row:
    if line.row is None:
        return Row(line, tuple(cell.text for cell in line.cells))
    row = line.row
    named = {
        "bits": _bits_rank(row),
        "seed": row.seed,
        "MiB": row.size_mib,
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
    """Its value; what is identical to full precision comes last."""
    return math.inf if metric in row.measurements and row.value(metric) is None else row.value(metric)


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


def _galleries(root: Path, rows: Iterable[Result]) -> Json:
    samples = [row.samples.ids for row in rows]
    wanted = [id for kind in ("fp", "quantized", "input") for ids in samples if (id := ids[kind])]
    gallery = gallery_of(root, wanted)
    return {
        "strips": {id: strip._asdict() for id, strip in gallery.strips.items()},
        "missing": gallery.missing,
        "note": f"reduced to {LONGEST_SIDE} pixels" if gallery.reduced else "",
    }


def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["column"] = lambda name: Markup("_<wbr>").join(str(name).split("_"))
    return environment.from_string(_asset("page.html"))


def _asset(name: str) -> str:
    return files("dmqbench.results.page").joinpath(name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
