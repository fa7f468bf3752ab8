"""Wandb runs that mirror the record of a job, live or afterwards. The record on disk is the truth."""

import logging
import math
import netrc
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, TypeVar, final
from urllib.parse import urlsplit

from dmqbench.points import axes_of, flat, key, points_of
from dmqbench.record import About, Part, Reader, Record, curve, plain, redact
from dmqbench.store.artifacts import Store
from dmqbench.store.files import json_text
from dmqbench.store.manifest import Manifest

log = logging.getLogger(__name__)

MODES = ("auto", "online", "offline", "disabled")
Mode = Literal["online", "offline", "disabled"]
Made = TypeVar("Made")

TABLE_ROWS = 200
HISTOGRAM_BINS = 64
UPLOADED_BYTES = 16 * 2**20
"""Files of an artifact up to this size are uploaded, of larger ones the hash alone."""

_WANDB_HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")
_START_S = 15
_LEAVE_S = 3
"""Also after SIGTERM, which many schedulers follow with SIGKILL: what is not sent by then, a later push sends."""
_UPLOAD_S = 30
_STAY_OFFLINE_S = 600


# ---- whether, and where to


def resolve_mode(mode: str, environment: Mapping[str, str] = os.environ) -> Mode:
    """What ``tracker.mode`` means here: ``auto`` is ``WANDB_MODE`` if set, else online if there is a key."""
    if mode not in MODES:
        raise ValueError(f"tracker mode {mode!r}: allowed are {', '.join(MODES)}")
    chosen = environment.get("WANDB_MODE", "") if mode == "auto" else mode
    match chosen:
        case "online" | "offline" | "disabled":
            return chosen
    return "online" if has_key(environment) else "offline"


