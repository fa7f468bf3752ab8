"""A command in a process of its own, watched from outside: its time, and the most memory that it held."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path

COMMAND = "import sys; from dmqbench.cli import main; sys.exit(main())"
LOOKS_A_SECOND = 20
SPOKEN_EVERY = 60.0
"""Seconds between two lines of progress."""


@dataclass
class Watched:
    """What was seen of a process: the peak is that of its resident memory."""

    seconds: float = 0.0
    processor_seconds: float = 0.0
    peak_mib: float = 0.0
    status: int = 0


def watched(
    code: str, arguments: list[str], log: Path, killed_when: Callable[[], bool] = lambda: False, most_mib: float = inf
) -> Watched:
    """Run Python until it ends or ``killed_when`` says so.

    Raises:
        MemoryError: it was killed because it held more than ``most_mib``.
    """
    seen, before = Watched(), os.times()
    started = spoken = asked = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            # The process itself begins to measure anew for each part of a job.
            seen.peak_mib = max(seen.peak_mib, _peak_mib(process.pid))
            late, now = False, time.perf_counter()
            if now - asked > 1:
                late, asked = killed_when(), now
            if late or seen.peak_mib > most_mib:
                process.send_signal(signal.SIGKILL)
            if time.perf_counter() - spoken > SPOKEN_EVERY:
                spoken = time.perf_counter()
                print(f"  {seen.peak_mib / 1024:.1f} GiB  {_last_line(log)}", flush=True)
            time.sleep(1 / LOOKS_A_SECOND)
    after = os.times()
    seen.seconds = time.perf_counter() - started
    children = (after.children_user, before.children_user, after.children_system, before.children_system)
    seen.processor_seconds = children[0] - children[1] + children[2] - children[3]
    seen.status = process.returncode
    if seen.peak_mib > most_mib:
        raise MemoryError(f"{log.stem} held {seen.peak_mib:.0f} MiB, more than the {most_mib:.0f} that it may")
    return seen


def _peak_mib(pid: int) -> float:
    """The largest resident memory since the process last reset it; 0 where it is just ending."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)


def _last_line(log: Path) -> str:
    lines = log.read_text().split("\n")
    return next((line for line in reversed(lines) if line.strip()), "")[:120]
