"""Lines and shares of meters, and of the course of all jobs."""

import io
import re

import pytest
from rich.console import Console

from dmqbench.tracking import progress
from dmqbench.tracking.progress import Course, Meter, in_words, left_in_words


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by hand."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_a_finished_part_is_one_line(clock, capsys):
    with Meter("samples", 2) as meter:
        for _ in range(2):
            clock[0] += 10
            meter.advance()
    assert capsys.readouterr().err == "samples: 2 of 2 in 20.0 s\n"


def test_a_long_piece_says_once_a_minute_how_far_it_is(clock, capsys):
    with Meter("stage", 4) as meter:
        meter.advance()
        for second in range(1, 200):
            clock[0] += 1
            meter.move(second / 400)
    *said, _ = capsys.readouterr().err.splitlines()
    assert [re.sub(r"\d+ %|\d+%", "", line) for line in said] == [
        "stage: 1 of 4 done, the next , about 3 min left",
        "stage: 1 of 4 done, the next , about 4 min left",
        "stage: 1 of 4 done, the next , about 5 min left",
    ]


def test_a_part_that_fails_says_nothing(capsys):
    with pytest.raises(ValueError), Meter("stage", 4):
        raise ValueError
    assert capsys.readouterr().err == ""


def test_the_course_follows_what_meters_do_within_the_job_in_work(clock):
    with Course([10, 30, 60]) as course:
        course.begin(1, "second")
        assert course.share == 0.1
        with Meter("half of it", 4, work=15) as meter:
            clock[0] += 5
            meter.move(0.5)
            assert course.share == pytest.approx(0.1 + 0.15 / 8)
            meter.advance()
            assert course.share == pytest.approx(0.1 + 0.15 / 4)
            for _ in range(3):
                meter.advance()
        assert course.share == pytest.approx(0.25)
        with Meter("more than was expected", 1, work=1000) as meter:
            meter.advance()
        assert course.share == pytest.approx(0.4), "no more than the job"
        assert course.left == "about 8 s left"
        course.begin(2, "third")
    assert Course.running is None


def test_on_a_terminal_both_bars_are_shown(clock, monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda stderr: Console(file=shown, force_terminal=True, width=80, legacy_windows=False)
    )
    with Course([1, 1]) as course:
        course.begin(1, "dmq digits w4a6")
        with Meter("dmq w4a6: weight_reconstruction", 4, work=1) as meter:
            clock[0] += 30
            meter.move(0.5, "mid.attentions.0.to_q  loss 0.0123")
            assert course.bars is not None
            course.bars.refresh()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())
    assert "job 2 of 2: dmq digits w4a6" in text and "dmq w4a6: weight_reconstruction" in text
    assert "12 %" in text and "56 %" in text and text.count("left") >= 2 and "…" not in text
    assert max(map(len, re.split(r"[\r\n]+", text))) <= 80


def test_times_in_words():
    assert [in_words(seconds) for seconds in (0.2, 89, 91, 5000, 9000)] == ["1 s", "89 s", "2 min", "83 min", "2.5 h"]
    assert left_in_words(0.01, 5) == "" and left_in_words(1.0, 5) == "about 1 s left"
