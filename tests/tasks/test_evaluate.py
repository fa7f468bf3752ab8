"""Whole evaluations of images made elsewhere, on digits with few steps. The oracle is numpy on the same pixels."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from dmqbench.config.checked_job import full_precision
from dmqbench.config.compose import compose
from dmqbench.config.ids import images_id, job_ids
from dmqbench.config.inputs import EvaluateConfig
from dmqbench.config.job import images_job, make_job
from dmqbench.config.model_facts import weights_hash
from dmqbench.eval.protocol import entries_of
from dmqbench.store.artifacts import Store
from dmqbench.tasks.evaluate import CHUNK, evaluate_foreign, import_images
from dmqbench.tasks.sample import carry_out as draw
from dmqbench.tasks.workshop import open_workshop

SAMPLES, PAIRS = 150, 20
SMALL = [
    "task=evaluate",
    "sampler.steps=2",
    "sampler.chunk=50",
    f"metrics.samples={SAMPLES}",
    f"metrics.pairs={PAIRS}",
    "tracker.mode=disabled",
]
UNKNOWN_SAMPLER = ("seed", "sampler", "steps", "eta", "guidance", "clip", "chunk", "base", "scope", "engine")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def plain(store):
    """The job that names no images yet."""
    return make_job(compose([*SMALL, f"store.root={store}"]))


@pytest.fixture(scope="module")
def full(plain) -> np.ndarray:
    """Our own full-precision samples, uint8 [N, 1, 16, 16], which are in the store from now on."""
    folder = draw(full_precision(plain))
    return np.concatenate([load_file(path)["images"] for path in sorted(folder.glob("chunk_*"))])


def noisy(images: np.ndarray, strength=20, seed=0) -> np.ndarray:
    """The same images as another program's quantized model might make them."""
    noise = np.random.default_rng(seed).integers(-strength, strength + 1, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def archive(path: Path, images: np.ndarray) -> str:
    np.savez(path, images.transpose(0, 2, 3, 1))
    return str(path)


def scored(plain, **evaluate) -> tuple[Path, dict]:
    folder = evaluate_foreign(images_job(replace(plain, evaluate=EvaluateConfig(**evaluate))))
    return folder, json.loads((folder / "result.json").read_text())


def psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    mse = ((ours.astype(float) - theirs) ** 2).mean((1, 2, 3))
    return float((10 * np.log10(255**2 / mse)).mean())


# ---- importing


def test_images_are_imported_once_in_chunks_of_one_size(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2 * CHUNK + 5, 3, 8, 8), np.uint8)
    path, store = archive(tmp_path / "x.npz", images), Store(tmp_path / "store")
    few = import_images(store, path, 3)
    folder = store.path("samples", few.id)
    assert [file.name for file in sorted(folder.glob("chunk_*"))] == ["chunk_00000.safetensors"]
    written = (folder / "chunk_00000.safetensors").stat().st_mtime_ns
    everything = import_images(store, path, 10**6)
    assert (few.id, few.state, everything.state) == (everything.id, None, None)
    assert (folder / "chunk_00000.safetensors").stat().st_mtime_ns == written
    assert torch.equal(everything.images, torch.from_numpy(images))
    assert torch.equal(few.images, torch.from_numpy(images[:3]))
    assert all(not checked.problems for checked in store.verify_all())


def test_a_damaged_chunk_is_imported_again(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (CHUNK + 5, 1, 8, 8), np.uint8)
    path = archive(tmp_path / "x.npz", images)
    import_images(Store(tmp_path / "store"), path, CHUNK + 5)
    [damaged] = (tmp_path / "store").rglob("chunk_00000.safetensors")
    damaged.write_bytes(b"damaged")
    found = import_images(Store(tmp_path / "store"), path, CHUNK + 5)
    assert torch.equal(found.images, torch.from_numpy(images))


# ---- against our own full precision


