import hashlib
import json
import os
import random
import string
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmqbench.store import artifacts, files, manifest
from dmqbench.store.artifact import Artifact, StoreError
from dmqbench.store.artifacts import Store
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

ID = "0123456789abcdef"
OTHER = "fedcba9876543210"
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


def publish(the_store: Store, id: str = ID, weights: bytes = b"w" * 5000, plan: bytes = b"{}") -> Artifact:
    folder = the_store.work(id)
    (folder / "weights").write_bytes(weights)
    (folder / "plan").write_bytes(plan)
    return the_store.publish("quantized", id, folder, {"layers": 3})


def aside(root: Path) -> list[str]:
    return sorted(path.name for path in (root / ".aside").glob("*"))


def everything(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


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


@given(st.from_regex(r"[0-9a-f]{16}", fullmatch=True))
def test_every_canonical_id_is_accepted(id):
    assert Store("runs").path("samples", id) == Path("runs").absolute() / "samples" / id


@given(st.text(max_size=40) | st.from_regex(r"[0-9A-Fa-f]{15,17}\n?", fullmatch=True))
def test_other_ids_are_refused(text):
    canonical = len(text) == 16 and set(text) <= set("0123456789abcdef")
    if not canonical:
        for use in (Store("runs").work, lambda id: Store("runs").path("result", id)):
            with pytest.raises(ValueError, match="not an id"):
                use(text)


def test_unknown_kind_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="allowed are trajectories, quantized, samples, features, embeddings, anatomy, result"
    ):
        Store(tmp_path).path("models", ID)


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


def test_published_artifact_is_whole_and_the_work_area_is_gone(tmp_path):
    here = Store(tmp_path)
    assert here.verified("quantized", ID) is None
    folder = here.work(ID) / "final"
    (folder / "grids").mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(b"abc")
    (folder / "grids" / "unit-0.json").write_bytes(b"{}")
    (here.work(ID) / "last.ckpt").write_bytes(b"checkpoint")
    made = here.publish("quantized", ID, folder, {"loss": (1, 2), 3: "three"})
    read = Store(tmp_path).verified("quantized", ID)
    assert read is not None and read.manifest == made.manifest
    assert read.facts == {"loss": [1, 2], "3": "three"} and (read.kind, read.id) == ("quantized", ID)
    assert read.files["grids/unit-0.json"].read_bytes() == b"{}"
    written = json.loads((tmp_path / "quantized" / ID / "manifest.json").read_text())
    assert written["id"] == ID
    assert written["files"]["weights.safetensors"] == {
        "sha256": hashlib.sha256(b"abc").hexdigest(),
        "bytes": 3,
    }
    assert here.ids("quantized") == [ID] and here.ids("samples") == []
    assert len(everything(tmp_path)) == 3 and not (tmp_path / ".work" / ID).exists()


def test_the_first_publisher_wins(tmp_path):
    publish(Store(tmp_path), weights=b"first")
    second = publish(Store(tmp_path), weights=b"second")
    assert second.files["weights"].read_bytes() == b"first"
    assert aside(tmp_path) == [] and not (tmp_path / ".work" / ID).exists()


def test_a_folder_without_manifest_gives_way(tmp_path):
    here = Store(tmp_path)
    save_atomic(here.path("quantized", ID) / "error.json", "{}")
    assert here.verified("quantized", ID) is None and here.ids("quantized") == []
    publish(here)
    assert here.verified("quantized", ID) is not None
    assert (tmp_path / ".aside" / f"quantized-{ID}-1" / "error.json").exists()


