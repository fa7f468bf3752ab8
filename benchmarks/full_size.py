"""A rehearsal of a model at full size with random weights: time and peak memory of every phase beside the plan.

The command line is carried out as by a user: trajectories, rounding, ten iterations of DMQ that are killed and resumed,
samples, paired metrics. What is done is not done again: a rehearsal that was stopped goes on where it was.

Run: python -m benchmarks.full_size sd14 FOLDER    (4 to 9 GB for each model)
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.processes import COMMAND, Watched, watched

MODELS = ("ldm4_imagenet", "dit_xl_256", "sd14")
MOST_GIB = 20.0
KILLED_AFTER = 3
"""Units of block reconstruction that are done when the process is killed."""

SETTINGS = (
    *("bits=w4a8", "sampler.steps=4", "sampler.chunk=2", "metrics.samples=2", "metrics.pairs=2"),
    # A point of each step: whatever is calibrated per step has one.
    *("budget.trajectories=2", "budget.validation=1", "budget.samples=4", "budget.batch=2"),
    *("budget.scale_iterations=10", "budget.weight_iterations=10", "diagnose=false", "tracker.mode=disabled"),
)
FEWER = {"sd14": ("method.weight_reconstruction.samples=2",)}
"""Of DMQ on the largest model, whose captured inputs take most of the time: points of two steps."""
PROMPTS = ("a red fox in the snow", "two boats on a lake at dawn", "an old map of a city", "a bowl of oranges")
"""Every other one is for evaluation, the rest for calibration."""

_WORKSHOP = """
import sys
from dmqbench.config.compose import compose
from dmqbench.config.job import make_job
from dmqbench.tasks.workshop import open_workshop
shop = open_workshop(make_job(compose(sys.argv[1:])))
"""
LOADING, READING = f"{_WORKSHOP}shop.adapter", f"{_WORKSHOP}shop.read_prompts({{'cal': 2, 'val': 1, 'eval': 2}})"

PARTS = {
    "plan of rtn": (COMMAND, "task=plan", "method=rtn"),
    "plan of dmq": (COMMAND, "task=plan", "method=dmq"),
    "prompts": (READING, "method=fp"),
    "loading": (LOADING, "method=fp"),
    "trajectories": (COMMAND, "task=trajectories", "method=dmq"),
    "samples of full precision": (COMMAND, "task=sample", "method=fp"),
    "rtn": (COMMAND, "task=calibrate", "method=rtn"),
    "rtn, sampled and evaluated": (COMMAND, "task=run", "method=rtn"),
    "dmq, killed": (COMMAND, "task=calibrate", "method=dmq"),
    "dmq, resumed": (COMMAND, "task=calibrate", "method=dmq"),
    "samples": (COMMAND, "task=sample", "method=dmq"),
    "dmq, evaluated": (COMMAND, "task=run", "method=dmq"),
}
"""Code and settings of processes, in their order."""
WHOLE = ("prompts", "loading", "samples of full precision", "samples")
"""Those that are a phase of the plan."""


@dataclass(frozen=True)
class Row:
    """A phase: GiB planned and measured, seconds; None where the one is not planned or the other not known."""

    phase: str
    planned: float | None
    measured: float | None
    seconds: float | None


class Rehearsal:
    """The command lines of one model, and what is known of them, in a folder."""

    def __init__(self, model: str, folder: Path, most_gib: float = MOST_GIB, more: tuple[str, ...] = ()) -> None:
        self.folder, self.most_gib, self.fewer = folder, most_gib, FEWER.get(model, ())
        self.store, self.file = folder / "runs", folder / "seen.json"
        self.arguments = [f"model={model}", f"model.path={folder / 'model'}", f"store.root={self.store}"]
        self.arguments += [*SETTINGS, *more]
        self.reads_text = (folder / "model" / "text_encoder").is_dir()
        if self.reads_text:
            prompts = folder / "prompts.txt"
            prompts.write_text("\n".join(PROMPTS))
            self.arguments.append(f"inputs.prompts={prompts}")
        self.seen: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}

    def carry_out(self) -> None:
        """Do what is not done yet.

        Raises:
            RuntimeError: a command ends otherwise than it should, or a finished unit is trained again.
        """
        self.folder.joinpath("logs").mkdir(exist_ok=True)
        parts = [(name, part) for name, part in PARTS.items() if self.reads_text or name != "prompts"]
        for number, (name, (code, *arguments)) in enumerate(parts, 1):
            if name in self.seen:
                continue
            print(f"{number} of {len(parts)}: {name}", flush=True)
            killing = name == "dmq, killed"
            log = self.folder / "logs" / f"{name}.txt"
            own = self.fewer if "method=dmq" in arguments else ()
            asked = partial(watched, code, [*self.arguments, *arguments, *own], log, most_mib=self.most_gib * 1024)
            found = asked(killed_when=lambda: len(self._units()) >= KILLED_AFTER) if killing else asked()
            if found.status != (-9 if killing else 0):
                raise RuntimeError(f"{name}: status {found.status}; see {log}")
            self._note(name, found)
        done = self._units()
        # The process is killed as soon as a unit is recorded, while its checkpoint is being written.
        if len(done) > len(set(done)) + 1:
            raise RuntimeError("units that were finished before the process was killed were trained again")

    def _note(self, name: str, found: Watched) -> None:
        self.seen[name] = asdict(found)
        self.file.write_text(json.dumps(self.seen, indent=1))
        print(f"  {found.seconds:.0f} s, {found.peak_mib / 1024:.2f} GiB", flush=True)

    def _units(self) -> list[str]:
        """The units of block reconstruction that were finished, as often as they were, from the records."""
        lines = (line for path in self.store.rglob("*.jsonl") for line in path.read_text().splitlines())
        events = (json.loads(line) for line in lines if '"unit"' in line and line.endswith("}"))
        return [e["unit"] for e in events if e.get("event") == "unit" and e["stage"] == "weight_reconstruction"]

    # ---- what was found

    def result(self, method: str) -> dict[str, Any]:
        """The result of a method's run, from the last line of what the command said."""
        name = {"rtn": "rtn, sampled and evaluated", "dmq": "dmq, evaluated"}[method]
        folder = (self.folder / "logs" / f"{name}.txt").read_text().strip().splitlines()[-1]
        return json.loads((Path(folder) / "result.json").read_text())

    def rows(self) -> Iterator[Row]:
        """The phases of both methods; what they share once."""
        logs = {name: (self.folder / "logs" / f"plan of {name}.txt").read_text() for name in ("rtn", "dmq")}
        plan = planned(logs["dmq"])
        for name in WHOLE:
            if name in self.seen:
                yield Row(name, plan[name], self.seen[name]["peak_mib"] / 1024, self.seen[name]["seconds"])
        for method, log in logs.items():
            own = planned(log)
            for part in self.result(method)["calibration"]:
                stage = part["stage"]
                if stage != "trajectories" or method == "dmq":
                    title = stage if stage == "trajectories" else f"`{stage}` of {method}"
                    yield Row(title, own[stage], part["peak_memory_mib"] / 1024, part["seconds"])


