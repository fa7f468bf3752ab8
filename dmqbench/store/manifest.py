"""What an artifact consists of: the ``manifest.json`` that is written last and checked on reading."""

import json
import os
import re
import stat
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dmqbench.store.files import json_hash, json_text, load_json, safe_name, sha256_file

MANIFEST = "manifest.json"
VERSION = 1

_SHA256 = re.compile(r"[0-9a-f]{64}")
# A file written again within one tick of the file system's clock keeps its times: those are never remembered.
_CLOCK_TICK_NS = 100_000_000


def safe_file_name(name: str) -> str:
    """Return ``name`` if it can be a file of an artifact: ``file`` or ``folder/file``, each a safe name."""
    parts = name.split("/") if isinstance(name, str) else []
    if len(parts) not in (1, 2) or name == MANIFEST:
        raise ValueError(f"{name!a} cannot be a file of an artifact: file or folder/file, not {MANIFEST}")
    for part in parts:
        safe_name(part)
    return name


def behind_link(folder: Path, name: str) -> bool:
    """Whether a subfolder in ``name`` is a symbolic link, which could lead anywhere."""
    return (folder / name).parent != folder and (folder / name).parent.is_symlink()


@dataclass(frozen=True)
class Entry:
    """Content of one file: hex digest and size in bytes."""

    sha256: str
    bytes: int

    @classmethod
    def of(cls, path: Path) -> "Entry":
        return cls(sha256_file(path), path.stat().st_size)

    @classmethod
    def parse(cls, value: Any) -> "Entry":
        match value:
            case {"sha256": str(digest), "bytes": int(size)} if _SHA256.fullmatch(digest) and size >= 0:
                return cls(digest, size)
        raise ValueError("has a malformed entry")


@dataclass(frozen=True)
class Manifest:
    """Files of an artifact by name, and facts that its maker wrote beside them.

    ``facts`` are held as they will be read back from JSON: lists for tuples, text for keys.
    """

    kind: str
    id: str
    files: Mapping[str, Entry] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "facts", json.loads(json.dumps(self.facts, allow_nan=False)))

    @classmethod
    def load(cls, folder: Path, kind: str, id: str) -> "Manifest":
        """Read the manifest in ``folder``.

        Raises:
            ValueError: malformed, of another artifact, or naming a file outside the folder.
            OSError: it cannot be read; FileNotFoundError if there is none.
        """
        if not stat.S_ISREG(os.lstat(folder / MANIFEST).st_mode):
            raise ValueError("is not a plain file")
        value = load_json(folder / MANIFEST)
        if not isinstance(value, dict) or value.pop("sha256", None) != json_hash(value):
            raise ValueError("does not have its recorded sha256")
        match value:
            case {"version": version, "kind": str(), "id": str(), "files": dict(files), "facts": dict(facts)}:
                if version != VERSION:
                    raise ValueError(f"has version {version}, not {VERSION}")
                if (value["kind"], value["id"]) != (kind, id):
                    raise ValueError(f"belongs to {value['kind']} {value['id']}")
                return cls(kind, id, {safe_file_name(n): Entry.parse(e) for n, e in files.items()}, facts)
        raise ValueError("lacks a field")

    def dump(self) -> str:
        """The text of ``manifest.json``, with a hash of itself: a flipped bit in a fact is noticed."""
        files = {name: asdict(entry) for name, entry in self.files.items()}
        body = {"version": VERSION, "kind": self.kind, "id": self.id, "files": files, "facts": self.facts}
        return json_text({**body, "sha256": json_hash(body)})


class Verifier:
    """Compares files with their entries, and reads a file that has not changed since only once."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, ...], str]] = {}

    def problem(self, folder: Path, name: str, entry: Entry) -> str | None:
        """Return why ``folder/name`` is not what ``entry`` says; None if it is."""
        path = folder / name
        try:
            if behind_link(folder, name):
                return "lies behind a link"
            status = os.lstat(path)
            if not stat.S_ISREG(status.st_mode):
                return "is not a plain file"
            if status.st_size != entry.bytes:
                return f"has {status.st_size} bytes instead of {entry.bytes}"
            return None if self._digest(path, status) == entry.sha256 else "does not have its recorded sha256"
        except (FileNotFoundError, NotADirectoryError):
            return "is missing"
        except OSError as error:
            return f"cannot be read ({error.strerror})"

    def _digest(self, path: Path, status: os.stat_result) -> str:
        fingerprint = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        known = self._known.get(path)
        if known is not None and known[0] == fingerprint:
            return known[1]
        started = time.time_ns()
        digest = sha256_file(path)
        if started - status.st_ctime_ns > _CLOCK_TICK_NS:
            self._known[path] = (fingerprint, digest)
        return digest
