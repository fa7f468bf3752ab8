"""Restoration and editing through the real command, at tiny sizes."""

import json

import numpy as np
import pytest
from e2e.commands import SMALL, answered_without_torch, dmqbench, result_folder
from safetensors.torch import load_file

JOB = (*SMALL, "bits=w4a6", "metrics.samples=64", "diagnose=true")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("e2e") / "runs"


def done(store, *overrides: str) -> tuple[dict, dict[str, np.ndarray]]:
    """The result of a job, and its images by what they are."""
    status, output, errors = dmqbench(store, *JOB, *overrides)
    assert status == 0, errors
    folder = result_folder(output)
    result = json.loads((folder / "result.json").read_text())
    parts = {kind: sorted((store / "samples" / id).glob("chunk_*")) for kind, id in result["samples"].items()}
    return result, {kind: load_file(paths[0])["images"][:32].numpy() for kind, paths in parts.items()}


def decibels(images: np.ndarray, reference: np.ndarray) -> float:
    errors = np.square(images.astype(float) - reference.astype(float)).mean(axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(255**2 / errors)))


@pytest.fixture(scope="module")
def restored(store):
    return done(store, "method=rtn", "model=digits_sr")


def test_restored_digits_are_compared_with_the_truth_and_with_full_precision(store, restored):
    result, images = restored
    from dmqbench.data.digits import load_split

    truth = ((load_split()[1][0][:32] + 1) / 2 * 255).round().numpy().astype(np.uint8)
    assert result["metrics"]["psnr_truth"]["value"] == pytest.approx(decibels(images["quantized"], truth), abs=1e-6)
    assert result["metrics"]["psnr"]["value"] == pytest.approx(decibels(images["quantized"], images["fp"]), abs=1e-6)
    protocols = [result["metrics"][name]["protocol"] for name in ("psnr_truth", "psnr")]
    assert "reference=truth@" in protocols[0] and "reference=fp@" in protocols[1]
    assert all("task=restore" in protocol for protocol in protocols)
    assert decibels(images["fp"], truth) > decibels(images["input"], truth) + 5
    assert result["task_kind"] == "restore"


def test_full_precision_has_its_own_distance_to_the_truth(store, restored):
    result, _ = done(store, "method=fp", "model=digits_sr")
    assert result["metrics"]["psnr"]["exact"] is True
    assert result["metrics"]["psnr_truth"]["value"] > restored[0]["metrics"]["psnr_truth"]["value"]
    assert "floor" not in result["metrics"]["psnr_truth"]


def test_edited_digits_stay_close_to_what_they_were(store):
    edit = ("method=rtn", "model=ladder_1", "task_kind=edit", "edit.strength=0.25")
    result, images = done(store, *edit, "metrics.names=[psnr,psnr_truth]")
    assert "task=edit strength=0.25" in result["metrics"]["psnr"]["protocol"]
    assert "no ground truth" in result["unavailable"]["psnr_truth"]
    assert decibels(images["quantized"], images["input"]) > 15
    assert decibels(images["quantized"][1:], images["input"][:-1]) < 12
    status, output, errors = dmqbench(store, *JOB, "task=plan", *edit)
    assert status == 0, errors
    assert "edit: the images shipped for digits; 1 network calls a sample" in output
    assert "to be made" not in output


def test_images_of_ones_own_are_edited(store, tmp_path):
    mine = np.zeros((8, 16, 16, 1), np.uint8)
    mine[:, 4:12, 4:12] = np.arange(120, 248, 16)[:, None, None, None]
    np.savez(tmp_path / "mine.npz", mine)
    own = (f"inputs.images={tmp_path / 'mine.npz'}", "task_kind=edit", "metrics.names=[psnr]", "diagnose=false")
    result, images = done(store, "method=rtn", "model=ladder_1", *own)
    assert (images["input"][:, 0, 8, 8][:8] == [120, 152, 184, 216] * 2).all()
    assert result["config"]["inputs"]["images"].endswith("mine.npz")
    assert result["metrics"]["psnr"]["n"] == 32


def test_a_finished_restoration_is_answered_without_torch(store, restored):
    folder = answered_without_torch(store, *JOB, "method=rtn", "model=digits_sr")
    assert folder.name == restored[0]["job_id"]