def test_images_are_paired_with_our_own_samples_where_those_are_given(plain, full, tmp_path):
    theirs, own = noisy(full), archive(tmp_path / "fp.npz", full)
    folder, result = scored(plain, samples=archive(tmp_path / "theirs.npz", theirs), fp_samples=own, bits="w4a8")
    assert (result["method"], result["name"], result["bits"]) == ("foreign", "theirs", "w4a8")
    assert (result["scope"], result["declared"]) == ("unknown", ["bits"])
    metrics = result["metrics"]
    assert metrics["psnr"]["value"] == pytest.approx(psnr(theirs[:PAIRS], full[:PAIRS]), abs=1e-4)
    assert (metrics["psnr"]["n"], metrics["fd_digits"]["n"]) == (PAIRS, SAMPLES)
    assert {"psnr", "ssim", "fd_digits", "fd2fp32_digits"} == metrics.keys()
    assert "no final sampler state" in result["unavailable"]["mse"]
    entries = entries_of(metrics["psnr"]["protocol"])
    assert {entries[name] for name in ("sampler", "steps", "seed", "chunk", "base", "scope", "engine")} == {"unknown"}
    assert entries["reference"].startswith("fp@")
    assert metrics["psnr"]["floor"]["kind"] == "numerical"
    assert metrics["fd_digits"]["floor"]["kind"] == "other_seed"
    values = json.loads((folder / "per_image.json").read_text())
    assert len(values["psnr"]) == PAIRS


def test_the_result_has_the_entries_of_ours_and_names_samples_of_the_store(plain, full, tmp_path, store):
    _, result = scored(plain, samples=archive(tmp_path / "theirs.npz", noisy(full, seed=2)))
    wanted = "job_id method name model bits scope dataset seed config metrics unavailable cost timing environment"
    assert not set(wanted.split()) - result.keys()
    assert result["cost"]["simulated"] is None
    for id in result["samples"].values():
        assert Store(store).verified("samples", id) is not None
    assert (result["bits"], result["declared"], result["notes"]) == ("unknown", [], [])


def test_the_same_command_answers_with_the_same_folder_and_a_new_metric_extends_it(plain, full, tmp_path, store):
    path, own = archive(tmp_path / "theirs.npz", noisy(full, seed=3)), archive(tmp_path / "fp.npz", full)
    results = len(Store(store).ids("result"))
    few = replace(plain, metrics=replace(plain.metrics, names=("psnr",)))
    folder, first = scored(few, samples=path, fp_samples=own)
    again, second = scored(
        replace(plain, metrics=replace(plain.metrics, names=("ssim",))), samples=path, fp_samples=own
    )
    assert folder == again
    assert first["metrics"].keys() == {"psnr"}
    assert second["metrics"].keys() == {"psnr", "ssim"}
    assert second["metrics"]["psnr"] == first["metrics"]["psnr"]
    assert len(Store(store).ids("result")) == results + 1
    assert scored(few, samples=path, fp_samples=own, name="other")[0] != folder


def test_fewer_images_than_are_asked_for_are_scored_as_they_are(plain, full, tmp_path):
    few, own = archive(tmp_path / "few.npz", noisy(full[:7])), archive(tmp_path / "fp.npz", full)
    _, result = scored(plain, samples=few, fp_samples=own)
    assert result["metrics"]["psnr"]["n"] == 7
    assert "at least" in result["unavailable"]["fd_digits"]


def test_our_own_samples_given_back_are_known_as_ours(plain, full, tmp_path):
    theirs, own = archive(tmp_path / "theirs.npz", noisy(full, seed=4)), archive(tmp_path / "fp.npz", full)
    _, alone = scored(plain, samples=theirs)
    _, beside = scored(plain, samples=theirs, fp_samples=own)
    own_id = job_ids(full_precision(plain), weights_hash(plain.model)).samples
    assert alone["samples"]["fp"] == beside["samples"]["fp"] == own_id
    assert alone["metrics"].keys() == {"fd_digits", "fd2fp32_digits"}
    assert "share the noise" in alone["unavailable"]["psnr"]
    assert alone["metrics"].items() <= beside["metrics"].items()


