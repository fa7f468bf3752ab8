"""What the benchmarks share: timing in turns, memory of live tensors, and a record that nobody reads."""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from torch.profiler import ProfilerActivity, profile


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


def live_peak(run: Callable[[], object]) -> int:
    """Largest number of bytes that live tensors have taken while ``run`` runs, as torch's CPU allocator counts them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    totals = [event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]"]
    changes = [event["args"]["Bytes"] for event in events if event.get("name") == "[memory]"]
    return max(totals) - (totals[0] - changes[0])
