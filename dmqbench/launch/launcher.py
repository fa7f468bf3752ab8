"""Jobs carried out here or by a launcher of Hydra's; a failure is one line, a file, and no end of the others."""

import gc
import logging
import sys
import time
import traceback
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from dmqbench.launch.streams import hold_streams
from dmqbench.tracking.progress import Course

if TYPE_CHECKING:
    from dmqbench.config.checked_job import Job
    from dmqbench.launch.sweeps import Planned

MEASURING = ("run", "evaluate")
"""Tasks that end with a result."""

ERROR_FILE = "error.json"


class Outcome(NamedTuple):
    """What became of a job: the folder it made, if its task makes one, or one line on why it failed."""

    path: str | None = None
    error: str | None = None


def complain(line: object) -> None:
    print(f"dmqbench: {line}", file=sys.stderr, flush=True)


def option_parser() -> tuple[ArgumentParser, list[str]]:
    """Return Hydra's parser of its options, and their flags; Hydra 1.3 and argparse have no public door to either."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    return parser, [flag for action in parser._actions for flag in action.option_strings]


def launch(jobs: Sequence["Planned"]) -> list[Outcome]:
    """Carry out the jobs, one after another or where a launcher of Hydra's has them; a failing one does not stop the
    others."""
    from dmqbench.config.plugins import usable
    from dmqbench.launch.expected import expected_work

    works = expected_work(jobs)
    run = partial(run_one, tuple(jobs), works, time.time())
    with Course(works):
        if jobs[0].hydra_own or usable():  # which may name a launcher
            return _launched(jobs, run)
        return [run(number) for number in range(len(jobs))]


def _launched(jobs: Sequence["Planned"], run: Callable[[int], Outcome]) -> list[Outcome]:
    """Give the jobs to Hydra's launcher, each as its overrides."""
    from hydra import initialize_config_dir

    from dmqbench.config.places import CONF

    with initialize_config_dir(str(CONF), job_name="dmqbench", version_base="1.3"):
        launcher = _launcher(jobs[0], partial(_run_in_turn, run))
        returned = launcher.launch([list(planned.overrides) for planned in jobs], initial_job_idx=0)
    return [job.return_value for job in returned]


def _run_in_turn(run: Callable[[int], Outcome], config: Any) -> Outcome:
    """Carry out the job whose turn it is in a launcher's process."""
    from hydra.core.hydra_config import HydraConfig

    return run(HydraConfig.get().job.num)


def _launcher(first: "Planned", task: Callable[[Any], Outcome]) -> Any:
    """Return the launcher that the ``first`` job names; Hydra 1.3 makes one for its own multirun alone."""
    from hydra._internal.callbacks import Callbacks
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext

    from dmqbench.config.texts import quoted

    # Hydra writes nothing but a launcher's own files, and those beside the results.
    place = str(first.job.store_root / ".hydra").replace("${", "\\${")
    config = _hydra_config((f"hydra.sweep.dir={quoted(place)}", "hydra.sweep.subdir='.'", *first.hydra_own))
    return Plugins.instance().instantiate_launcher(
        hydra_context=HydraContext(config_loader=ComposedBefore(), callbacks=Callbacks(config)),  # type: ignore[arg-type]
        task_function=task,
        config=config,
    )


def _hydra_config(hydra_own: tuple[str, ...]) -> Any:
    """Compose what a launcher is told, while Hydra is initialized."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    from dmqbench.config.compose import ROOT

    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    return hydra.compose_config(ROOT, list(hydra_own), RunMode.MULTIRUN)


class ComposedBefore:
    """What a launcher takes for Hydra's loader: no job is composed again, as all were before the first began."""

    def load_sweep_config(self, master_config: Any, sweep_overrides: Sequence[str]) -> Any:
        """Return the launcher's own configuration, of which a job reads its number alone."""
        from omegaconf import open_dict

        config = deepcopy(master_config)
        with open_dict(config):
            config.hydra.overrides.task = list(sweep_overrides)
        return config


