"""Packages of others bring methods to one store: each is answered with its own numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

from e2e.commands import SMALL, START, environment, result_folder
from plugin_packages import method_package

JOB = (
    "method=mine",
    "model=ladder_1",
    "bits=w4a8",
    "metrics.samples=64",
    "metrics.pairs=8",
    "metrics.names=[psnr,mse,contrast]",
)


def dmqbench(site: Path, store: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run the command with the plug-ins of ``site``, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", START, f"store.root={store}", *SMALL, *JOB, *overrides],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        env=environment(PYTHONPATH=os.pathsep.join([str(site), *filter(None, sys.path)])),
        cwd=site,
    )


def test_two_packages_with_the_same_names_have_numbers_of_their_own(tmp_path):
    """Method, stage, version and settings are equal; one widens the scales of weights, the other narrows them."""
    folders = []
    for package, formula in {
        "wide": "mul_(1 + self.settings.strength)",
        "narrow": "div_(1 + self.settings.strength)",
    }.items():
        method_package(tmp_path / package, package, formula)
        done = dmqbench(tmp_path / package, tmp_path / "runs")
        assert done.returncode == 0, done.stderr
        folders.append(result_folder(done.stdout))
    wide, narrow = (json.loads((folder / "result.json").read_text()) for folder in folders)
    assert folders[0] != folders[1]
    assert wide["metrics"]["mse"]["value"] != narrow["metrics"]["mse"]["value"]
    protocols = [result["metrics"]["contrast"]["protocol"] for result in (wide, narrow)]
    assert protocols[0].startswith("contrast/1 ") and " tool=wide-1.0@" in protocols[0]
    assert " tool=narrow-1.0@" in protocols[1]
    assert wide["config"]["method"] == narrow["config"]["method"]
    # Trajectories, full precision with its two floors, and the ranges of weights, which are ours, are shared.
    assert len(list((tmp_path / "runs" / "trajectories").iterdir())) == 1
    assert len(list((tmp_path / "runs" / "quantized").iterdir())) == 1 + 2 * 2
    assert len(list((tmp_path / "runs" / "samples").iterdir())) == 3 + 2


def test_a_missing_stage_is_refused_before_anything_runs(tmp_path):
    module = method_package(tmp_path / "site", "wide", "mul_(2)") / "methods" / "mine.py"
    module.write_text(module.read_text().replace('"nudge": Nudge, ', ""))
    done = dmqbench(tmp_path / "site", tmp_path / "runs")
    assert done.returncode == 2 and not (tmp_path / "runs").exists()
    assert "method.stages=nudge is not among STAGES of wide.methods.mine" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
