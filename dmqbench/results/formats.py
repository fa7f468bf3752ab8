"""A store's tables for the terminal and as Markdown, LaTeX, JSON and CSV."""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console

from dmqbench.results.cost_sheet import cost_sheet
from dmqbench.results.differences import Contrast, contrasts, difference_sheet
from dmqbench.results.latex import PREAMBLE, latex
from dmqbench.results.markdown import markdown
from dmqbench.results.result import Result, printable
from dmqbench.results.seed_sheet import seed_sheet
from dmqbench.results.sheets import Sheet, sheet_of
from dmqbench.results.stored import load_store
from dmqbench.results.tables import Table, comparable_tables, why_apart
from dmqbench.results.terminal import fitted, fitted_seeds, rich_table

_FACTS = ["model", "embedded", "dataset", "task", "method", "label", "bits", "scope", "ranges", "seed", "size_mib"]
"""Of a result, as columns of CSV."""


def load_results(source: Path | Sequence[Path]) -> list[Result]:
    """Return the results of a run store, or of a list of result folders, best bits first.

    Results of a store that are damaged are left out, with one line each on standard error.
    """
    if isinstance(source, Path):
        return load_store(source, on_damage=_complain)
    return sorted((Result.load(folder) for folder in source), key=lambda result: result.rank)


def print_results(folders: Path | Sequence[Path], console: Console | None = None) -> None:
    """Print the table, or tables, of the results in ``folders`` (or of a whole store) to ``console``."""
    _print(load_results(folders), console or Console(), lambda table: [])


def as_markdown(results: Iterable[Result], against: str | None = None) -> str:
    """Return the tables in Markdown, and the differences ``against`` a method."""
    parts = []
    for tables, why in _by_model(results):
        for table in tables:
            parts += [markdown(sheet) for sheet in _sheets(table, against)]
        parts += [why] if why else []
    return "\n\n".join(parts) + "\n"


def as_latex(results: Iterable[Result], against: str | None = None) -> str:
    """Return the tables in LaTeX, and the differences ``against`` a method; each names its protocols."""
    parts = [PREAMBLE]
    for table in comparable_tables(results):
        protocols = [protocol for metric in table.metrics for protocol in table.protocols(metric)]
        parts += [latex(sheet, protocols) for sheet in _sheets(table, against)]
    return "\n\n".join(parts) + "\n"


def as_json(results: Iterable[Result], against: str | None = None) -> str:
    """Return a list with one object per result; results with the same ``table`` compare."""
    keys = ("job_id", "method", "dataset", "bits", "declared", "scope", "ranges", "seed")
    rows = []
    for number, table in enumerate(comparable_tables(results)):
        by_row = _contrasts_by_row(table, against)
        for result in table.rows:
            row = {"table": number, "label": result.label, "embedded": result.embedded, "size_mib": result.size_mib}
            content: dict[str, Any] = dict.fromkeys(keys) | result.to_json()
            row |= {"model": result.model, **{key: content[key] for key in keys}}
            row |= {"task": result.task}
            row |= {"metrics": {name: content["metrics"][name] for name in result.measurements}}
            row |= {key: content[key] for key in ("unavailable", "cost", "timing")}
            row |= {"calibration": [part.to_json() for part in result.calibration]}
            if id(result) in by_row:
                row["against"] = {"method": against, "differences": list(map(_as_object, by_row[id(result)]))}
            rows.append(row)
    return json.dumps(rows, indent=1, allow_nan=False) + "\n"


def as_csv(results: Iterable[Result], against: str | None = None) -> str:
    """Return one line per result, each metric with its interval, n and protocol id."""
    rows = []
    for number, table in enumerate(comparable_tables(results)):
        by_row = _contrasts_by_row(table, against)
        rows += [_flat(number, row) | _flat_differences(by_row.get(id(row), ())) for row in table.rows]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _by_model(results: Iterable[Result]) -> list[tuple[list[Table], str | None]]:
    """Return the tables of each model, and why there are several."""
    tables = comparable_tables(results)
    models = [list(group) for _, group in groupby(tables, key=lambda table: table.rows[0].model)]
    return [(group, why_apart(group)) for group in models]


def _sheets(table: Table, against: str | None) -> list[Sheet]:
    """Return all of a table: methods over seeds where there are several, jobs, and what stands below them."""
    over_seeds = seed_sheet(table)
    first = [] if over_seeds is None else [over_seeds]
    return [*first, sheet_of(table, compact=False), *_further_sheets(table, against)]


def _further_sheets(table: Table, against: str | None) -> list[Sheet]:
    """Return what stands below a table: differences, if they are asked for, and what calibration took."""
    sheets = [difference_sheet(table, against) if against else None, cost_sheet(table)]
    return [sheet for sheet in sheets if sheet]


def _print(results: Iterable[Result], console: Console, further_sheets: Callable[[Table], list[Sheet]]) -> None:
    for tables, why in _by_model(results):
        for table in tables:
            further = [(sheet, rich_table(sheet)) for sheet in further_sheets(table)]
            for sheet, drawn in filter(None, (fitted_seeds(table, console), fitted(table, console), *further)):
                console.print()
                console.print(drawn)
                for note in sheet.notes:
                    console.print(note, style="dim", markup=False, highlight=False)
        if why:
            console.print(f"\n{printable(why)}", style="yellow", markup=False, highlight=False)


def _contrasts_by_row(table: Table, against: str | None) -> dict[int, list[Contrast]]:
    by_row: dict[int, list[Contrast]] = {}
    for contrast in contrasts(table, against) if against else ():
        by_row.setdefault(id(contrast.row), []).append(contrast)
    return by_row


def _as_object(contrast: Contrast) -> dict[str, Any]:
    """What ``--against`` says of one metric; ``seeds`` is a seed, or how many of them the difference is a mean of."""
    comparison = contrast.comparison
    return {
        "metric": contrast.metric,
        "seeds": contrast.seeds,
        "difference": comparison.difference,
        "ci95": None if comparison.ci95 is None else list(comparison.ci95),
        "n": int(contrast.count),
        "verdict": comparison.verdict,
        "sentence": comparison.sentence,
    }


def _flat_differences(compared: Iterable[Contrast]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for contrast in (contrast for contrast in compared if contrast.single):
        low, high = contrast.comparison.ci95 or (None, None)
        name = f"{contrast.metric}_difference"
        row |= {name: contrast.comparison.difference, f"{name}_low": low, f"{name}_high": high}
        row |= {f"{contrast.metric}_verdict": contrast.comparison.verdict}
    return row


def _flat(number: int, result: Result) -> dict[str, Any]:
    row: dict[str, Any] = {"table": number, **{name: getattr(result, name) for name in _FACTS}}
    row |= {"calibrate_s": result.calibration_seconds, "calibration_calls": result.calibration_calls}
    row |= {"calibration_peak_memory_mib": result.timing.calibration_peak_memory_mib, "job_id": result.job_id}
    for name, measurement in result.measurements.items():
        low, high = measurement.ci95 or (None, None)
        row |= {name: measurement.value, f"{name}_low": low, f"{name}_high": high, f"{name}_n": measurement.n}
        row |= {f"{name}_exact": measurement.exact, f"{name}_protocol": measurement.protocol}
    return row


def _complain(line: str) -> None:
    print(f"dmqbench-report: {line}", file=sys.stderr)
