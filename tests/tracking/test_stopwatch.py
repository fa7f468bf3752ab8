"""Time by the clock and by the processor."""

import time

import pytest

from dmqbench.tracking.stopwatch import Stopwatch


def test_waiting_takes_the_clocks_time_and_work_the_processors():
    waiting, working = Stopwatch(), Stopwatch()
    with waiting.running():
        time.sleep(0.2)
    with working.running():
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
    assert waiting.seconds >= 0.2 and waiting.processor_seconds < 0.1
    assert working.seconds >= working.processor_seconds * 0.9 and working.processor_seconds >= 0.2


def test_times_add_up_and_what_stands_between_does_not_count():
    watch = Stopwatch(seconds=5.0, processor_seconds=3.0)
    with pytest.raises(ZeroDivisionError), watch.running():
        _ = 1 / 0
    first = watch.seconds
    time.sleep(0.05)
    watch.start()
    watch.stop()
    assert 5.0 <= first <= watch.seconds < first + 0.05
    assert watch.facts == {"seconds": watch.seconds, "processor_seconds": watch.processor_seconds}