def test_identical_images_are_exact(plain, full, tmp_path):
    same = archive(tmp_path / "same.npz", full)
    _, result = scored(plain, samples=same, fp_samples=same)
    assert result["metrics"]["psnr"]["exact"] is True
    assert result["metrics"]["fd2fp32_digits"]["value"] == pytest.approx(0, abs=1e-6)


# ---- against full precision of the same author


def test_images_that_the_model_cannot_have_made_are_of_an_unknown_one(plain, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 24, 24), dtype=np.uint8)
    theirs, own = archive(tmp_path / "theirs.npz", noisy(images)), archive(tmp_path / "fp.npz", images)
    _, result = scored(plain, samples=theirs, fp_samples=own, name="RGB")
    assert (result["model"], result["dataset"], result["embedded"]) == ("unknown", "none", False)
    assert {"psnr", "ssim"} <= result["metrics"].keys()
    assert "takes images of 1×16×16, got 3×24×24" in result["unavailable"]["fd2fp32_digits"]
    assert "fd_digits" in result["unavailable"]


def test_two_foreign_sets_leave_the_sampler_unknown(plain, full, tmp_path, store):
    fp = np.random.default_rng(9).permutation(full)
    theirs, reference = noisy(fp, seed=5), archive(tmp_path / "fp.npz", fp)
    _, result = scored(plain, samples=archive(tmp_path / "theirs.npz", theirs), fp_samples=reference, name="mine")
    assert result["samples"]["fp"] == images_id(reference)
    assert result["metrics"]["psnr"]["value"] == pytest.approx(psnr(theirs[:PAIRS], fp[:PAIRS]), abs=1e-4)
    for record in result["metrics"].values():
        entries = entries_of(record["protocol"])
        assert {entries[name] for name in UNKNOWN_SAMPLER} == {"unknown"}
        assert "floor" not in record
    assert Store(store).verified("samples", images_id(reference)) is not None


def test_sets_of_different_sizes_pair_as_far_as_both_go(plain, full, tmp_path):
    fp = full[::-1][:135]
    _, result = scored(
        plain, samples=archive(tmp_path / "theirs.npz", noisy(full[::-1])), fp_samples=archive(tmp_path / "fp.npz", fp)
    )
    assert result["metrics"]["psnr"]["n"] == PAIRS
    assert result["metrics"]["fd_digits"]["n"] == SAMPLES
    assert result["metrics"]["fd2fp32_digits"]["n"] == 135
    _, result = scored(
        plain,
        samples=archive(tmp_path / "theirs.npz", noisy(full[::-1])),
        fp_samples=archive(tmp_path / "few.npz", fp[:9]),
    )
    assert result["metrics"]["psnr"]["n"] == 9
    assert "fd2fp32_digits" in result["unavailable"]


def test_two_foreign_sets_may_have_any_size_and_need_no_sample_of_ours(tmp_path):
    """Colour images of another size than the model's: nothing of the model is drawn."""
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 24, 32), np.uint8)
    theirs = archive(tmp_path / "theirs.npz", noisy(images))
    job = make_job(compose([*SMALL, "metrics.names=[psnr]", f"store.root={tmp_path / 'store'}"]))
    _, result = scored(job, samples=theirs, fp_samples=archive(tmp_path / "fp.npz", images))
    assert result["metrics"]["psnr"]["n"] == 8
    assert len(Store(tmp_path / "store").ids("samples")) == 2


def test_what_jpeg_files_lost_is_noted(plain, full, tmp_path):
    from PIL import Image

    folder = tmp_path / "jpegs"
    folder.mkdir()
    for number, image in enumerate(full[:5]):
        Image.fromarray(image[0]).save(folder / f"{number}.jpg", quality=95)
    _, result = scored(plain, samples=str(folder))
    assert "JPEG" in result["notes"][0]
    assert result["name"] == "jpegs"


def test_the_workshop_of_such_a_job_has_its_ids(plain, full, tmp_path):
    path = archive(tmp_path / "x.npz", full)
    shop = open_workshop(images_job(replace(plain, evaluate=EvaluateConfig(path))))
    assert shop.ids.samples == images_id(path)
