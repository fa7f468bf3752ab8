"""Wandb runs that mirror the record of a job, live or afterwards. The record on disk is the truth."""

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, final

from dmqbench.tracking.record import About, Part, Record, curve
from dmqbench.tracking.wandb_client import Mode, check_login, one_line, resolve_mode
from dmqbench.tracking.wandb_run import WandbRun, log

TABLE_ROWS = 200
HISTOGRAM_BINS = 64

_LEAVE_S = 3
"""Also after SIGTERM, which many schedulers follow with SIGKILL: what is not sent by then, a later push sends."""
_UPLOAD_S = 30
_STAY_OFFLINE_S = 600


@final
class Tracker:
    """Context manager: while it is open, events belong to one part of the job and a wandb run mirrors them.

    Calibration and evaluation of a job are two runs of one group. Nothing that goes wrong in wandb reaches the job:
    the first failure is a warning and ends the mirror, not the record. With ``disabled`` wandb is not imported.
    """

    _offline_until: ClassVar[float] = 0.0
    """The jobs of a sweep share a process: they must not all wait for the same silent server."""

    def __init__(
        self,
        record: Record,
        part: Part,
        *,
        mode: str,
        directory: Path,
        tags: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        ids: Mapping[str, Any] | None = None,
    ) -> None:
        """``directory`` is the run store; ``tags``, ``config`` and ``ids`` are those of the record's job event."""
        self.record = record
        self.part: Part = part
        self.mode: Mode = resolve_mode(mode)
        self.directory = directory
        self.about = About(record.job, part, tuple(tags), config or {}, ids or {})
        self._run: WandbRun | None = None

    @property
    def location(self) -> str | None:
        """Where the run can be looked at, an address or a folder; None without one."""
        return None if self._run is None else self._run.location

    def __enter__(self) -> "Tracker":
        if self.mode == "online" and not self._can_go_online():
            self.mode = "offline"
        if self.mode != "disabled":
            self._guarded(self._start, f"going on without it, the record is in {self.record.path}")
        self.record.attach(self)
        self.follow()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        exit_code = 0 if kind is None else 1
        try:
            self.record.log("end", exit_code=exit_code)
        finally:
            self.record.detach()
            run, self._run = self._run, None
            if run is not None:
                self._guarded(lambda: _leave(run, exit_code), f"the record is in {self.record.path}")

    def follow(self) -> None:
        """Mirror what is new; called by the record."""
        run = self._run
        if run is not None and not self._guarded(run.follow, "going on without it"):
            self._run = None
            with suppress(Exception):
                run.finish(1)

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Set final values of the run, such as the metrics of a result; nested names are joined by slashes."""
        self.record.log("summary", values=values)

    def image(self, name: str, path: Path, caption: str = "") -> None:
        """Add a PNG that lies in the run store."""
        self.record.log("image", name=name, path=os.path.relpath(path, self.directory), caption=caption)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Add a table of plain values, of which the first ``TABLE_ROWS`` rows are kept."""
        self.record.log("table", name=name, columns=list(columns), rows=rows[:TABLE_ROWS], of=len(rows))

    def histogram(self, name: str, values: Iterable[float | None]) -> None:
        """Add the distribution of the finite ones among ``values``, if there are any."""
        import numpy as np

        finite = [value for value in values if value is not None and math.isfinite(value)]
        if finite:
            counts, edges = np.histogram(finite, bins=min(HISTOGRAM_BINS, max(1, len(finite))))
            self.record.log("histogram", name=name, counts=counts, edges=edges)

    def curve(self, chart: str, over: str, at: Sequence[float], lines: Mapping[str, Sequence[float | None]]) -> None:
        """Add lines of one chart over a common axis."""
        self.record.log("curve", **curve(chart, over, at, lines))

    def per_image(self, values: Mapping[str, Sequence[float | None]]) -> None:
        """Add the paired metrics of every image: histograms of all, a table of the first."""
        columns = [values[name] for name in values]
        self.table("per_image", ["index", *values], [[i, *row] for i, row in enumerate(zip_longest(*columns))])
        for name, column in values.items():
            self.histogram(f"per_image/{name}", column)

    def diagnosis(self, diagnosis: Mapping[str, Any]) -> None:
        """Add the errors over the steps and of the layers of a ``diagnosis.json``, and its proxies to the summary."""
        steps, layers = diagnosis["steps"], diagnosis["layers"]
        self.curve("error", "call", range(len(steps["accumulated"])), steps)
        if layers is not None:
            rows = zip(layers["names"], layers["skip"], map(max, layers["error"]), strict=True)
            self.table("layers", ["layer", "skip input", "largest relative error over the calls"], list(rows))
        self.summarize({"proxies": diagnosis["proxies"]})

    def made(self, quantized: str, **facts: Any) -> None:
        """The quantized model with this id is what this run made."""
        self.record.log("artifact", id=quantized, used=False, facts=facts)

    def used(self, quantized: str, **facts: Any) -> None:
        """The quantized model with this id is what this run measures."""
        self.record.log("artifact", id=quantized, used=True, facts=facts)

    def _can_go_online(self) -> bool:
        if time.monotonic() < Tracker._offline_until:
            return False
        if self._guarded(check_login, "recording offline; `dmqbench-report --push` uploads it later"):
            return True
        Tracker._offline_until = time.monotonic() + _STAY_OFFLINE_S
        return False

    def _start(self) -> None:
        self._run = WandbRun(self.about, self.record.path, self.directory, self.directory, self.mode, _LEAVE_S)
        log.info("wandb run of this %s: %s", self.part, self.location)

    def _guarded(self, action: Callable[[], object], otherwise: str) -> bool:
        """Whether ``action`` succeeded; any failure becomes one warning and never stops a job."""
        try:
            action()
        except Exception as error:
            log.warning("wandb failed (%s): %s", one_line(error), otherwise)
            return False
        return True


def _leave(run: WandbRun, exit_code: int) -> None:
    if not exit_code:
        run.settle(_UPLOAD_S)
    run.finish(exit_code)