def planned(output: str) -> dict[str, float]:
    """GiB of the phases in what ``task=plan`` printed."""
    table = output.partition("Peak memory")[2].partition("└")[0]
    return {name: float(size) for name, size in re.findall(r"│ (\S.*?) +│ +([\d.]+) │", table)}


def markdown(model: str, rows: list[Row]) -> str:
    """The table of a model's phases."""
    lines = [f"| `{model}` | planned, GiB | measured, GiB | planned / measured | s |", "|---|---|---|---|---|"]
    for row in rows:
        ratio = row.planned / row.measured if row.planned and row.measured else None
        cells = (_cell(value, digits) for value, digits in ((row.planned, 2), (row.measured, 2), (ratio, 2)))
        lines.append(f"| {row.phase} | {' | '.join(cells)} | {_cell(row.seconds, 0)} |")
    return "\n".join(lines)


def _cell(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("folder", type=Path, help="outside the repository; a folder in it is made")
    parser.add_argument("--gib", type=float, default=MOST_GIB, help="memory beyond which a command is ended")
    given = parser.parse_args()
    folder = given.folder.resolve() / given.model
    if not (folder / "model").exists():
        making, made = [sys.executable, "-m", "benchmarks.full_size_models", given.model], folder / "unfinished"
        shutil.rmtree(made, ignore_errors=True)
        subprocess.run([*making, made], check=True)
        made.rename(folder / "model")
    rehearsal = Rehearsal(given.model, folder, given.gib)
    rehearsal.carry_out()
    rows = list(rehearsal.rows())
    metrics = {method: rehearsal.result(method)["metrics"] for method in ("rtn", "dmq")}
    found = {"model": given.model, "settings": [*SETTINGS, *rehearsal.fewer], "metrics": metrics}
    found |= {"phases": [asdict(row) for row in rows], "processes": rehearsal.seen}
    (folder / "found.json").write_text(json.dumps(found, indent=1))
    print(markdown(given.model, rows))


if __name__ == "__main__":
    main()