def run_one(jobs: Sequence["Planned"], works: Sequence[float], since: float, number: int) -> Outcome:
    """Carry out job ``number`` of ``jobs``, perhaps in a launcher's process. It was composed and checked before.

    ``works``: about how much work each is; ``since``: the time at which the first began.
    """
    from dmqbench.launch.expected import expected_work

    hold_streams()
    planned, course = jobs[number], Course.running
    if course is None:  # this is a process of another launcher
        course = Course.running = Course(works, shared=True)
        course.started = time.perf_counter() - (time.time() - since)
    course.begin(number, planned.job.title)
    if course.shared:
        course.done = sum(works) - sum(expected_work(jobs))
    if len(jobs) > 1:
        complain("; ".join(filter(None, [f"{number + 1} of {len(jobs)}: {planned.job.title}", course.left])))
    return attempt(planned)


def attempt(planned: "Planned") -> Outcome:
    """Carry out one job; a failure is written to its result folder and told in one line."""
    show_warnings()
    job, folder = planned.job, planned.folder
    try:
        if folder is not None and job.task in MEASURING:
            with suppress(OSError):
                (folder / ERROR_FILE).unlink(missing_ok=True)
        task = _imported(f"dmqbench.tasks.{job.task}")  # torch is needed from here on
        from dmqbench.quant.modes import own_modes

        with own_modes():
            path: Path | None = task.carry_out(job)
    except SystemExit:
        # This is how Lightning leaves a fit into which a signal came.
        raise KeyboardInterrupt from None
    except Exception as error:
        return _failure(planned, error)
    return Outcome(None if path is None else str(path))


def _imported(name: str) -> ModuleType:
    """Return a module. What it imports first stays, and is not garbage: to look for some takes a fifth of the time."""
    if name in sys.modules:
        return sys.modules[name]
    collecting = gc.isenabled()
    gc.disable()
    try:
        return import_module(name)
    finally:
        gc.freeze()
        if collecting:
            gc.enable()


def show_warnings() -> None:
    """Let the store and the tracker say what they put aside or do without, each in one line."""
    logger = logging.getLogger("dmqbench")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("dmqbench: %(message)s"))
        logger.addHandler(handler)


def _failure(planned: "Planned", error: Exception) -> Outcome:
    from dmqbench.config.errors import ConfigError
    from dmqbench.models.folders import ModelError
    from dmqbench.store.files import save_json

    name, message = type(error).__name__, " ".join(str(error).split()) or "no message"
    line = f"{planned.job.title}: {name}: {message}"
    trace = "".join(traceback.format_exception(error))
    advice = _advice(planned.job, error)
    report = {"class": name, "message": message, "advice": advice, "command": planned.command, "traceback": trace}
    where = ""
    if planned.folder is not None:
        with suppress(OSError):
            save_json(planned.folder / ERROR_FILE, report)
            where = f"; see {planned.folder / ERROR_FILE}"
    # What is wrong with a model or a value is wrong again the next time.
    again = "" if isinstance(error, (ConfigError, ModelError)) else f"; again with: {planned.command}"
    complain(f"{line}{advice and f'; {advice}'}{where}{again}")
    return Outcome(error=line)


def _advice(job: "Job", error: Exception) -> str:
    """Return what to do about an error; "" where that is not known."""
    if type(error).__name__ not in _OUT_OF_MEMORY and not any(words in str(error) for words in _NOT_ENOUGH):
        return ""
    return (
        f"sampler.chunk={job.sampler.chunk} samples, in calibration budget.batch={job.budget.batch}, are computed at "
        "once: smaller ones take less memory, and are results of their own; with more memory the same command goes on, "
        "as calibration does with budget.memory_gib=N"
    )


_OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError")
_NOT_ENOUGH = ("can't allocate memory", "not enough memory")
"""What torch says on a CPU, in a RuntimeError."""
