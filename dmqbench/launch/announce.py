"""What a command says before it begins, and what to do next."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from dmqbench.config.checked_job import Job, full_precision
from dmqbench.config.ids import job_ids
from dmqbench.launch.sweeps import Planned, hash_once
from dmqbench.store.artifacts import Store

ANSWERING = ("plan", "cost")
"""Tasks that are over before one could read what they will do."""


def announcement(planned: Sequence[Planned], missing: int, takes: str) -> list[str]:
    """Return what will be done, where it goes, and how long it takes if that is known.

    ``missing`` of the jobs are to be done, the others are in the store.
    """
    first = planned[0].job
    if first.task in ANSWERING:
        return []
    root = str(first.store_root)
    if not missing:
        return [f"everything is in the store {root}: nothing to compute"]
    number = f"{len(planned)} jobs: " if len(planned) > 1 else ""
    stored = len(planned) - missing
    found = f"; {stored} of them in the store already" if stored else ""
    lines = [f"{number}{what_is_done(planned)}{found}"]
    return [*lines, f"{takes}; results go to {root}" if takes else f"results go to {root}"]


def what_is_done(planned: Sequence[Planned]) -> str:
    """Return tasks, methods, models and bits, and the sizes that decide how long it takes."""
    jobs = [one.job for one in planned]
    words = [_listed(job.task for job in jobs) if any(job.task != "run" for job in jobs) else ""]
    words.append(_listed(_named(job) for job in jobs))
    words.append(f"on {_listed(job.model.name for job in jobs)}")
    sizes = f"{_listed(str(job.metrics.samples) for job in jobs)} images"
    return f"{' '.join(filter(None, words))}; {sizes}, budget {_listed(job.budget.name for job in jobs)}"


def with_full_precision(done: Sequence[tuple[Planned, Path]]) -> list[Path]:
    """Return the result folders of jobs, and before them those of full precision that the store has already."""
    folders = [folder for _, folder in done]
    references = (_full_precision(one.job) for one, _ in done if one.job.task == "run")
    known = [folder for folder in dict.fromkeys(references) if (folder / "result.json").is_file()]
    return list(dict.fromkeys([*known, *folders]))


def next_commands(planned: Sequence[Planned]) -> str:
    """Return what draws the results of ``planned``, and what says how to go on."""
    root = planned[0].job.store_root
    elsewhere = [] if root == Path("runs").absolute() else [str(root)]
    return f"next: {shlex.join(['dmqbench-report', *elsewhere])} (page and picture), or dmqbench --help"


def _named(job: Job) -> str:
    if job.evaluate.samples is not None:
        return Path(job.evaluate.samples).name
    return job.method.name if job.method.name == "fp" else f"{job.method.name} {job.bits.name}"


def _listed(words: Iterator[str]) -> str:
    """Return different words, three of them at most."""
    different = list(dict.fromkeys(words))
    return ", ".join([*different[:3], *([f"{len(different) - 3} more"] if len(different) > 3 else [])])


def _full_precision(job: Job) -> Path:
    ids = job_ids(full_precision(job), hash_once(job.model))
    return Store(job.store_root).path("result", ids.result)
