"""Results as tables, and a picture beside them: ``dmqbench-report [STORE]``. Imports no torch."""

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console

from dmqbench.files import safe_name, save_atomic
from dmqbench.results import Result, Table, comparable_tables, load_store, why_apart
from dmqbench.sheets import fitted, markdown, sheet_of
from dmqbench.store import Store

FORMATS = ("table", "md", "json", "csv")
_FILE_WIDTH = 140


def load_results(source: Path | Sequence[Path]) -> list[Result]:
    """Return the results of a run store, or of a list of result folders, best bits first.

    Results of a store that are damaged are left out, with one line each on standard error.
    """
    if isinstance(source, Path):
        return load_store(source, on_damage=_complain)
    return sorted((Result.load(folder) for folder in source), key=lambda result: result.rank)


def print_results(folders: Path | Sequence[Path], console: Console | None = None) -> None:
    """Print the table, or tables, of the results in ``folders`` (or of a whole store) to ``console``."""
    _print(load_results(folders), console or Console())


def as_markdown(results: Iterable[Result]) -> str:
    """Return the tables in Markdown."""
    parts = []
    for tables, why in _by_model(results):
        parts += [markdown(sheet_of(table, compact=False)) for table in tables] + ([why] if why else [])
    return "\n\n".join(parts) + "\n"


def as_json(results: Iterable[Result]) -> str:
    """Return a list with one object per result; results with the same ``table`` compare."""
    keys = ("job_id", "method", "model", "dataset", "bits", "scope", "ranges", "seed")
    rows = [
        {"table": number, "embedded": result.embedded, "size_mib": result.size_mib}
        | {key: result.record.get(key) for key in keys}
        | {key: result.record.get(key, {}) for key in ("metrics", "unavailable", "cost", "timing")}
        for number, table in enumerate(comparable_tables(results))
        for result in table.rows
    ]
    return json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def as_csv(results: Iterable[Result]) -> str:
    """Return one line per result, each metric with its interval, n and protocol id."""
    rows = [_flat(number, row) for number, table in enumerate(comparable_tables(results)) for row in table.rows]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of a store and draw its picture; return the exit status."""
    options = _parser().parse_args(arguments)
    root = Path(options.store or os.environ.get("DMQBENCH_RUNS") or "runs")
    if options.check:
        return _verify(root)
    results = load_results(root)
    if not results:
        _complain(f"no finished result in {root}: name another store, or run a job first")
        return 2
    piped = options.format != "table" and not options.out
    if options.out:
        save_atomic(options.out, _text(results, options.format))
        print(f"report: {options.out}")
    elif piped:
        sys.stdout.write(_text(results, options.format))
    else:
        _print(results, Console())
    for path in _draw(root, results, options.out or root / "report"):
        print(f"picture: {path}", file=sys.stderr if piped else sys.stdout)
    return 0


def _verify(root: Path) -> int:
    """Name every damaged artifact of the store; return 1 if there is one."""
    checked = list(Store(root).verify_all())
    damaged = [artifact for artifact in checked if artifact.problems]
    for artifact in damaged:
        print(f"damaged: {artifact.kind} {artifact.id}: {'; '.join(artifact.problems)}")
    print(f"{len(checked) - len(damaged)} of {len(checked)} artifacts in {root} are whole")
    return 1 if damaged else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "dmqbench-report", description="Tables and a picture of the results in a run store."
    )
    parser.add_argument("store", nargs="?", metavar="STORE", help="run store (default: $DMQBENCH_RUNS, then ./runs)")
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument("--check", action="store_true", help="verify every artifact of the store; change nothing")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write there, and the picture beside it")
    return parser


def _by_model(results: Iterable[Result]) -> list[tuple[list[Table], str | None]]:
    """Return the tables of each model, and why there are several."""
    tables = comparable_tables(results)
    models = [list(group) for _, group in groupby(tables, key=lambda table: table.rows[0].model)]
    return [(group, why_apart(group)) for group in models]


def _print(results: Iterable[Result], console: Console) -> None:
    for tables, why in _by_model(results):
        for table in tables:
            sheet, shown = fitted(table, console)
            console.print()
            console.print(shown)
            for note in sheet.notes:
                console.print(note, style="dim", markup=False, highlight=False)
        if why:
            console.print(f"\n{why}", style="yellow", markup=False, highlight=False)


def _text(results: Sequence[Result], form: str) -> str:
    if form == "table":
        console = Console(file=io.StringIO(), width=_FILE_WIDTH, force_terminal=False)
        with console.capture() as captured:
            _print(results, console)
        return captured.get()
    return {"md": as_markdown, "json": as_json, "csv": as_csv}[form](results)


def _flat(number: int, result: Result) -> dict[str, Any]:
    row: dict[str, Any] = {
        "table": number,
        "model": result.model,
        "embedded": result.embedded,
        "dataset": result.dataset,
        "method": result.method,
        "bits": result.bits,
        "scope": result.scope,
        "ranges": result.ranges,
        "seed": result.seed,
        "size_mib": result.size_mib,
        "calibrate_s": result.calibration_seconds,
        "job_id": result.record.get("job_id"),
    }
    for name, record in result.metrics.items():
        low, high = record.get("ci95") or (None, None)
        row |= {
            name: record.get("value"),
            f"{name}_low": low,
            f"{name}_high": high,
            f"{name}_n": record.get("n"),
        }
        row |= {f"{name}_exact": record.get("exact", False), f"{name}_protocol": record["protocol"]}
    return row


def _draw(root: Path, results: Iterable[Result], beside: Path) -> Iterator[Path]:
    """Draw one picture per set of full-precision samples; what cannot be drawn is said, and is no error."""
    from dmqbench.picture import picture_of

    sharing: dict[str, list[Result]] = {}
    for result in results:
        sharing.setdefault(result.record.get("samples", {}).get("fp") or "", []).append(result)
    for reference, group in sharing.items():
        suffix = "" if len(sharing) == 1 else f"-{safe_name(group[0].model)}-{reference[:8]}"
        path = beside.with_name(f"{beside.stem}{suffix}.png")
        try:
            yield picture_of(root, [result.folder for result in group], path)
        except (OSError, ValueError) as error:
            _complain(f"no picture of {group[0].model}: {error}")


def _complain(line: str) -> None:
    print(f"dmqbench-report: {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
