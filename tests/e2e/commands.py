"""Running the real command in a process of its own, at sizes that take seconds."""

import os
import subprocess
import sys
from pathlib import Path

SMALL = (
    "metrics.samples=128",
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

START = "import sys; from dmqbench.cli import main; sys.exit(main())"


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


def start(store: Path, *overrides: str) -> subprocess.Popen[str]:
    """Start ``dmqbench`` on the store with small sizes; the caller waits for it or kills it."""
    command = [sys.executable, "-c", START, f"store.root={store}", *SMALL, *overrides]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), cwd=store.parent
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for a command; return (exit status, standard output, standard error)."""
    output, errors = process.communicate(timeout=280)
    return process.returncode, output, errors


def dmqbench(store: Path, *overrides: str) -> tuple[int, str, str]:
    return finish(start(store, *overrides))


def result_folder(output: str) -> Path:
    """The last line of standard output of a finished job."""
    return Path(output.strip().splitlines()[-1])
