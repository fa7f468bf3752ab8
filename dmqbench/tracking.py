"""What happened in a job: a JSONL record on disk, which is the truth, and wandb runs that mirror it."""

import json
import logging
import math
import netrc
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, final
from urllib.parse import urlsplit

from dmqbench.files import safe_name

log = logging.getLogger(__name__)

MODES = ("auto", "online", "offline", "disabled")
Mode = Literal["online", "offline", "disabled"]
RESERVED = frozenset({"time", "job", "event", "step"})

_SECRET_WORDS = frozenset({"key", "token", "secret", "password", "passwd", "credential", "credentials"})
_SECRET_PARTS = ("secret", "password", "apikey")
_WORD_BREAK = re.compile(r"[^A-Za-z0-9]+|(?<=[a-z0-9])(?=[A-Z])")
_USER_INFO = re.compile(r"(?<=://)[^/\s@]+@")
_REDACTED = "***"

_WANDB_HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")
_ONLINE_TIMEOUT_S = 15
_UPLOAD_TIMEOUT_S = 30


def redact(value: Any) -> Any:
    """A copy of a configuration or record in which no secret is left.

    Values whose key says key, token, secret, password or credential (as a word: ``tokenizer`` and
    ``max_tokens`` stay) become ``***``, at any depth; so does the user part of every URL.
    """
    if isinstance(value, Mapping):
        return {name: _REDACTED if _is_secret(str(name)) else redact(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(inner) for inner in value]
    if isinstance(value, str):
        return _USER_INFO.sub(f"{_REDACTED}@", value)
    return value


def _is_secret(name: str) -> bool:
    words = {word.lower() for word in _WORD_BREAK.split(name)}
    return bool(words & _SECRET_WORDS) or any(part in name.lower() for part in _SECRET_PARTS)


class Mirror(Protocol):
    """Something that is told every event of a record."""

    def log(self, event: str, step: int | None, values: Mapping[str, Any]) -> None: ...


@final
class Record:
    """Append-only events of one job, one JSON object a line: ``{"time", "job", "event", "step", ...}``.

    A line is one write: it is whole or, where the process was killed in it, ignored by ``read_record``. The
    file is made by the first event. ``time`` is in seconds since 1970; a restarted job goes on in its file.
    """

    def __init__(self, path: Path, job: str) -> None:
        self.path = path
        self.job = job
        self._descriptor: int | None = None
        self._mirrors: list[Mirror] = []

    @classmethod
    def of_job(cls, root: Path, job: str) -> "Record":
        """The record of ``job`` in the run store at ``root``."""
        return cls(root / "records" / f"{safe_name(job)}.jsonl", job)

    def log(self, event: str, *, step: int | None = None, **values: Any) -> None:
        """Write one event and pass it on to the mirrors.

        Numbers that JSON cannot say are written as the strings "nan", "inf" and "-inf", one-element tensors
        and arrays as numbers, anything else unknown as text.
        """
        if clash := RESERVED & values.keys():
            raise ValueError(f"an event cannot have a value named {', '.join(sorted(clash))}")
        plain = redact(_plain(values))
        line = {"time": round(time.time(), 3), "job": self.job, "event": event, "step": step, **plain}
        os.write(self._opened(), (json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n").encode())
        for mirror in self._mirrors:
            mirror.log(event, step, plain)

    def attach(self, mirror: Mirror) -> None:
        self._mirrors.append(mirror)

    def detach(self, mirror: Mirror) -> None:
        self._mirrors.remove(mirror)

    def close(self) -> None:
        """Force the record to the disk; a later event opens it again."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _opened(self) -> int:
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            size = os.fstat(self._descriptor).st_size
            if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
                # A kill tore the last line; without this the next event would be lost with it.
                os.write(self._descriptor, b"\n")
        return self._descriptor


def read_record(path: Path) -> list[dict[str, Any]]:
    """Events of a record in order; lines torn by a kill are left out, a file that is not there has none."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return [event for line in lines if (event := _parsed(line)) is not None]


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _plain(value: Any) -> Any:
    """``value`` in terms of JSON."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(inner) for inner in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return str(value)


def resolve_mode(mode: str, environment: Mapping[str, str] = os.environ) -> Mode:
    """What ``tracker.mode`` means here: ``auto`` is ``WANDB_MODE`` if set, else online if there is a key."""
    if mode not in MODES:
        raise ValueError(f"tracker mode {mode!r}: allowed are {', '.join(MODES)}")
    chosen = environment.get("WANDB_MODE", "") if mode == "auto" else mode
    match chosen:
        case "online" | "offline" | "disabled":
            return chosen
    return "online" if _has_key(environment) else "offline"


def _has_key(environment: Mapping[str, str]) -> bool:
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


@final
class Tracker:
    """Context manager: one wandb run that mirrors the events of ``record`` while it is open.

    Calibration and evaluation of a job are two runs of one group. Values appear as ``event/name`` over
    ``event/step``. Nothing that goes wrong in wandb reaches the job: the first failure is a warning and ends
    the mirror. With ``disabled`` wandb is not imported.
    """

    def __init__(
        self,
        record: Record,
        kind: Literal["calibration", "evaluation"],
        *,
        mode: str,
        directory: Path,
        project: str = "dmqbench",
        tags: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.record = record
        self.kind = kind
        self.mode = resolve_mode(mode)
        self.directory = directory
        self.project = project
        self.tags = tuple(tags)
        self.config = redact(_plain(config or {}))
        self._run: Any = None
        self._charted: set[str] = set()

    @property
    def location(self) -> str | None:
        """Where the run can be looked at, an address or a folder; None without one."""
        if self._run is None:
            return None
        return self._run.url if self.mode == "online" else str(Path(self._run.dir).parent)

    def __enter__(self) -> "Tracker":
        if self.mode == "online" and not self._guarded(self._start, "recording offline"):
            self.mode = "offline"
        if self.mode == "offline":
            self._guarded(self._start, "going on without it")
        self.record.attach(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.record.detach(self)
        run, self._run = self._run, None
        if run is not None:
            self._guarded(
                lambda: run.finish(exit_code=0 if kind is None else 1), f"the record is in {self.record.path}"
            )

    def log(self, event: str, step: int | None, values: Mapping[str, Any]) -> None:
        """Mirror the numbers among ``values``; called by the record."""
        numbers = {f"{event}/{name}": value for name, value in values.items() if _is_number(value)}
        if self._run is None or not numbers:
            return
        if step is not None:
            numbers[f"{event}/step"] = step
            if event not in self._charted:
                self._charted.add(event)
                self._do(lambda run: run.define_metric(f"{event}/*", step_metric=f"{event}/step"))
        self._do(lambda run: run.log(numbers))

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Set final numbers of the run, such as the metrics of a result."""
        plain = redact(_plain(values))
        self._do(lambda run: run.summary.update(plain))

    def image(self, name: str, path: Path, caption: str = "") -> None:
        """Add a picture from a file."""
        self._do(lambda run: run.log({name: _wandb().Image(str(path), caption=caption or None)}))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Add a table of plain values."""
        plain = redact(_plain(rows))
        self._do(lambda run: run.log({name: _wandb().Table(columns=list(columns), data=plain)}))

    def _start(self) -> None:
        wandb = _wandb()
        if self.mode == "online" and not _has_key(os.environ):
            # wandb would ask for it on a terminal, and the job would wait for an answer.
            raise RuntimeError("no API key, see `wandb login`")
        self.directory.mkdir(parents=True, exist_ok=True)
        # create_new: with any other choice a run that was left open would swallow this one's data.
        self._run = wandb.init(
            project=self.project,
            id=f"{self.record.job}-{self.kind}",
            group=self.record.job,
            job_type=self.kind,
            tags=self.tags,
            config=self.config,
            dir=str(self.directory),
            mode=self.mode,
            reinit="create_new",
            resume="allow" if self.mode == "online" else None,
            settings=wandb.Settings(
                console="off",
                silent=True,
                save_code=False,
                init_timeout=_ONLINE_TIMEOUT_S,
                finish_timeout=_UPLOAD_TIMEOUT_S,
            ),
        )
        log.info("wandb run of this %s: %s", self.kind, self.location)

    def _do(self, action: Callable[[Any], object]) -> None:
        run = self._run
        if run is not None and not self._guarded(lambda: action(run), "going on without it"):
            self._run = None
            with suppress(Exception):
                run.finish(exit_code=1)

    def _guarded(self, action: Callable[[], object], otherwise: str) -> bool:
        """Whether ``action`` succeeded; any failure becomes one warning and never stops a job."""
        try:
            action()
        except Exception as error:
            reason = redact(" ".join(str(error).split()))[:200]
            log.warning("wandb failed (%s: %s): %s", type(error).__name__, reason, otherwise)
            return False
        return True


def _wandb() -> Any:
    import wandb

    return wandb


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float))
