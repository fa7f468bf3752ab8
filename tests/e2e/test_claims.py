"""Claims of order on the embedded model, over three calibration seeds. Minutes: run by ``make test-slow``."""

import json

import pytest
from e2e.commands import START, environment

from dmqbench.eval.statistics import paired_difference


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("bits", ["w4a6", "w3a6"])
def test_q_diffusion_is_better_than_round_to_nearest(tmp_path, bits):
    import subprocess
    import sys

    store = tmp_path / "runs"
    command = [sys.executable, "-c", START, "-m", f"store.root={store}", "method=rtn,q_diffusion", f"bits={bits}"]
    command += ["seed=0,1,2", "budget=ladder", "tracker.mode=disabled"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    per_image = {}
    for path in store.glob("result/*/result.json"):
        result = json.loads(path.read_text())
        per_image[result["method"], result["seed"]] = json.loads((path.parent / "per_image.json").read_text())
    for seed in (0, 1, 2):
        for metric in ("psnr", "ssim"):
            ours, theirs = per_image["q_diffusion", seed][metric], per_image["rtn", seed][metric]
            assert paired_difference(ours, theirs, higher_is_better=True).verdict == "better", (metric, seed)
