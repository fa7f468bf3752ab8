"""What this machine can and cannot run: ``dmqbench-doctor``. Downloads nothing and writes nothing."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from textwrap import wrap

from rich.console import Console
from rich.text import Text

from dmqbench.config.plugins import metrics as known_metrics
from dmqbench.config.schema import MetricsConfig
from dmqbench.launch.findings import ABSENT, BROKEN, OK, Check, Finding, Status
from dmqbench.launch.machine_checks import GIB, launchers, machine, packages, plug_ins
from dmqbench.launch.model_checks import metrics, models
from dmqbench.launch.model_checks import weights as files_of_weights
from dmqbench.launch.streams import hold_streams
from dmqbench.store.artifacts import KINDS, Store, store_root
from dmqbench.tracking.record import redact
from dmqbench.tracking.wandb_client import resolve_mode

_STYLES: Mapping[str, str] = {OK: "green", ABSENT: "yellow", BROKEN: "bold red"}
_GROUP_WIDTH, _TEXT_FROM, _LEAST_WIDTH = 11, 19, 40


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was found; return 1 if something is broken that every job needs, else 0."""
    hold_streams()
    options = _parser().parse_args(arguments)
    listed = findings(options.weights)
    healthy = all(finding.status != BROKEN for finding in listed)
    if options.format == "json":
        rows = [redact(asdict(finding)) for finding in listed]
        print(json.dumps({"version": 1, "healthy": healthy, "findings": rows}, indent=1))
    else:
        _print(listed, Console())
    return 0 if healthy else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("dmqbench-doctor", description="What this machine can and cannot run.")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--weights", metavar="FOLDER", help="where to look first, as metrics.weights")
    return parser


def findings(weights: str | None = None) -> list[Finding]:
    """Return everything that was found; ``weights`` is a folder of weights of metrics."""
    settings = MetricsConfig(names=tuple(known_metrics()), pairs=1, samples=1, weights=weights, download=False)
    checks: dict[str, Check] = {
        "machine": machine,
        "packages": packages,
        "plug-ins": plug_ins,
        "metrics": lambda: metrics(settings),
        "weights": lambda: files_of_weights(settings),
        "models": models,
        "tracking": _tracking,
        "store": _store,
        "launchers": launchers,
        "display": _display,
    }
    return [finding for group, check in checks.items() for finding in _guarded(group, check)]


def _guarded(group: str, check: Check) -> Iterator[Finding]:
    """Yield what ``check`` finds; that it fails is a finding too."""
    try:
        yield from check()
    except Exception as error:
        yield Finding(group, "check", BROKEN, f"{type(error).__name__}: {' '.join(str(error).split())}")


def _tracking() -> Iterator[Finding]:
    """Yield what ``tracker=auto`` does here. Whether there is a key is told, never which."""
    try:
        installed = version("wandb")
    except PackageNotFoundError:
        return  # the packages say so already
    mode = resolve_mode("auto")
    keyed = resolve_mode("auto", {**os.environ, "WANDB_MODE": ""}) == "online"
    server = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    place = {"online": server, "offline": str(store_root() / "wandb"), "disabled": "nowhere"}[mode]
    detail = f"{installed}, tracker=auto is {mode}, {'a' if keyed else 'no'} key; runs go to {place}"
    advice = "" if keyed or mode == "disabled" else "wandb login, or WANDB_API_KEY, to record online"
    yield Finding("tracking", "wandb", OK, redact(detail), advice, {"mode": mode, "has_key": keyed})


def _store() -> Iterator[Finding]:
    root = store_root()
    existing = next(place for place in (root, *root.parents) if place.exists())
    free = shutil.disk_usage(existing).free / GIB
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        advice = "choose another with store.root=… or DMQBENCH_RUNS"
        yield Finding("store", "run store", BROKEN, f"{root} cannot be written", advice)
        return
    store = Store(root)
    counts = {kind: len(store.ids(kind)) for kind in KINDS} if root.exists() else {}
    held = f"{counts['result']} results" if counts else "not made yet"
    facts = {"root": str(root), "free_gib": free, "artifacts": counts}
    yield Finding("store", "run store", OK, f"{root}, writable, {held}, {free:.0f} GiB free", facts=facts)


def _display() -> Iterator[Finding]:
    yield Finding("display", "none needed", OK, "pictures and pages are files for a browser")


def _print(findings: Sequence[Finding], console: Console) -> None:
    """Print a paragraph for all things of a group of which the same is to be said."""
    together: dict[tuple[str, Status, str], list[str]] = {}
    for finding in findings:
        together.setdefault((finding.group, finding.status, finding.text), []).append(finding.name)
    before = None
    for (group, status, text), names in together.items():
        start = Text.assemble(
            (f"{group if group != before else '':<{_GROUP_WIDTH}}", "bold"), (status, _STYLES[status])
        )
        start.pad_right(_TEXT_FROM - len(start))
        lines = wrap(
            f"{', '.join(names)}: {redact(text)}",
            max(_LEAST_WIDTH, console.width - _TEXT_FROM - 1),
            break_long_words=False,
            break_on_hyphens=False,
        )
        # Not wrapped again: an address that is longer than a line is one word to those who copy it.
        console.print(start + Text(f"\n{' ' * _TEXT_FROM}".join(lines)), soft_wrap=True, highlight=False)
        before = group
    broken = [finding.name for finding in findings if finding.status == BROKEN]
    console.print(f"broken: {', '.join(broken)}" if broken else "Nothing that a job needs is broken.", markup=False)


if __name__ == "__main__":
    sys.exit(main())
