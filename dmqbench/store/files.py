"""Files that are whole or absent: names, atomic writing, hashes, locks between processes (stdlib only)."""

import fcntl
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, TypeVar

TEMPORARY_PREFIX = ".tmp-"
_LEFT_BEHIND = ".tmp*"
"""What killed writers leave: files of this project, and those that safetensors writes first, which end otherwise."""
MAX_JSON_BYTES = 256 * 2**20

_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=,@-]{0,99}")
_BLOCK = 2**20
T = TypeVar("T")


def safe_name(text: str) -> str:
    """Return ``text`` if it can be one component of a path; everything that becomes one passes here.

    Allowed are 1 to 100 ASCII letters, digits and ``_ . + = , @ -``, the first a letter, a digit or ``_``: so
    no name leaves its folder, hides, looks like an option, or differs between file systems.

    Raises:
        ValueError: anything else, in one line.
    """
    if not isinstance(text, str) or not _SAFE_NAME.fullmatch(text):
        name = ascii(text) if len(ascii(text)) <= 60 else f"{ascii(text)[:57]}..."
        rule = "1 to 100 letters, digits or _.+=,@- and no leading '.' or '-'"
        raise ValueError(f"{name} cannot be a file name here: {rule}")
    return text


def sync(path: Path) -> None:
    """Force a file's bytes, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path of the same suffix; what is written there becomes ``path`` at the end, or never.

    A reader sees the old file or the new one, whole, whenever the writer is killed or the power fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def save_atomic(path: str | Path, data: bytes | str) -> None:
    """Write ``data`` (text as UTF-8) to ``path``, creating its folder."""
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def save_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as JSON with sorted keys: equal values give equal bytes.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot say.
    """
    save_atomic(path, json_text(value))


def json_text(value: Any) -> str:
    """Return JSON with sorted keys, an indent of two and a final newline; ValueError on NaN and infinities."""
    return json.dumps(value, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def load_json(path: str | Path, finite: bool = True) -> Any:
    """Read a JSON file of at most 256 MiB; ``finite`` refuses infinities, which are not JSON, nor is NaN.

    Raises:
        ValueError: it is larger, or not JSON in UTF-8, in one line.
        OSError: it cannot be read.
    """
    path = Path(path)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path} is too large to be read as JSON")
    try:
        return json.loads(path.read_bytes().decode(), parse_constant=_refuse_constant if finite else _infinity)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _infinity(name: str) -> float:
    return _refuse_constant(name) if name == "NaN" else float(name)


def sha256_file(path: str | Path) -> str:
    """Return the hex digest of a file's content, read once in constant memory."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_BLOCK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


_SETTLED_NS = 10**8
"""Age from which a file's time tells whether it was written again: clocks of file systems tick some 10 ms."""


def once_per_state(read: Callable[..., T]) -> Callable[..., T]:
    """Return ``read``, which reads files, done once in this process as long as these stay as they are.

    Size, times and identity of the files say whether they did; failures are not remembered. Positional arguments are
    paths, or None where there is no file; others are settings.
    """
    known: dict[tuple[Any, ...], tuple[list[tuple[int, ...]], T]] = {}

    @wraps(read)
    def remembered(*paths: str | Path | None, **settings: Any) -> T:
        files = tuple(None if path is None else Path(path) for path in paths)
        key = (files, *sorted(settings.items()))
        try:
            statuses = [file.stat() for file in files if file is not None]
        except OSError:
            return read(*files, **settings)  # which says what is wrong
        states = [(one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for one in statuses]
        if key in known and known[key][0] == states:
            return known[key][1]
        value = read(*files, **settings)
        written = max((max(one.st_mtime_ns, one.st_ctime_ns) for one in statuses), default=0)
        if time.time_ns() - written > _SETTLED_NS:
            known[key] = states, value
        return value

    return remembered


sha256_once = once_per_state(sha256_file)


def sweep_temporary(folder: Path) -> None:
    """Remove what killed writers left in ``folder`` and its subfolders; the caller excludes live writers."""
    for pattern in (_LEFT_BEHIND, f"*/{_LEFT_BEHIND}"):
        for leftover in folder.glob(pattern):
            leftover.unlink(missing_ok=True)


@contextmanager
def exclusive(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock file ``path`` against all processes and threads; ``on_wait`` is called before waiting.

    The operating system drops the lock when its holder dies, however it dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _acquire(path, on_wait)
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)
        # A forked child shares the descriptor: closing alone would leave the child holding the lock.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _acquire(path: Path, on_wait: Callable[[], None] | None) -> int:
    """Return the descriptor of the locked file; release removes the file, so the lock may be on a name that is gone."""
    while True:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if on_wait is not None:
                    on_wait()
                    on_wait = None
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def canonical_json(value: Any) -> str:
    """Return JSON that is equal for equal values: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def json_hash(value: Any) -> str:
    """Return the sha256 of ``value`` as canonical JSON, in hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def short_hash(value: Any) -> str:
    """Return the first 16 digits of ``json_hash``."""
    return json_hash(value)[:16]
