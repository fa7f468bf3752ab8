"""Python in a process of its own, to which nothing of this machine's tracking is known."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import dmqbench

REPOSITORY = str(Path(dmqbench.__file__).parents[1])


def in_fresh_process(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """Run ``code`` where no key, netrc file or wandb setting of this machine is seen."""
    known = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("WANDB", "NETRC")) and not name.lower().endswith("_proxy")
    }
    known |= {"PYTHONPATH": REPOSITORY, "HOME": "/nonexistent"}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=known | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
