"""What tracking costs a job: seconds spent in the record and in its wandb mirror, of the seconds the job takes.

Run: python -m benchmarks.tracking
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dmqbench.config.compose import compose
from dmqbench.config.job import make_job
from dmqbench.tasks.run import carry_out as run_job
from dmqbench.tracking.record import Record
from dmqbench.tracking.tracker import Tracker

JOBS = {
    "first in its process: `method=rtn bits=w4a8`": ("method=rtn", "bits=w4a8"),
    "next: `method=rtn bits=w4a6`": ("method=rtn", "bits=w4a6"),
    "next: `method=q_diffusion bits=w4a6`": ("method=q_diffusion", "bits=w4a6"),
}
TIMED = {
    Tracker: ("__enter__", "__exit__", "follow", "summarize", "image", "per_image", "diagnosis", "made", "used"),
    Record: ("log", "close"),
}


class Clock:
    """Seconds in the timed methods, each call counted once however they call each other."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.depth = 0

    def around(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started, self.depth = time.perf_counter(), self.depth + 1
            try:
                return method(*args, **kwargs)
            finally:
                self.depth -= 1
                if not self.depth:
                    self.seconds += time.perf_counter() - started

        return timed


def main() -> None:
    """Print one line per job and mode."""
    clock = Clock()
    for kind, names in TIMED.items():
        for name in names:
            setattr(kind, name, clock.around(getattr(kind, name)))
    print("| job | tracking, s | whole job, s | share |\n|---|---|---|---|")
    for mode in ("disabled", "offline"):
        with tempfile.TemporaryDirectory() as folder:
            shared = (f"store.root={Path(folder) / 'runs'}", f"tracker.mode={mode}")
            run_job(make_job(compose(["method=fp", f"store.root={Path(folder) / 'runs'}", "tracker.mode=disabled"])))
            for name, overrides in JOBS.items():
                clock.seconds, started = 0.0, time.perf_counter()
                run_job(make_job(compose([*overrides, *shared])))
                whole = time.perf_counter() - started
                print(
                    f"| {mode}, {name} | {clock.seconds:.2f} | {whole:.1f} | {clock.seconds / whole:.2%} |", flush=True
                )


if __name__ == "__main__":
    main()
