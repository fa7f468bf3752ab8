"""Time that something takes: on the wall, and of the processor, which other programs do not lengthen."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Stopwatch:
    """Seconds between starts and stops; the processor's are those of all threads of this process."""

    seconds: float = 0.0
    processor_seconds: float = 0.0
    started: tuple[float, float] = field(default=(0.0, 0.0), repr=False, compare=False)

    @property
    def facts(self) -> dict[str, float]:
        """Both, as artifacts keep them; the processor's are left out where a part was not measured (NaN)."""
        processor = {} if math.isnan(self.processor_seconds) else {"processor_seconds": self.processor_seconds}
        return {"seconds": self.seconds, **processor}

    def start(self) -> None:
        self.started = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self.seconds += time.perf_counter() - self.started[0]
        self.processor_seconds += time.process_time() - self.started[1]

    @contextmanager
    def running(self) -> Iterator["Stopwatch"]:
        """Take the time of a block, also of one that fails."""
        self.start()
        try:
            yield self
        finally:
            self.stop()
