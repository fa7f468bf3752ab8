"""Artifacts: published, grown, replaced, locked, and read where nothing can be written."""

import hashlib
import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store.stored import ID, OTHER, aside, everything, publish

from dmqbench.store import artifacts, files, manifest
from dmqbench.store.artifact import StoreError
from dmqbench.store.artifacts import Store
from dmqbench.store.files import save_atomic


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


@pytest.mark.parametrize("left", [".tmp-1-abcd", ".tmphGQ73b"], ids=["ours", "safetensors'"])
def test_leftovers_of_killed_writers_are_swept_under_the_lock(tmp_path, left):
    here = Store(tmp_path)
    leftover = here.work(ID) / left
    leftover.touch()
    (here.work(ID) / "last.ckpt").touch()
    with here.lock("quantized", ID, part="chunk-3"):
        assert leftover.exists()
    with here.lock("quantized", ID):
        assert not leftover.exists() and (here.work(ID) / "last.ckpt").exists()
    here.append_file("samples", ID, "chunk-0", lambda path: path.write_bytes(b"x"))
    (tmp_path / "samples" / ID / left).touch()
    here.append_file("samples", ID, "chunk-1", lambda path: path.write_bytes(b"x"))
    assert not (tmp_path / "samples" / ID / left).exists()
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
