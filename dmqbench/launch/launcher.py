"""Jobs given to Hydra's launcher; a failure is one line, a file in the result folder, and no end of the others."""

import logging
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dmqbench.tracking.progress import Course

if TYPE_CHECKING:
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


def launch(planned: Sequence["Planned"]) -> list[Outcome]:
    """Give the jobs to Hydra's launcher, each as its overrides; a failing one does not stop the others."""
    from hydra import initialize_config_dir
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext, RunMode

    from dmqbench.config.compose import ROOT
    from dmqbench.config.places import CONF
    from dmqbench.launch.expected import expected_work

    first, works = planned[0], expected_work(planned)
    # Hydra writes nothing but a launcher's own files, and those beside the results.
    places = [f"hydra.sweep.dir='{first.job.store_root / '.hydra'}'", "hydra.sweep.subdir='.'"]
    with initialize_config_dir(str(CONF), job_name="dmqbench", version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        config = hydra.compose_config(
            config_name=ROOT, overrides=[*places, *first.hydra_own], run_mode=RunMode.MULTIRUN
        )
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config)),
            task_function=partial(run_one, tuple(planned), works, time.time()),
            config=config,
        )
        with Course(works):
            returned = launcher.launch([_as_hydra_takes_them(one.overrides) for one in planned], initial_job_idx=0)
    return [job.return_value for job in returned]


def _as_hydra_takes_them(overrides: Sequence[str]) -> list[str]:
    """Hydra composes each job again; a variant's name, which most methods' YAMLs lack, must be added for it."""
    return [f"++{text}" if text.startswith("method.variant=") else text for text in overrides]


def run_one(planned: Sequence["Planned"], works: Sequence[float], since: float, config: Any) -> Outcome:
    """Carry out the job whose turn it is in a launcher's process. It was composed and checked before.

    ``works``: about how much work each is; ``since``: the time at which the first began.
    """
    from hydra.core.hydra_config import HydraConfig

    from dmqbench.launch.expected import expected_work

    number = HydraConfig.get().job.num
    one, course = planned[number], Course.running
    if course is None:  # this is a process of another launcher
        course = Course.running = Course(works, shared=True)
        course.started = time.perf_counter() - (time.time() - since)
    course.begin(number, one.job.title)
    if course.shared:
        course.done = sum(works) - sum(expected_work(planned))
    if len(planned) > 1:
        complain("; ".join(filter(None, [f"{number + 1} of {len(planned)}: {one.job.title}", course.left])))
    return attempt(one)


def attempt(one: "Planned") -> Outcome:
    """Carry out one job; a failure is written to its result folder and told in one line."""
    show_warnings()
    try:
        if one.folder is not None and one.job.task in MEASURING:
            with suppress(OSError):
                (one.folder / ERROR_FILE).unlink(missing_ok=True)
        task = import_module(f"dmqbench.tasks.{one.job.task}")  # torch is needed from here on
        path: Path | None = task.carry_out(one.job)
    except SystemExit:
        # This is how Lightning leaves a fit into which a signal came.
        raise KeyboardInterrupt from None
    except Exception as error:
        return _failure(one, error)
    return Outcome(None if path is None else str(path))


def show_warnings() -> None:
    """Let the store and the tracker say what they put aside or do without, each in one line."""
    logger = logging.getLogger("dmqbench")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("dmqbench: %(message)s"))
        logger.addHandler(handler)


def _failure(one: "Planned", error: Exception) -> Outcome:
    from dmqbench.store.files import save_json

    message = " ".join(str(error).split()) or "no message"
    line = f"{one.job.title}: {type(error).__name__}: {message}"
    report = {
        "class": type(error).__name__,
        "message": message,
        "command": one.command,
        "traceback": "".join(traceback.format_exception(error)),
    }
    where = ""
    if one.folder is not None:
        with suppress(OSError):
            save_json(one.folder / ERROR_FILE, report)
            where = f"; see {one.folder / ERROR_FILE}"
    complain(f"{line}{where}; again with: {one.command}")
    return Outcome(error=line)