def test_what_cannot_be_an_artifact_is_refused(tmp_path):
    here = Store(tmp_path / "runs")
    work = here.work(ID)
    with pytest.raises(ValueError, match="no files"):
        here.publish("quantized", ID, work, {})
    with pytest.raises(ValueError, match="not in the work area"):
        here.publish("quantized", ID, tmp_path, {})
    with pytest.raises(ValueError, match="not in the work area"):
        here.publish("quantized", ID, here.work(OTHER), {})
    (work / "link").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="not a plain file"):
        here.publish("quantized", ID, work, {})
    (work / "link").unlink()
    (work / "a" / "b").mkdir(parents=True)
    (work / "a" / "b" / "c").touch()
    with pytest.raises(ValueError, match="cannot be a file of an artifact"):
        here.publish("quantized", ID, work, {})
    with pytest.raises(ValueError):
        here.publish("quantized", ID, work / "a", {"loss": float("nan")})
    assert here.verified("quantized", ID) is None


def corrupt(path: Path, way: str, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if way == "deletion":
        path.unlink()
        return
    if way == "bit flip":
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif way == "truncation":
        del content[chance.randrange(len(content)) :]
    else:
        start = chance.randrange(len(content))
        content[start : start + 512] = bytes(len(content[start : start + 512]))
    path.write_bytes(content)


@pytest.mark.parametrize("way", ["bit flip", "truncation", "zeroing", "deletion"])
def test_every_corruption_is_found_and_the_artifact_made_again(tmp_path, way):
    chance = random.Random(way)
    contents = {"weights": bytes(chance.choices(range(1, 256), k=3000)), "plan": b"x"}
    for trial in range(25):
        publish(Store(tmp_path), **contents)
        name = ["weights", "plan", "manifest.json"][trial % 3]
        corrupt(tmp_path / "quantized" / ID / name, way, chance)
        here = Store(tmp_path)
        assert here.verified("quantized", ID) is None, (way, name, trial)
        again = publish(here, **contents)
        assert again.files["weights"].read_bytes() == contents["weights"]
        assert len(aside(tmp_path)) == trial + 1
    assert Store(tmp_path).verified("quantized", ID) is not None


def test_one_warning_says_what_was_put_aside(tmp_path, caplog):
    (publish(Store(tmp_path)).path / "weights").write_bytes(b"short")
    assert Store(tmp_path).verified("quantized", ID) is None
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"quantized {ID} is damaged (weights has 5 bytes instead of 5000)" in line and "\n" not in line


def test_an_artifact_in_the_place_of_another_is_damage(tmp_path):
    publish(Store(tmp_path))
    (tmp_path / "quantized" / ID).rename(tmp_path / "quantized" / OTHER)
    assert Store(tmp_path).verified("quantized", OTHER) is None
    assert aside(tmp_path) == [f"quantized-{OTHER}-1"]


@pytest.mark.parametrize(
    "name",
    ["../../secret", "/etc/hostname", "a/b/c", "..", "", "manifest.json", "a/..", "x" * 5000, ".next/x"],
)
def test_a_manifest_cannot_name_files_elsewhere(tmp_path, name):
    (tmp_path / "secret").write_bytes(b"")
    here = Store(tmp_path / "runs")
    folder = publish(here).path
    body = {
        "version": 1,
        "kind": "quantized",
        "id": ID,
        "facts": {},
        "files": {name: {"sha256": hashlib.sha256(b"").hexdigest(), "bytes": 0}},
    }
    digest = hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps({**body, "sha256": digest}))
    assert Store(tmp_path / "runs").verified("quantized", ID) is None
    assert aside(tmp_path / "runs") == [f"quantized-{ID}-1"] and (tmp_path / "secret").exists()


def test_links_never_lead_out_of_the_store(tmp_path):
    outside = tmp_path / "outside"
    save_atomic(outside / "chunk", b"precious")
    here = Store(tmp_path / "runs")
    here.append_file("samples", ID, "shard/chunk", lambda path: path.write_bytes(b"precious"))
    shard = tmp_path / "runs" / "samples" / ID / "shard"
    (shard / "chunk").unlink()
    shard.rmdir()
    shard.symlink_to(outside)
    with pytest.raises(StoreError, match="behind a link"):
        here.append_file("samples", ID, "shard/other", lambda path: path.write_bytes(b"x"))
    assert Store(tmp_path / "runs").verified_files("samples", ID) == {}
    assert everything(outside) == [outside / "chunk"] and not shard.exists()
    (tmp_path / "runs" / "quantized").symlink_to(outside)
    with pytest.raises(StoreError, match="leaves the run store"):
        here.verified("quantized", ID)


