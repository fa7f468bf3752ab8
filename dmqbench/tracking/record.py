"""What happened in a job: a JSONL record on disk, one event a line."""

import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, final

from dmqbench.store.files import safe_name

Part = Literal["calibration", "evaluation"]
RESERVED = frozenset({"time", "job", "part", "event", "step"})

_SECRET_WORDS = frozenset({"key", "token", "secret", "password", "passwd", "credential", "credentials"})
_SECRET_PARTS = ("secret", "password", "apikey")
_WORD_BREAK = re.compile(r"[^A-Za-z0-9]+|(?<=[a-z0-9])(?=[A-Z])")
_USER_INFO = re.compile(r"(?<=://)[^/\s@]+@")
_REDACTED = "***"
_BLOCK = 2**20


def redact(value: Any) -> Any:
    """Return a copy of a configuration or record in which no secret is left.

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
    """Something that follows a record while it grows; events logged meanwhile belong to its part of the job."""

    @property
    def part(self) -> Part: ...

    def follow(self) -> None: ...


def curve(chart: str, over: str, at: Sequence[float], lines: Mapping[str, Sequence[float | None]]) -> dict[str, Any]:
    """Values of an event ``curve``: lines of one chart over a common axis; one shorter than ``at`` ends early."""
    # Names are values here, not keys: a layer may well be called "key", and would be taken for a secret.
    named = [{"name": name, "values": list(values)} for name, values in lines.items()]
    return {"chart": chart, "over": over, "at": list(at), "lines": named}


@final
class Record:
    """Append-only events of one job, one JSON object a line: ``{"time", "job", "part", "event", "step", ...}``.

    ``part`` is the half of the job that was being mirrored, or null. A line is one write: it is whole or, where the
    process was killed in it, ignored by every reader. The file is made by the first event. ``time`` is in seconds
    since 1970; a restarted job goes on in its file.
    """

    def __init__(self, path: Path, job: str) -> None:
        self.path = path
        self.job = job
        self._descriptor: int | None = None
        self._mirror: Mirror | None = None

    @classmethod
    def of_job(cls, root: Path, job: str) -> "Record":
        """The record of ``job`` in the run store at ``root``."""
        return cls(root / "records" / f"{safe_name(job)}.jsonl", job)

    def log(self, event: str, *, step: int | None = None, **values: Any) -> None:
        """Write one event and let the mirror follow.

        Numbers that JSON cannot say are written as the strings "nan", "inf" and "-inf", one-element tensors
        and arrays as numbers, anything else unknown as text.
        """
        if clash := RESERVED & values.keys():
            raise ValueError(f"an event cannot have a value named {', '.join(sorted(clash))}")
        part = None if self._mirror is None else self._mirror.part
        frame = {"time": round(time.time(), 3), "job": self.job, "part": part, "event": event, "step": step}
        line = json.dumps({**frame, **redact(plain(values))}, allow_nan=False, ensure_ascii=False)
        os.write(self._opened(), f"{line}\n".encode())
        if self._mirror is not None:
            self._mirror.follow()

    def attach(self, mirror: Mirror) -> None:
        if self._mirror is not None:
            raise ValueError(f"the {self._mirror.part} of job {self.job} is still being mirrored")
        self._mirror = mirror

    def detach(self) -> None:
        self._mirror = None

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


class Reader:
    """Gives every whole line of a record once, also while the record grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._rest = b""

    def new(self) -> list[dict[str, Any]]:
        """Events since the last call, in order; torn lines are left out, a file that is not there has none."""
        if self._descriptor is None:
            try:
                self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return []
        while block := os.read(self._descriptor, _BLOCK):
            self._rest += block
        *lines, self._rest = self._rest.split(b"\n")
        return [event for line in lines if (event := _parsed(line)) is not None]

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def read_record(path: Path) -> list[dict[str, Any]]:
    """Return the events of a record in order; lines torn by a kill are left out, a file that is not there has none."""
    with closing(Reader(path)) as reader:
        return reader.new()


@dataclass(frozen=True)
class About:
    """What a run says of its job: ``ids`` go into its configuration."""

    job: str
    part: Part
    tags: tuple[str, ...]
    config: Mapping[str, Any]
    ids: Mapping[str, Any]


def abouts_of(record: Path) -> list[About]:
    """The runs that a record describes; none where it has no job event, which says what the job is."""
    events = read_record(record)
    jobs = [event for event in events if event["event"] == "job"]
    if not jobs:
        return []
    parts = dict.fromkeys(event.get("part") for event in events)
    last = jobs[-1]
    tags = tuple(last.get("tags", ()))
    return [
        About(last["job"], part, tags, last.get("config", {}), last.get("ids", {}))
        for part in ("calibration", "evaluation")
        if part in parts
    ]


def exit_code(record: Path, part: Part) -> int:
    """How the part ended last; a record without an end was cut off."""
    ends = [event["exit_code"] for event in read_record(record) if event["event"] == "end" and event["part"] == part]
    return ends[-1] if ends else 1


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def plain(value: Any) -> Any:
    """``value`` in terms of JSON."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(inner) for inner in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)
