"""Every metric through the real command, with made-up weights of the right interface, and without any."""

import json

import numpy as np
import pytest
from e2e.commands import TINY, dmqbench, result_folder
from standins import stand_in_folder

from dmqbench.data.digits import load_split
from dmqbench.results.formats import load_results

JOB = (*TINY, "method=rtn", "bits=w4a8", "sampler.chunk=32", "metrics.samples=128", "metrics.pairs=32")
NAMES = "metrics.names=[psnr,lpips,fid,fid2fp32,sfid,kid,is,precision,recall,clip]"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A finished job with the embedded metrics."""
    root = tmp_path_factory.mktemp("metrics") / "runs"
    status, output, errors = dmqbench(root, *JOB)
    assert status == 0, errors
    return root, result_folder(output)


def reference(path, count):
    """A file of digits."""
    images = load_split()[1][0][:count]
    np.savez(path, ((images + 1) / 2 * 255).round().byte().permute(0, 2, 3, 1).numpy())
    return path


def untouched(root):
    files = [path for kind in ("samples", "quantized", "trajectories") for path in root.glob(f"{kind}/*/*")]
    return {path: path.stat().st_mtime_ns for path in files}


def test_metrics_whose_weights_are_missing_are_listed_with_how_to_get_them(store):
    root, folder = store
    status, output, errors = dmqbench(root, *JOB, NAMES)
    assert (status, result_folder(output)) == (0, folder), errors
    unavailable = json.loads((folder / "result.json").read_text())["unavailable"]
    assert unavailable.keys() == {"lpips", "fid", "fid2fp32", "sfid", "kid", "is", "precision", "recall", "clip"}
    for name in ("fid", "fid2fp32", "sfid", "is"):  # 128 samples, whatever weights there were
        assert "needs at least" in unavailable[name]
    for name, file in (("lpips", "alexnet-owt-7be5be79.pth"), ("kid", "inception-2015-12-05.pt")):
        assert file in unavailable[name]
        assert "http" in unavailable[name]
        assert "\n" not in unavailable[name]
    assert "prompts" in unavailable["clip"]


def test_added_metrics_cost_neither_calibration_nor_sampling_and_stand_ins_reach_no_table(store, tmp_path):
    root, folder = store
    weights, before = stand_in_folder(tmp_path / "weights"), untouched(root)
    few = f"dataset.reference={reference(tmp_path / 'digits.npz', 128)}"  # Inception is slow
    status, output, errors = dmqbench(root, *JOB, NAMES, few, f"metrics.weights={weights}")
    assert (status, result_folder(output)) == (0, folder), errors
    assert untouched(root) == before
    result = json.loads((folder / "result.json").read_text())
    stand_ins = {f"stand-in-{name}" for name in ("lpips", "sfid", "kid", "precision", "recall")}
    assert stand_ins <= result["metrics"].keys()
    assert not {"lpips", "sfid", "kid", "precision", "recall"} & result["metrics"].keys()
    for name in ("fid", "fid2fp32", "is"):
        assert "needs at least" in result["unavailable"][name]
    lpips = result["metrics"]["stand-in-lpips"]
    assert "extractor=stand-in-lpips-alex@" in lpips["protocol"]
    assert lpips["n"] == 32
    assert "stand-in" not in output
    [shown] = load_results([folder])
    assert not any(name.startswith("stand-in") for name in shown.measurements)
    assert {"psnr", "fd_digits"} <= shown.measurements.keys()


def test_the_result_keeps_every_value_by_its_protocol(store):
    root, folder = store
    first = json.loads((folder / "result.json").read_text())["metrics"]["psnr"]
    status, _, errors = dmqbench(root, *JOB, "metrics.names=[psnr]", "metrics.pairs=16")
    assert status == 0, errors
    result = json.loads((folder / "result.json").read_text())
    assert result["metrics"]["psnr"]["n"] == 16
    assert len(json.loads((folder / "per_image.json").read_text())["psnr"]) == 16
    of_psnr = [record for record in result["records"] if record["metric"] == "psnr"]
    assert {record["n"] for record in of_psnr} == {16, 32}
    assert first["protocol"] in {record["protocol"] for record in of_psnr}
