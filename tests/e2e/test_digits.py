"""The embedded model through the real command: from nothing to a result, and again."""

import json
import os

import pytest
from e2e.commands import SMALL, TINY, answered_without_torch, dmqbench, result_folder

ENOUGH = (*SMALL, "metrics.samples=128")
"""More samples than the Fréchet distance has features."""
JOB = (*ENOUGH, "method=rtn", "bits=w4a8")
RESULT_KEYS = {
    *("job_id", "method", "model", "bits", "scope", "dataset", "seed", "config"),
    *("metrics", "unavailable", "cost", "timing", "environment"),
}
COST_KEYS = {
    *("model", "method", "bits", "scope", "parameters", "quantized_layers", "skip_layers"),
    *("full_precision_layers", "size_mib", "macs", "attention_macs", "bops"),
}
TIMING_KEYS = {
    *("trajectories_s", "calibrate_s", "sample_s", "evaluate_s"),
    *("unet_forwards_calibration", "peak_memory_mib"),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store in which round-to-nearest at W4A8 is done, with its diagnosis."""
    root = tmp_path_factory.mktemp("e2e") / "runs"
    status, output, errors = dmqbench(root, *JOB, "diagnose=true")
    assert status == 0, errors
    return root, result_folder(output)


def test_a_job_leaves_the_result_that_the_contract_describes(store):
    root, folder = store
    assert folder.parent == root / "result"
    result = json.loads((folder / "result.json").read_text())
    assert result.keys() >= RESULT_KEYS
    assert result["job_id"] == folder.name
    assert result["cost"].keys() >= COST_KEYS
    assert result["cost"]["simulated"] is True
    assert result["timing"].keys() >= TIMING_KEYS
    assert set(result["metrics"]) == {"psnr", "ssim", "mse", "fd2fp32_digits", "fd_digits"}
    for name, metric in result["metrics"].items():
        assert metric["protocol"].startswith(f"{name}/")
        low, high = metric["ci95"]
        assert low <= metric["value"] <= high
        assert metric["n"] == (128 if name.startswith("fd") else 32)
    images = json.loads((folder / "per_image.json").read_text())
    assert {name: len(values) for name, values in images.items()} == {"psnr": 32, "ssim": 32, "mse": 32}
    mse = result["metrics"]["mse"]
    assert mse["floor"]["value"] < 1e-6 < mse["value"]


def test_a_job_says_where_its_error_comes_from(store):
    _, folder = store
    found = json.loads((folder / "diagnosis.json").read_text())
    steps, layers = found["steps"], found["layers"]
    assert found["trajectories"] == 16
    assert [len(steps[name]) for name in ("local", "injected", "accumulated", "shift")] == [4, 4, 5, 5]
    assert steps["accumulated"][0] == 0 < steps["accumulated"][-1]
    result = json.loads((folder / "result.json").read_text())
    assert len(layers["names"]) == len(layers["error"]) == result["cost"]["quantized_layers"]
    assert all(0 < error < 1 for row in layers["error"] for error in row)
    assert sum(layers["skip"]) == result["cost"]["skip_layers"]


def test_a_finished_job_is_answered_without_torch(store):
    root, folder = store
    assert answered_without_torch(root, *JOB) == folder


def test_another_metric_is_added_without_sampling_again(store):
    root, folder = store
    samples = sorted(root.glob("samples/*/*"))
    before = {path: path.stat().st_mtime_ns for path in samples}
    status, output, errors = dmqbench(root, *JOB, "metrics.names=[psnr,lpips]")
    assert status == 0, errors
    assert result_folder(output) == folder
    result = json.loads((folder / "result.json").read_text())
    assert "lpips" in result["unavailable"]
    assert {"psnr", "ssim", "fd_digits"} <= result["metrics"].keys()
    assert {path: path.stat().st_mtime_ns for path in sorted(root.glob("samples/*/*"))} == before


def test_full_precision_is_identical_to_itself(store):
    root, _ = store
    status, output, errors = dmqbench(root, *ENOUGH, "method=fp")
    assert status == 0, errors
    metrics = json.loads((result_folder(output) / "result.json").read_text())["metrics"]
    assert metrics["psnr"]["value"] is None
    assert metrics["psnr"]["exact"] is True
    assert metrics["ssim"]["value"] == 1
    assert metrics["fd2fp32_digits"]["value"] == 0


def test_32_bits_are_full_precision(shared_store):
    job = (*TINY, "method=q_diffusion")
    status, output, errors = dmqbench(shared_store, *job, "bits=w32a32")
    assert status == 0, errors
    assert json.loads((result_folder(output) / "result.json").read_text())["metrics"]["psnr"]["exact"] is True
    status, output, errors = dmqbench(shared_store, *job, "bits=w4a32")
    assert status == 0, errors
    result = json.loads((result_folder(output) / "result.json").read_text())
    assert result["bits"] == "w4a32"
    assert result["metrics"]["psnr"]["value"] > 10


SMALLER = (*TINY, "method=rtn", "bits=w4a8")


@pytest.fixture(scope="module")
def tiny_store(tmp_path_factory):
    """A store in which the same is done on the smallest model: for what is not about ``digits``."""
    root = tmp_path_factory.mktemp("tiny") / "runs"
    status, output, errors = dmqbench(root, *SMALLER)
    assert status == 0, errors
    return root, result_folder(output)


def test_activation_bits_share_the_weight_stage(tiny_store):
    root, _ = tiny_store
    before = len(list(root.glob("quantized/*")))
    status, _, errors = dmqbench(root, *SMALLER, "bits=w4a4")
    assert status == 0, errors
    assert len(list(root.glob("quantized/*"))) == before + 1


def test_a_corrupted_artifact_is_put_aside_and_made_again(tiny_store):
    root, folder = tiny_store
    result = json.loads((folder / "result.json").read_text())
    *_, (_, stage) = result["artifacts"]["stages"]
    state = root / "quantized" / stage / "state.safetensors"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(bytes(content))
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    for samples in root.glob("samples/*"):
        if samples.name == result["samples"]["quantized"]:
            for path in samples.iterdir():
                path.unlink()
            samples.rmdir()
    status, output, errors = dmqbench(root, *SMALLER)
    assert status == 0, errors
    assert "moved to" in errors
    assert json.loads((result_folder(output) / "result.json").read_text())["metrics"] == result["metrics"]


def test_the_store_can_be_verified(tiny_store):
    from dmqbench.report import main

    root, _ = tiny_store
    assert main([str(root), "--check"]) == 0
    state = next(root.glob("quantized/*/state.safetensors"))
    whole = state.read_bytes()
    state.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert main([str(root), "--check"]) == 1
    state.write_bytes(whole)
    assert main([str(root), "--check"]) == 0


def test_both_engines_draw_the_same_pictures(tiny_store):
    root, folder = tiny_store
    status, output, errors = dmqbench(root, *SMALLER, "engine=int_reference")
    assert status == 0, errors
    from safetensors.torch import load_file

    ids = [
        json.loads((each / "result.json").read_text())["samples"]["quantized"]
        for each in (folder, result_folder(output))
    ]
    assert ids[0] != ids[1]
    states = [load_file(root / "samples" / id / "chunk_00000.safetensors")["state"] for id in ids]
    assert (states[0] - states[1]).abs().max() < 0.2
    assert (states[0] - states[1]).square().mean() < 1e-4


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ("method=rnt", "rtn"),
        ("bits=w9z3", "w"),
        ("bits.weight=0", "bits.weight"),
        ("metrics.names=[psrn]", "psnr"),
        ("sampler.stepz=3", "sampler.steps"),
    ],
)
def test_a_wrong_configuration_is_one_line_and_status_2(tmp_path, wrong, expected):
    status, output, errors = dmqbench(tmp_path / "runs", wrong)
    assert status == 2
    assert len(errors.strip().splitlines()) == 1
    assert expected in errors
    assert output == ""
    assert not (tmp_path / "runs").exists()


def test_a_store_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "runs").write_text("a file, not a folder")
    status, _, errors = dmqbench(tmp_path / "runs", "method=fp")
    assert status == 1
    assert len(errors.strip().splitlines()) == 1
    assert os.fspath(tmp_path / "runs") in errors
