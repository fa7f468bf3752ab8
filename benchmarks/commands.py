"""Wall-clock time of the commands a user types, on a fresh store. Takes about ten minutes.

Run: python -m benchmarks.commands
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

START = "import sys; from dmqbench.cli import main; sys.exit(main())"
TARGETS = {
    "dmqbench --help": 1.5,
    "first job of a store (method=fp)": 180,
    "method=rtn bits=w4a8": 75,
    "method=q_diffusion bits=w4a8": 300,
    "the same again": 3,
}


def seconds(*arguments: str) -> tuple[float, str]:
    """Time one command; return its last line as well."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", START, *arguments], capture_output=True, text=True, check=True)
    return time.perf_counter() - started, done.stdout.strip().splitlines()[-1]


def main() -> None:
    rows: dict[str, float] = {}
    memory: dict[str, int] = {}
    seconds("--help")  # compiled files and the disk's cache
    rows["dmqbench --help"], _ = seconds("--help")
    with tempfile.TemporaryDirectory() as folder:
        common = (f"store.root={folder}", "tracker.mode=disabled")
        jobs = {
            "first job of a store (method=fp)": ("method=fp",),
            "method=rtn bits=w4a8": ("method=rtn", "bits=w4a8"),
            "method=q_diffusion bits=w4a8": ("method=q_diffusion", "bits=w4a8"),
            "the same again": ("method=q_diffusion", "bits=w4a8"),
        }
        for name, overrides in jobs.items():
            rows[name], result = seconds(*common, *overrides)
            memory[name] = json.loads((Path(result) / "result.json").read_text())["timing"]["peak_memory_mib"]
    print(f"{os.cpu_count()} cores\n\n| command | s | target, s | peak MiB |\n|---|---|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value:.1f} | {TARGETS[name]} | {memory.get(name, '')} |")


if __name__ == "__main__":
    main()