def has_key(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether wandb would find an API key, without asking anyone."""
    if environment.get("WANDB_API_KEY"):
        return True
    base = environment.get("WANDB_BASE_URL")
    hosts = (urlsplit(base).netloc,) if base else _WANDB_HOSTS
    file = environment.get("NETRC") or os.path.join(environment.get("HOME", "~"), ".netrc")
    try:
        machines = netrc.netrc(os.path.expanduser(file))
    except (OSError, ValueError, netrc.NetrcParseError):
        return False
    return any(machines.authenticators(host) for host in hosts)


def project_name() -> str:
    """The wandb project that runs go to."""
    return os.environ.get("WANDB_PROJECT") or "dmqbench"


def check_login() -> None:
    """Raise an exception unless the server is there and takes the key; about ten seconds at most.

    Asked before a run is started: one that failed to start would keep its id from the offline run after it.
    """
    if not has_key():
        # wandb would ask for it on a terminal, and the job would wait for an answer.
        raise RuntimeError("no API key, see `wandb login`")
    wandb().login(verify=True)


def one_line(error: BaseException) -> str:
    """An exception as a short line without secrets."""
    return f"{type(error).__name__}: {redact(' '.join(str(error).split()))[:200]}"


def within(seconds: float, action: Callable[[], Made]) -> Made:
    """Result of ``action``, which runs in a thread of its own.

    Raises:
        TimeoutError: it is not done after ``seconds``; the thread is left to itself.
    """
    results: list[Made] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(action())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return results[0]


def wandb() -> Any:
    """The wandb package, quiet and without its error reports: those delay the end of a process by many seconds."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    return wandb


def warm_up(mode: str) -> None:
    """Begin to import and start wandb, if it will be needed, while the job does something else."""
    if resolve_mode(mode) != "disabled":
        threading.Thread(target=_warm_up, daemon=True).start()


def _warm_up() -> None:
    with suppress(Exception):  # who needs it will say what is wrong
        wandb().setup().ensure_service()


# ---- one wandb run


@final
class WandbRun:
    """A wandb run that follows one part of a record; whatever goes wrong is raised.

    The n-th row that the part's events make is step n of the run's history, whoever mirrors it and when: rows that
    the run has already are passed over. So a run that was cut off can be completed, and nothing is doubled.
    """

    def __init__(self, about: About, record: Path, root: Path, directory: Path, mode: Mode, finish_s: int) -> None:
        """``root`` is the run store, ``directory`` where wandb may write; start with what the record holds so far."""
        self.about = about
        self.root = root
        self.online = mode == "online"
        self._rows = 0
        self._axes: set[tuple[str, str]] = set()
        self._wandb = wandb()
        directory.mkdir(parents=True, exist_ok=True)
        self._run = self._start(directory, mode, finish_s)
        self._reader = Reader(record)

    def _start(self, directory: Path, mode: Mode, finish_s: int) -> Any:
        about = self.about
        config = redact(plain({**about.config, "ids": about.ids}))
        return self._wandb.init(
            project=project_name(),
            id=f"{about.job}-{about.part}",
            name=" ".join([*about.tags, about.part]),
            group=about.job,
            job_type=about.part,
            tags=about.tags,
            config=config,
            dir=str(directory),
            mode=mode,
            # With any other choice a run that was left open would swallow this one's data.
            reinit="create_new",
            resume="allow" if self.online else None,
            settings=self._wandb.Settings(
                console="off",
                silent=True,
                save_code=False,
                # What they would send, command line and folders, is nobody's business and may hold a secret.
                x_disable_meta=True,
                disable_git=True,
                program="dmqbench",
                x_save_requirements=False,
                init_timeout=_START_S,
                finish_timeout=finish_s,
                finish_timeout_raises=True,
            ),
        )

    @property
    def location(self) -> str:
        """Where the run can be looked at, an address or a folder."""
        return self._run.url if self.online else str(Path(self._run.dir).parent)

    @property
    def place(self) -> tuple[str, str]:
        """Its (entity, project)."""
        return self._run.entity, self._run.project

    @property
    def rows(self) -> int:
        """Rows of the record so far, old and new."""
        return self._rows

    @property
    def old_rows(self) -> int:
        """Rows that the run had when it was resumed."""
        return self._run.starting_step

    def follow(self) -> None:
        """Mirror the part's events that have come since the last call."""
        for event in self._reader.new():
            if event.get("part") == self.about.part:
                self._show(event)

    def settle(self, seconds: float) -> None:
        """Wait for uploads of files, no longer than ``seconds``."""
        deadline = time.monotonic() + seconds
        while self.online and time.monotonic() < deadline and self._run.status().sync_items_pending:
            time.sleep(0.1)

    def finish(self, exit_code: int) -> None:
        self._reader.close()
        self._run.finish(exit_code=exit_code)

    def _show(self, event: Mapping[str, Any]) -> None:
        match event["event"]:
            case "summary":
                self._run.summary.update(flat(event["values"]))
            case "artifact":
                self._link(event)
            case "end":
                pass
            case "image" | "table" | "histogram" as kind:
                makers = {"image": self._image, "table": self._table, "histogram": self._histogram}
                self._row(lambda: makers[kind](event))
            case _:
                axes, points = axes_of(event), points_of(event)
                if points and axes and axes not in self._axes:
                    self._axes.add(axes)
                    self._run.define_metric(axes[0], step_metric=axes[1])
                for point in points:
                    self._row(lambda values=point: values)

    def _row(self, make: Callable[[], Mapping[str, Any]]) -> None:
        number, self._rows = self._rows, self._rows + 1
        if number >= self.old_rows:
            self._run.log(make(), step=number, commit=True)

    def _image(self, event: Mapping[str, Any]) -> dict[str, Any]:
        path = (self.root / event["path"]).resolve()
        # A record may come from elsewhere, and must not make anyone upload other files of theirs.
        if path.suffix != ".png" or not path.is_relative_to(self.root.resolve()) or not path.is_file():
            log.warning("%s: no picture %s in the run store", event["name"], event["path"])
            return {}
        return {key(event["name"]): self._wandb.Image(str(path), caption=event["caption"] or None)}

    def _table(self, event: Mapping[str, Any]) -> dict[str, Any]:
        return {key(event["name"]): self._wandb.Table(columns=event["columns"], data=event["rows"])}

    def _histogram(self, event: Mapping[str, Any]) -> dict[str, Any]:
        return {key(event["name"]): self._wandb.Histogram(np_histogram=(event["counts"], event["edges"]))}

    def _link(self, event: Mapping[str, Any]) -> None:
        """Log a quantized model, or declare that the run uses it; without a network only the summary says so."""
        name = f"quantized-{event['id']}"
        self._run.summary.update({key("quantized"): name})
        if event["used"] and not self.online:
            return  # wandb looks up what is used on the server: the push of this record does that
        try:
            artifact = self._artifact(name, event)
            within(_START_S, lambda: (self._run.use_artifact if event["used"] else self._run.log_artifact)(artifact))
        except Exception as error:  # the run is worth having without it
            log.warning("wandb has no artifact %s (%s)", name, one_line(error))

    def _artifact(self, name: str, event: Mapping[str, Any]) -> Any:
        """The same content wherever it is made, so that all runs name one version."""
        folder = Store(self.root).path("quantized", event["id"])
        files = Manifest.load(folder, "quantized", event["id"]).files
        artifact = self._wandb.Artifact(name, type="quantized", metadata={"id": event["id"], **event["facts"]})
        listing = {file: {"sha256": entry.sha256, "bytes": entry.bytes} for file, entry in sorted(files.items())}
        with artifact.new_file("files.json") as file:
            file.write(json_text(listing))
        for file, entry in sorted(files.items()):
            if entry.bytes <= UPLOADED_BYTES:
                artifact.add_file(str(folder / file), name=file)
        return artifact


# ---- live


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
        self._do(lambda run: run.follow())
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
                self._guarded(lambda: self._leave(run, kind), f"the record is in {self.record.path}")

    def follow(self) -> None:
        """Mirror what is new; called by the record."""
        self._do(lambda run: run.follow())

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

    def diagnosis(self, found: Mapping[str, Any]) -> None:
        """Add the errors over the steps and of the layers of a ``diagnosis.json``, and its proxies to the summary."""
        steps, layers = found["steps"], found["layers"]
        self.curve("error", "call", range(len(steps["accumulated"])), steps)
        if layers is not None:
            rows = zip(layers["names"], layers["skip"], map(max, layers["error"]), strict=True)
            self.table("layers", ["layer", "skip input", "largest relative error over the calls"], list(rows))
        self.summarize({"proxies": found["proxies"]})

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

    def _leave(self, run: WandbRun, kind: type[BaseException] | None) -> None:
        if kind is None:
            run.settle(_UPLOAD_S)
        run.finish(0 if kind is None else 1)

    def _do(self, action: Callable[[WandbRun], object]) -> None:
        run = self._run
        if run is not None and not self._guarded(lambda: action(run), "going on without it"):
            self._run = None
            with suppress(Exception):
                run.finish(1)

    def _guarded(self, action: Callable[[], object], otherwise: str) -> bool:
        """Whether ``action`` succeeded; any failure becomes one warning and never stops a job."""
        try:
            action()
        except Exception as error:
            log.warning("wandb failed (%s): %s", one_line(error), otherwise)
            return False
        return True
