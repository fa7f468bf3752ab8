"""Results as tables, with a page and a picture beside them: ``dmqbench-report [STORE]``. Imports no torch."""

import argparse
import io
import re
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from safetensors import SafetensorError

from dmqbench.launch.streams import exact, hold_streams
from dmqbench.results.formats import (
    _complain,
    _further_sheets,
    _print,
    as_csv,
    as_json,
    as_latex,
    as_markdown,
    load_results,
)
from dmqbench.results.result import Result
from dmqbench.store.artifact import StoreError
from dmqbench.store.artifacts import Store, store_root
from dmqbench.store.files import save_atomic

FORMATS = ("table", "md", "json", "csv", "latex", "html")
_FILE_WIDTH = 140
_PICTURE_ROWS = 40
"""Rows beyond which nobody looks at a picture, and it takes longer than all the rest."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of a store, write its page and draw its picture; return the exit status."""
    hold_streams()
    options = _parser().parse_args(arguments)
    root = store_root(options.store)
    if options.check and not root.is_dir():
        _complain(f"there is no run store {root}")
        return 2
    if options.check:
        return _verify(root)
    results, missing = load_results(root), None
    if options.sweep:
        from dmqbench.config.errors import ConfigError
        from dmqbench.models.folders import ModelError

        try:
            results, missing = _of_sweep(root, results, options.sweep)
        except (ConfigError, ModelError) as error:
            _complain(str(error))
            return 2
    if not results:
        _complain(missing or f"no finished result in {root}: name another store, or run a job first")
        return 2
    labels = dict.fromkeys(result.label for result in results)
    if options.against and options.against not in labels:
        _complain(f"--against {options.against!r}: no such method among the results; there are {', '.join(labels)}")
        return 2
    try:
        _publish(root, results, options, missing)
    except OSError as error:
        _complain(f"{error.filename or options.out}: cannot be written ({error.strerror})")
        return 1
    if options.push:
        from dmqbench.tracking.push import push

        return push(root, Console(stderr=_is_piped(options)))
    return 0


def _publish(root: Path, results: Sequence[Result], options: Namespace, missing: str | None) -> None:
    """Print or write the tables, then the page and the picture, and say where they lie."""
    beside = sys.stderr if _is_piped(options) else sys.stdout
    if options.out:
        save_atomic(options.out, _text(root, results, options))
        print(f"report: {exact(options.out)}")
    elif _is_piped(options):
        sys.stdout.write(_text(root, results, options))
    else:
        _print(results, Console(), lambda table: _further_sheets(table, options.against))
    if missing:
        print(missing, file=beside)
    target = options.out or root / "report"
    if options.format != "html":
        for path in _page(root, results, target.with_suffix(".html"), options.against):
            print(f"page: {exact(path)}", file=beside)
    for path in (*_draw(root, results, target), *_draw_parts(root, results, target)):
        print(f"picture: {exact(path)}", file=beside)
    if (root / "wandb").is_dir():
        print(f"wandb: {root / 'wandb'} (--push sends what was recorded offline)", file=beside)


def _is_piped(options: Namespace) -> bool:
    return options.format != "table" and not options.out


def _of_sweep(root: Path, results: Sequence[Result], words: Sequence[str]) -> tuple[list[Result], str | None]:
    """Return the results of a sweep's jobs, and one line on the jobs that have none yet.

    ``words`` are the sweep's name and the overrides with which it was run. ConfigError or ModelError: they are wrong.
    """
    from dmqbench.config.errors import ConfigError
    from dmqbench.launch.sweeps import SWEEP_KEY, plan

    name, *overrides = words
    for word in words[1:]:
        if "=" not in word:
            raise ConfigError("--sweep", word, problem="is not key=value; the store comes before --sweep")
    asked = [f"{SWEEP_KEY}{name}", *overrides]
    planned = plan(Namespace(overrides=asked, config_dir=None, multirun=True, cfg=None))
    by_id = {result.folder.name: result for result in results}
    absent = [job for job in planned if job.result not in by_id]
    wanted = {job.result for job in planned}
    present = [result for result in results if result.folder.name in wanted]
    if not absent:
        return present, None
    jobs = ", ".join(f"{job.job.method.name} {job.job.bits.name}" for job in absent)
    command = shlex.join(["dmqbench", *asked, f"store.root={root}"])
    return present, f"sweep {name}: {len(absent)} of {len(planned)} jobs have no result yet ({jobs}): {command}"


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
        "dmqbench-report", description="Tables, a page and a picture of the results in a run store."
    )
    parser.add_argument("store", nargs="?", metavar="STORE", help="run store (default: $DMQBENCH_RUNS, then ./runs)")
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument("--check", action="store_true", help="verify every artifact of the store; change nothing")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write there, and page and picture beside it")
    sweep_help = "only the jobs of this sweep, with the overrides it was run with; names those that are missing"
    parser.add_argument("--sweep", nargs="+", metavar=("NAME", "KEY=VALUE"), help=sweep_help)
    parser.add_argument("--against", metavar="METHOD", help="also the difference of every method to this one")
    parser.add_argument(
        "--push", action="store_true", help="also send runs recorded offline, and a dashboard of them, to wandb"
    )
    return parser


def _text(root: Path, results: Sequence[Result], options: Namespace) -> str:
    if options.format == "html":
        from dmqbench.results.page.document import page

        return page(root, results, options.against)
    if options.format == "table":
        console = Console(file=io.StringIO(), width=_FILE_WIDTH, force_terminal=False)
        with console.capture() as captured:
            _print(results, console, lambda table: _further_sheets(table, options.against))
        return captured.get()
    writers = {"md": as_markdown, "json": as_json, "csv": as_csv, "latex": as_latex}
    return writers[options.format](results, options.against)


def _page(root: Path, results: Sequence[Result], path: Path, against: str | None) -> Iterator[Path]:
    """Write the page; that it cannot be written is said, and is no error."""
    from dmqbench.results.page.document import write_page

    try:
        yield write_page(root, results, path, against)
    except OSError as error:
        _complain(f"no page: {error}")


def _draw_parts(root: Path, results: Sequence[Result], beside: Path) -> Iterator[Path]:
    """Draw what the parts of a method do, where its jobs kept what they found out."""
    from dmqbench.results.plots.pictures import draw

    try:
        yield from draw(root, results, beside)
    except (OSError, ValueError) as error:
        _complain(f"no pictures of what the parts of a method do: {error}")


def _draw(root: Path, results: Iterable[Result], beside: Path) -> Iterator[Path]:
    """Draw one picture per set of full-precision samples; what cannot be drawn is said, and is no error."""
    from dmqbench.results.plots.samples import picture_of

    sharing: dict[str, list[Result]] = {}
    for result in results:
        sharing.setdefault(result.samples.fp or "", []).append(result)
    for reference, group in sharing.items():
        model = re.sub(r"[^A-Za-z0-9_.-]+", "-", group[0].model)  # a folder of one's own may be called anything
        suffix = "" if len(sharing) == 1 else f"-{model}-{reference[:8]}"
        path = beside.with_name(f"{beside.stem}{suffix}.png")
        try:
            yield picture_of(root, [result.folder for result in group[:_PICTURE_ROWS]], path)
            if len(group) > _PICTURE_ROWS:
                _complain(f"{path} shows the first {_PICTURE_ROWS} of {len(group)} results")
        except (OSError, ValueError, SafetensorError, StoreError) as error:
            _complain(f"no picture of {group[0].model}: {error}")


if __name__ == "__main__":
    sys.exit(main())