def test_growing_artifact_loses_only_its_damaged_file(tmp_path):
    here = Store(tmp_path)
    here.replace_files("samples", ID, {"chunk-0": b"0" * 50}, {"n": 4})
    for chunk in range(1, 4):
        here.append_file("samples", ID, f"chunk-{chunk}", lambda path, c=chunk: path.write_bytes(b"%d" % c * 50))
    assert sorted(Store(tmp_path).verified_files("samples", ID)) == [f"chunk-{chunk}" for chunk in range(4)]
    corrupt(tmp_path / "samples" / ID / "chunk-1", "bit flip", random.Random(0))
    corrupt(tmp_path / "samples" / ID / "chunk-2", "deletion", random.Random(0))
    kept = Store(tmp_path).verified("samples", ID)
    assert kept is not None and sorted(kept.files) == ["chunk-0", "chunk-3"] and kept.facts == {"n": 4}
    assert [path.name for path in everything(tmp_path / ".aside")] == ["chunk-1"]
    here.append_file("samples", ID, "chunk-1", lambda path: path.write_bytes(b"1" * 50))
    assert Store(tmp_path).verified_files("samples", ID)["chunk-1"].read_bytes() == b"1" * 50


def test_a_chunk_that_is_there_is_not_written_again(tmp_path):
    here = Store(tmp_path)
    here.append_file("samples", ID, "chunk", lambda path: path.write_bytes(b"first"))
    here.append_file("samples", ID, "chunk", lambda path: pytest.fail("written again"))
    (tmp_path / "samples" / ID / "chunk").write_bytes(b"fIrst")
    here.append_file("samples", ID, "chunk", lambda path: path.write_bytes(b"first"))
    assert Store(tmp_path).verified_files("samples", ID)["chunk"].read_bytes() == b"first"
    assert aside(tmp_path) == [f"samples-{ID}-1"]


def test_a_failed_chunk_leaves_the_others(tmp_path):
    here = Store(tmp_path)
    here.append_file("samples", ID, "chunk-0", lambda path: path.write_bytes(b"0"))

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        here.append_file("samples", ID, "chunk-1", fail)
    assert list(Store(tmp_path).verified_files("samples", ID)) == ["chunk-0"]
    assert len(everything(tmp_path)) == 2


def test_an_unreadable_manifest_is_put_aside_before_growing(tmp_path):
    here = Store(tmp_path)
    here.append_file("samples", ID, "chunk-0", lambda path: path.write_bytes(b"0"))
    (tmp_path / "samples" / ID / "manifest.json").write_bytes(b"{")
    here.append_file("samples", ID, "chunk-1", lambda path: path.write_bytes(b"1"))
    assert list(here.verified_files("samples", ID)) == ["chunk-1"] and aside(tmp_path) == [f"samples-{ID}-1"]


def test_replaced_files_join_the_finished_ones(tmp_path):
    here = Store(tmp_path)
    here.replace_files("result", ID, {"result.json": "{}", "picture.png": b"png"}, {"records": 1})
    here.replace_files("result", ID, {"result.json": '{"psnr": 1}', "per_image.json": "[]"})
    read = Store(tmp_path).verified("result", ID)
    assert read is not None and sorted(read.files) == ["per_image.json", "picture.png", "result.json"]
    assert read.files["result.json"].read_text() == '{"psnr": 1}' and read.facts == {"records": 1}
    assert sorted(path.name for path in read.path.iterdir()) == [*sorted([*read.files, "manifest.json"])]
    with pytest.raises(ValueError, match="cannot be a file"):
        here.replace_files("result", ID, {"manifest.json": "{}"})


