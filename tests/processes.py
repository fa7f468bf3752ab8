"""Python in a process of its own, to which nothing of this machine's tracking is known."""

import atexit
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

from forks import forked

import dmqbench

REPOSITORY = str(Path(dmqbench.__file__).parents[1])


def _environment(**more: str) -> dict[str, str]:
    known = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("WANDB", "NETRC")) and not name.lower().endswith("_proxy")
    }
    return known | {"PYTHONPATH": REPOSITORY, "HOME": "/nonexistent"} | more


def in_fresh_process(code: str, *arguments: object, **environment: str) -> CompletedProcess[str]:
    """Run ``code`` where no key, netrc file or wandb setting of this machine is seen."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=_environment(**environment),
        capture_output=True,
        text=True,
        timeout=120,
    )


def with_wandb_imported(code: str, *arguments: object, **environment: str) -> CompletedProcess[str]:
    """The same in a fork of this process, which need not import wandb again: that takes longest of all."""
    __import__("wandb")
    words = ["-c", *map(str, arguments)]
    with (
        TemporaryDirectory() as place,
        forked(_carry_out, textwrap.dedent(code), words, _environment(**environment), folder=Path(place)) as process,
    ):
        status, output, errors = process.wait(120)
    return CompletedProcess(words, status, output, errors)


def _carry_out(code: str, words: list[str], environment: dict[str, str]) -> None:
    """Do as Python does, from the environment to what was registered for its end, which a fork leaves out."""
    atexit._clear()
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = words
    try:
        exec(code, {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()
