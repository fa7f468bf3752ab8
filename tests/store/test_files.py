"""Files that are whole or absent: names, writing, JSON, hashes, locks."""

import hashlib
import os
import random
import string
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store.stored import everything

from dmqbench.store import files
from dmqbench.store.files import (
    exclusive,
    load_json,
    once_per_state,
    replacing,
    safe_name,
    save_atomic,
    save_json,
    sha256_file,
)

HOSTILE_NAMES = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "/etc/passwd",
    "a\\b",
    "C:\\x",
    "a\0b",
    "a\nb",
    "\x7f",
    "-rf",
    "--help",
    ".hidden",
    "~root",
    "\u2025",
    "\uff0e\uff0e",
    "\u0661",
    "a" * 101,
    "\u00e9" * 100,
    "x" * 5000,
    "\ud800",
    " x",
    "x\n",
    "$(id)",
    "a;b",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
def test_hostile_names_are_refused_in_one_line(name):
    with pytest.raises(ValueError) as error:
        safe_name(name)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


@given(st.text(max_size=120) | st.text(string.printable, max_size=110))
def test_a_safe_name_stays_in_its_folder(text):
    try:
        name = safe_name(text)
    except ValueError:
        return
    root = Path("/some/root")
    assert Path(os.path.normpath(root / name)).parent == root
    assert name == text and len(os.fsencode(name)) <= 100
    assert name[0] not in ".-" and set(name) <= set(string.ascii_letters + string.digits + "_.+=,@-")


def test_save_atomic_writes_whole_files_and_leaves_nothing_else(tmp_path):
    save_atomic(tmp_path / "new" / "a.txt", "gr\u00fcn")
    save_atomic(tmp_path / "new" / "a.txt", b"second")
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"second"
    assert everything(tmp_path) == [tmp_path / "new" / "a.txt"]


def test_who_has_the_old_file_open_keeps_it_whole(tmp_path):
    save_atomic(tmp_path / "a", b"old")
    with open(tmp_path / "a", "rb") as reader:
        save_atomic(tmp_path / "a", b"much newer")
        assert reader.read() == b"old"


def test_bytes_are_on_the_disk_before_their_name_and_then_the_name(tmp_path, monkeypatch):
    events: list[tuple[str, int]] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor):
        events.append(("fsync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def noted_replace(source, target):
        events.append(("replace", os.stat(source).st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    save_atomic(tmp_path / "a", b"new")
    file, folder = (tmp_path / "a").stat().st_ino, tmp_path.stat().st_ino
    assert events == [("fsync", file), ("replace", file), ("fsync", folder)]


def test_a_failed_writer_leaves_the_old_file(tmp_path):
    save_atomic(tmp_path / "a.npz", b"old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "a.npz") as temporary:
        assert temporary.suffix == ".npz" and temporary.parent == tmp_path
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert everything(tmp_path) == [tmp_path / "a.npz"]
    assert (tmp_path / "a.npz").read_bytes() == b"old"


def test_json_is_strict_both_ways(tmp_path):
    save_json(tmp_path / "a.json", {"b": [1.5, None], "a": "\u00e9"})
    first = (tmp_path / "a.json").read_bytes()
    save_json(tmp_path / "a.json", {"a": "\u00e9", "b": (1.5, None)})
    assert (tmp_path / "a.json").read_bytes() == first
    assert load_json(tmp_path / "a.json") == {"a": "\u00e9", "b": [1.5, None]}
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError):
            save_json(tmp_path / "a.json", {"a": number})
    assert (tmp_path / "a.json").read_bytes() == first


@pytest.mark.parametrize("content", [b"", b"{", b"[NaN]", b"\xff", b"[" * 100_000, b"{} {}"])
def test_bad_json_is_one_line(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON") as error:
        load_json(tmp_path / "a.json")
    assert "\n" not in str(error.value)


def test_huge_json_is_refused_unread(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_bytes(b"[" + b" " * 100 + b"]")
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 100)
    with pytest.raises(ValueError, match="too large"):
        load_json(tmp_path / "a.json")


@pytest.mark.parametrize("size", [0, 1, 2**20, 2**20 + 1, 3 * 2**20 + 17])
def test_sha256_file_agrees_with_hashlib(tmp_path, size):
    content = random.Random(size).randbytes(size)
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_an_interrupted_wait_gives_up_cleanly(tmp_path):
    def interrupt() -> None:
        raise KeyboardInterrupt

    before = len(os.listdir("/dev/fd"))
    held = exclusive(tmp_path / "a.lock")
    with held, pytest.raises(KeyboardInterrupt), exclusive(tmp_path / "a.lock", interrupt):
        pass
    assert len(os.listdir("/dev/fd")) == before


def test_a_file_is_read_once_as_long_as_it_stays_as_it_is(tmp_path):
    read = []
    content = once_per_state(lambda path: (read.append(path), path.read_text())[1])
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError):
        content(path)
    path.write_text("one")
    assert [content(path), content(path)] == ["one", "one"]
    read.clear()
    path.write_text("two")  # perhaps within one tick of the file system's clock
    assert content(path) == "two"
    time.sleep(0.2)
    content(path)
    read.clear()
    assert [content(str(path)), content(path)] == ["two", "two"]
    assert read == []
    times = path.stat()
    other = tmp_path / "other"
    other.write_text("new")
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.rename(path)
    assert content(path) == "new"
    path.unlink()
    with pytest.raises(FileNotFoundError):
        content(path)