@pytest.fixture
def between_moves(monkeypatch):
    """Runs an action in the middle of a replacement: the first new file is in place, the second is not."""

    def install(action) -> None:
        replace, moves = os.replace, []

        def interrupted(source, target):
            if Path(source).parent.name == ".next" and Path(target).parent.name == ID:
                moves.append(target)
                if len(moves) == 2:
                    action()
            replace(source, target)

        monkeypatch.setattr(os, "replace", interrupted)

    return install


@pytest.mark.parametrize("finished_before", [True, False])
def test_an_interrupted_replacement_is_finished_by_whoever_comes_next(tmp_path, between_moves, finished_before):
    here = Store(tmp_path)
    names = ["per_image.json", "result.json"]
    if finished_before:
        here.replace_files("result", ID, dict.fromkeys(names, "old"))

    def power_cut() -> None:
        raise SystemExit

    between_moves(power_cut)
    with pytest.raises(SystemExit):
        here.replace_files("result", ID, dict.fromkeys(names, "new"))
    states = [
        path.read_text() if path.exists() else None for path in (tmp_path / "result" / ID / name for name in names)
    ]
    assert states == ["new", "old" if finished_before else None]
    read = Store(tmp_path).verified("result", ID)
    assert read is not None and [read.files[name].read_text() for name in names] == ["new", "new"]
    assert aside(tmp_path) == []


def test_a_reader_never_mistakes_a_replacement_for_damage(tmp_path, between_moves):
    here, seen = Store(tmp_path), []
    here.replace_files("result", ID, {"result.json": "old", "per_image.json": "old"})
    reader = threading.Thread(target=lambda: seen.append(Store(tmp_path).verified("result", ID)))

    def read_meanwhile() -> None:
        reader.start()
        reader.join(0.3)
        assert reader.is_alive() and not seen

    between_moves(read_meanwhile)
    after = here.replace_files("result", ID, {"result.json": "new", "per_image.json": "new"})
    reader.join()
    assert [artifact.manifest for artifact in seen] == [after.manifest] and aside(tmp_path) == []


def test_a_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    publish(Store(tmp_path))
    weights = tmp_path / "quantized" / ID / "weights"
    hashed: list[str] = []

    def counting(path):
        hashed.append(Path(path).name)
        return sha256_file(path)

    monkeypatch.setattr(manifest, "sha256_file", counting)
    time.sleep(0.15)
    here = Store(tmp_path)
    for _ in range(5):
        assert here.verified("quantized", ID) is not None
    assert sorted(hashed) == ["plan", "weights"]
    times = weights.stat()
    weights.write_bytes(b"v" * 5000)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert here.verified("quantized", ID) is None


def test_verify_all_reports_and_moves_nothing(tmp_path):
    here = Store(tmp_path)
    publish(here)
    publish(here, id=OTHER)
    here.append_file("samples", ID, "chunk", lambda path: path.write_bytes(b"x"))
    (tmp_path / "quantized" / OTHER / "plan").unlink()
    (tmp_path / "samples" / ID / "chunk").write_bytes(b"y")
    found = {(checked.kind, checked.id): checked.problems for checked in Store(tmp_path).verify_all()}
    assert found == {
        ("quantized", ID): (),
        ("quantized", OTHER): ("plan is missing",),
        ("samples", ID): ("chunk does not have its recorded sha256",),
    }
    assert aside(tmp_path) == []


def test_leftovers_of_killed_writers_are_swept_under_the_lock(tmp_path):
    here = Store(tmp_path)
    leftover = here.work(ID) / ".tmp-1-abcd"
    leftover.touch()
    (here.work(ID) / "last.ckpt").touch()
    with here.lock("quantized", ID, part="chunk-3"):
        assert leftover.exists()
    with here.lock("quantized", ID):
        assert not leftover.exists() and (here.work(ID) / "last.ckpt").exists()
    here.append_file("samples", ID, "chunk-0", lambda path: path.write_bytes(b"x"))
    (tmp_path / "samples" / ID / ".tmp-1-abcd").touch()
    here.append_file("samples", ID, "chunk-1", lambda path: path.write_bytes(b"x"))
    assert not (tmp_path / "samples" / ID / ".tmp-1-abcd").exists()
    publish(here)
    here.work(ID).joinpath("stale.ckpt").touch()
    with here.lock("quantized", ID):
        assert not (tmp_path / ".work" / ID).exists()


