"""What the benchmarks share: timing in turns, and a record that nobody reads."""

import statistics
import time
from collections.abc import Callable


class Silent:
    """A record that nobody reads."""

    def log(self, event: str, **values: object) -> None:
        """Drop the event."""


def interleaved_seconds(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each run after a warm-up, taken in turns so that a busy machine slows all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for warm_up in runs.values():
        warm_up()
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}
