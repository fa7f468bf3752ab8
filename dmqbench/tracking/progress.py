"""Progress of long work: on a terminal a bar for all jobs and one for the part in work, elsewhere lines."""

import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

SECONDS_BETWEEN_LINES = 60.0
"""Outside a terminal a part that takes longer says so often how far it is."""

_EARLY = 0.02
"""Share of the work before which nothing is said of the rest."""


def in_words(seconds: float) -> str:
    """Return about how long that is."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{seconds / 3600:.1f} h"


def left_in_words(done: float, seconds: float) -> str:
    """Return about how long the rest takes of which the share ``done`` took ``seconds``; "" if that is too early."""
    return f"about {in_words(seconds * (1 - done) / done)} left" if done > _EARLY else ""


_WIDE = 120
"""Columns of a terminal that also holds what a part is at."""


class Course:
    """The jobs of one command; ``works`` says about how much work each is, in any unit.

    While it is entered, meters tell it what they have done, and share its display. ``shared``: other processes do
    some of the jobs and write to the same terminal, where their bars would cover each other.
    """

    running: "Course | None" = None

    def __init__(self, works: Sequence[float], shared: bool = False) -> None:
        self.works = tuple(works)
        self.shared = shared
        self.number = 0
        self.done = 0.0
        self.started: float | None = None
        self.bars = None if shared else _bars(Console(stderr=True))
        self.task: TaskID | None = None

    def __enter__(self) -> "Course":
        Course.running = self
        return self

    def __exit__(self, *_: object) -> None:
        Course.running = None
        if self.bars is not None:
            self.bars.stop()

    @property
    def share(self) -> float:
        """How much is done, 0 to 1."""
        return min(1.0, self.done / (sum(self.works) or 1.0))

    @property
    def left(self) -> str:
        """About how long the rest takes, in words."""
        return "" if self.started is None else left_in_words(self.share, time.perf_counter() - self.started)

    def begin(self, number: int, title: str) -> None:
        """Job ``number`` begins; those before it are done."""
        self.number, self.done = number, sum(self.works[:number])
        count = len(self.works)
        if self.bars is None:
            return
        if self.task is None:
            self.task = self.bars.add_task("", total=1.0, left="", note="")
            self.bars.start()
        self.bars.update(self.task, description=f"job {number + 1} of {count}: {title}" if count > 1 else title)
        self.show()

    def add(self, work: float) -> None:
        """So much more is done, of the job in work at most all."""
        self.done = min(self.done + work, sum(self.works[: self.number + 1]))
        self.show()

    def show(self) -> None:
        if self.bars is not None and self.task is not None:
            self.bars.update(self.task, completed=self.share, left=self.left)


class Meter:
    """One part of a job, which is ``total`` pieces; outside a terminal, a line a minute and one when it is finished.

    ``work``: what it is of the command's, in the unit of ``Course``.
    """

    def __init__(self, title: str, total: int, done: int = 0, work: float = 0.0) -> None:
        self.title = title
        self.total = total
        self.done = self.begun = done
        self.work = work
        self.inside = 0.0
        """How much of the piece in work is done, 0 to 1."""
        self.started = self.said = time.perf_counter()
        self.course = Course.running
        self.bars: Progress | None = None
        self.task: TaskID | None = None

    def __enter__(self) -> "Meter":
        if self.course is not None and self.course.started is None:
            self.course.started = self.started
        self.bars = _bars(Console(stderr=True)) if self.course is None else self.course.bars
        if self.bars is not None:
            self.task = self.bars.add_task(self.title, total=self.total, completed=self.done, left="", note="")
            self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.bars is not None and self.task is not None:
            self.bars.remove_task(self.task)
            if self.course is None:
                self.bars.stop()
        if kind is None:
            seconds = time.perf_counter() - self.started
            print(f"{self.title}: {self.done} of {self.total} in {seconds:.1f} s", file=sys.stderr, flush=True)

    def advance(self, note: str = "") -> None:
        """One more piece is done."""
        self._reach(self.done + 1, 0.0, note)

    def move(self, inside: float, note: str = "") -> None:
        """The share ``inside`` of the piece in work is done."""
        self._reach(self.done, inside, note)

    def _reach(self, done: int, inside: float, note: str) -> None:
        more = done + inside - self.done - self.inside
        self.done, self.inside = done, inside
        if self.course is not None and self.total:
            self.course.add(self.work * more / self.total)
        now = time.perf_counter()
        share = (done + inside - self.begun) / max(1, self.total - self.begun)
        left = left_in_words(share, now - self.started)
        if self.bars is not None and self.task is not None:
            self.bars.update(self.task, completed=done + inside, left=left, note=note)
        elif now - self.said > SECONDS_BETWEEN_LINES and done < self.total:
            self.said = now
            words = [f"{done} of {self.total} done", f"the next {inside:.0%}" if inside else "", left]
            print(f"{self.title}: {', '.join(filter(None, words))}", file=sys.stderr, flush=True)


def _bars(console: Console) -> Progress | None:
    """Return bars that are not shown yet; None where there is no terminal."""
    if not console.is_terminal:
        return None
    one_line = {"no_wrap": True, "overflow": "ellipsis"}
    columns = [
        TextColumn("{task.description}", table_column=Column(**one_line)),
        BarColumn(bar_width=12),
        TextColumn("{task.percentage:>3.0f} %", table_column=Column(**one_line)),
        TextColumn("{task.fields[left]}", table_column=Column(**one_line)),
    ]
    if console.width >= _WIDE:
        columns.append(TextColumn("[dim]{task.fields[note]}", table_column=Column(**one_line)))
    return Progress(*columns, console=console, transient=True, refresh_per_second=4)
