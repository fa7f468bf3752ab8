"""Reading back the file that an offline wandb run leaves: LevelDB log blocks of protobuf records."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 32768
HEADER = struct.Struct("<IHB")
FULL, FIRST, LAST = 1, 2, 4


@dataclass
class OfflineRun:
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    axes: list[tuple[str, str]] = field(default_factory=list)
    artifacts: list[Any] = field(default_factory=list)
    exit_code: int | None = None
    run: Any = None

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.history]

    def values(self, name: str) -> list[Any]:
        """The values of one name in the order of the steps."""
        return [row[name] for row in self.history if name in row]


def read_run(folder: Path) -> OfflineRun:
    """The run in a folder ``offline-run-…``."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("*.wandb")
    found = OfflineRun()
    for content in _records(file.read_bytes()):
        record = Record()
        record.ParseFromString(content)
        match record.WhichOneof("record_type"):
            case "run":
                found.run = record.run
                found.config |= _items(record.run.config.update)
            case "history":
                found.history.append(_items(record.history.item))
            case "summary":
                found.summary |= _items(record.summary.update)
            case "metric":
                found.axes.append((record.metric.glob_name or record.metric.name, record.metric.step_metric))
            case "artifact":
                found.artifacts.append(record.artifact)
            case "exit":
                found.exit_code = record.exit.exit_code
    return found


def _items(items: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        *outer, last = item.nested_key or [item.key]
        inner = found
        for name in outer:
            inner = inner.setdefault(name, {})
        inner[last] = json.loads(item.value_json)
    return found


def _records(content: bytes) -> Iterator[bytes]:
    position, parts = 7, b""  # after ":W&B" and its version
    while position + HEADER.size <= len(content):
        if BLOCK - position % BLOCK < HEADER.size:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = HEADER.unpack_from(content, position)
        position += HEADER.size
        piece = content[position : position + length]
        position += length
        parts = piece if kind in (FULL, FIRST) else parts + piece
        if kind in (FULL, LAST):
            yield parts