def test_lock_is_exclusive_and_says_once_that_it_waits(tmp_path):
    here, messages, inside = Store(tmp_path), [], []

    def work(number: int) -> None:
        with Store(tmp_path).lock("quantized", ID, on_wait=messages.append):
            inside.append(("in", number))
            time.sleep(0.02)
            inside.append(("out", number))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    with here.lock("quantized", ID), here.lock("samples", ID), here.lock("quantized", OTHER):
        for worker in workers:
            worker.start()
        time.sleep(0.1)
        assert inside == []
    for worker in workers:
        worker.join()
    assert len(inside) == 12
    assert all(first[1] == second[1] for first, second in zip(inside[::2], inside[1::2], strict=True))
    assert messages == [f"waiting for another job that makes quantized {ID}"] * 6
    assert everything(tmp_path) == []


def test_an_interrupted_wait_gives_up_cleanly(tmp_path):
    def interrupt() -> None:
        raise KeyboardInterrupt

    before = len(os.listdir("/dev/fd"))
    held = exclusive(tmp_path / "a.lock")
    with held, pytest.raises(KeyboardInterrupt), exclusive(tmp_path / "a.lock", interrupt):
        pass
    assert len(os.listdir("/dev/fd")) == before


def test_a_root_that_is_a_file_is_one_clear_line(tmp_path):
    (tmp_path / "runs").write_text("not a folder")
    here = Store(tmp_path / "runs")
    with pytest.raises(StoreError, match=r"cannot be written .*store\.root") as error:
        here.check_writable()
    assert "\n" not in str(error.value)
    assert here.verified("result", ID) is None and here.ids("result") == [] and list(here.verify_all()) == []


@pytest.fixture
def read_only(monkeypatch):
    """A read-only file system, also for root: opening for writing and making folders fail."""
    real_open, real_mkdir = os.open, os.mkdir

    def deny(path, flags, *rest, **named):
        if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, flags, *rest, **named)

    def deny_new(path, *rest, **named):
        if os.path.isdir(path):
            return real_mkdir(path, *rest, **named)
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", deny)
    monkeypatch.setattr(os, "mkdir", deny_new)


def test_a_read_only_store_can_be_read_and_says_so_otherwise(tmp_path, request):
    publish(Store(tmp_path))
    publish(Store(tmp_path), id=OTHER)
    (tmp_path / "quantized" / OTHER / "plan").unlink()
    request.getfixturevalue("read_only")
    here = Store(tmp_path)
    artifact = here.verified("quantized", ID)
    assert artifact is not None and artifact.files["plan"].read_bytes() == b"{}"
    assert here.verified("quantized", "0" * 16) is None
    with pytest.raises(StoreError, match=r"damaged and cannot be put aside \(Permission denied\)"):
        here.verified("quantized", OTHER)
    with pytest.raises(StoreError, match=r"cannot be written \(Permission denied\)"):
        here.check_writable()


def test_check_writable_leaves_no_trace(tmp_path):
    Store(tmp_path / "runs").check_writable()
    assert everything(tmp_path) == []


def test_the_store_needs_the_standard_library_only():
    foreign = {
        name.partition(".")[0]
        for module in (artifacts, files, manifest)
        for value in vars(module).values()
        if (name := getattr(value, "__module__", None) or getattr(value, "__name__", "")) and isinstance(name, str)
    }
    assert foreign <= set(sys.stdlib_module_names) | {"dmqbench"}


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
