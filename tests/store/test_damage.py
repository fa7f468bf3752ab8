"""What is damaged is found, put aside and made again."""

import hashlib
import json
import os
import random
import time
from pathlib import Path

import pytest
from store.stored import ID, OTHER, aside, corrupt, everything, publish

from dmqbench.store import manifest
from dmqbench.store.artifact import StoreError
from dmqbench.store.artifacts import Store
from dmqbench.store.files import save_atomic, sha256_file


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


def test_an_unreadable_manifest_is_put_aside_before_growing(tmp_path):
    here = Store(tmp_path)
    here.append_file("samples", ID, "chunk-0", lambda path: path.write_bytes(b"0"))
    (tmp_path / "samples" / ID / "manifest.json").write_bytes(b"{")
    here.append_file("samples", ID, "chunk-1", lambda path: path.write_bytes(b"1"))
    assert list(here.verified_files("samples", ID)) == ["chunk-1"] and aside(tmp_path) == [f"samples-{ID}-1"]


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
