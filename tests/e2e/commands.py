"""Running the command at sizes that take seconds: in this process, or in one of its own that can be killed."""

import io
import logging
import os
import signal
import subprocess
import sys
from contextlib import AbstractContextManager, redirect_stderr, redirect_stdout
from pathlib import Path

from forks import Fork, forked

from dmqbench.cli import main

SMALL = (
    "metrics.samples=64",
    "metrics.pairs=32",
    "sampler.steps=4",
    "budget.trajectories=32",
    "budget.validation=16",
    "budget.samples=64",
    "budget.scale_iterations=4",
    "budget.weight_iterations=8",
    "budget.activation_iterations=4",
    "budget.trajectory_iterations=2",
    "budget.tuning_iterations=4",
    "tracker.mode=disabled",
    "diagnose=false",
)
"""Overrides under which a job on ``digits`` is quick; its numbers mean nothing."""

FEW = (
    *SMALL,
    "sampler.chunk=8",
    "metrics.samples=16",
    "metrics.pairs=8",
    "budget.trajectories=8",
    "budget.validation=4",
    "budget.samples=16",
    "budget.batch=8",
    "budget.scale_iterations=2",
    "budget.weight_iterations=2",
    "budget.activation_iterations=2",
    "budget.trajectory_iterations=2",
    "budget.tuning_iterations=2",
)
TINY = (*FEW, "model=ladder_1")
"""Overrides under which a job takes seconds, on the smallest embedded model: wherever the subject is not ``digits``."""

# A shell that starts tests in the background lets its children ignore interrupts; a terminal does not.
START = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from dmqbench.cli import main; sys.exit(main())"
)


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


def dmqbench(store: Path, *overrides: str) -> tuple[int, str, str]:
    """Carry out a command line in this process; return (exit status, standard output, standard error)."""
    output, errors = io.StringIO(), io.StringIO()
    logger, terminate = logging.getLogger("dmqbench"), signal.getsignal(signal.SIGTERM)
    handlers, logger.handlers = logger.handlers, []  # the command's own is to write into ``errors``
    try:
        with redirect_stdout(output), redirect_stderr(errors):
            status = main([f"store.root={store}", *overrides])
    finally:
        logger.handlers = handlers
        signal.signal(signal.SIGTERM, terminate)
    return status, output.getvalue(), errors.getvalue()


def running(store: Path, *overrides: str) -> AbstractContextManager[Fork]:
    """The command in a process of its own, which does not outlive the block."""
    return forked(main, [f"store.root={store}", *overrides], folder=store.parent)


def result_folder(output: str) -> Path:
    """The last line of standard output of a finished job."""
    return Path(output.strip().splitlines()[-1])


def answered_without_torch(store: Path, *overrides: str) -> Path:
    """The folder with which a fresh process answers a finished job, having imported no torch."""
    code = f"{START.replace('sys.exit(main())', 'status = main()')}; print('torch' in sys.modules); sys.exit(status)"
    command = [sys.executable, "-c", code, f"store.root={store}", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=store.parent)
    assert done.returncode == 0, done.stderr
    *_, last, torch_imported = done.stdout.strip().splitlines()
    assert torch_imported == "False"
    return Path(last)
