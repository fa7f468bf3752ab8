"""What a command says before it begins, and what to do next."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from dmqbench.config.checked_job import Job
from dmqbench.config.notices import notices
from dmqbench.launch.sweeps import Planned
from dmqbench.store.artifacts import Store, store_root

ANSWERING = ("plan", "cost")
"""Tasks that are over before one could read what they will do."""


def announcement(jobs: Sequence[Planned], missing: int, takes: str) -> list[str]:
    """Return what will be done, where it goes, how long it takes if that is known, and what may not be expected.

    ``missing`` of the jobs are to be done, the others are in the store.
    """
    first = jobs[0].job
    if first.task in ANSWERING:
        return []
    root = str(first.store_root)
    if not missing:
        return [f"everything is in the store {root}: nothing to compute"]
    number = f"{len(jobs)} jobs: " if len(jobs) > 1 else ""
    stored = len(jobs) - missing
    rest = f"; {stored} of them in the store already" if stored else ""
    lines = [f"{number}{_what_is_done([planned.job for planned in jobs])}{rest}"]
    lines.append(f"{takes}; results go to {root}" if takes else f"results go to {root}")
    return [*lines, *notices(planned.job for planned in jobs)]


def _what_is_done(jobs: Sequence[Job]) -> str:
    """Return tasks, methods, models and bits, and the sizes that decide how long it takes."""
    tasks = f"{_listed(job.task for job in jobs)} " if any(job.task != "run" for job in jobs) else ""
    what = f"{tasks}{_listed(map(_named, jobs))} on {_listed(job.model.name for job in jobs)}"
    sizes = f"{_listed(str(job.metrics.samples) for job in jobs)} images"
    return f"{what}; {sizes}, budget {_listed(job.budget.name for job in jobs)}"


def with_full_precision(done: Sequence[tuple[Planned, Path]]) -> list[Path]:
    """Return the result folders of jobs, and before them those of full precision that the store has already."""
    references = [
        Store(planned.job.store_root).path("result", planned.full_precision.result)
        for planned, _ in done
        if planned.job.task == "run" and planned.full_precision is not None
    ]
    known = [folder for folder in references if (folder / "result.json").is_file()]
    return list(dict.fromkeys([*known, *(folder for _, folder in done)]))


def next_commands(root: Path) -> str:
    """Return what draws the results in the store ``root``, and what says how to go on."""
    elsewhere = [] if root == store_root() else [str(root)]
    return f"next: {shlex.join(['dmqbench-report', *elsewhere])} (page and picture), or dmqbench --help"


def _named(job: Job) -> str:
    if job.evaluate.samples is not None:
        return Path(job.evaluate.samples).name
    return job.method.name if job.method.name == "fp" else f"{job.method.name} {job.bits.name}"


def _listed(words: Iterator[str]) -> str:
    """Return different words, three of them at most."""
    different = list(dict.fromkeys(words))
    return ", ".join([*different[:3], *([f"{len(different) - 3} more"] if len(different) > 3 else [])])
