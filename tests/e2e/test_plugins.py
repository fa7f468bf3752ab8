"""Packages of others bring methods to one store: each is answered with its own numbers."""

import json
import sys
from pathlib import Path

from e2e.commands import SMALL, result_folder
from forks import forked
from plugin_packages import forget_plugins, method_package

from dmqbench.cli import main

JOB = (
    "method=mine",
    "model=ladder_1",
    "bits=w4a8",
    "metrics.samples=64",
    "metrics.pairs=8",
    "metrics.names=[psnr,mse,contrast]",
)


def with_plugins(site: Path, arguments: list[str]) -> int:
    """The command as a process that starts where the packages of ``site`` are installed."""
    sys.path.insert(0, str(site))
    forget_plugins()
    return main(arguments)


def dmqbench(site: Path, store: Path, *overrides: str) -> tuple[int, str, str]:
    """Run the command with the plug-ins of ``site``, in a process of its own."""
    with forked(with_plugins, site, [f"store.root={store}", *SMALL, *JOB, *overrides], folder=site) as process:
        return process.wait()


def test_two_packages_with_the_same_names_have_numbers_of_their_own(tmp_path):
    """Method, stage, version and settings are equal; one widens the scales of weights, the other narrows them."""
    folders = []
    for package, formula in {
        "wide": "mul_(1 + self.settings.strength)",
        "narrow": "div_(1 + self.settings.strength)",
    }.items():
        method_package(tmp_path / package, package, formula)
        status, output, errors = dmqbench(tmp_path / package, tmp_path / "runs")
        assert status == 0, errors
        folders.append(result_folder(output))
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
    status, _, errors = dmqbench(tmp_path / "site", tmp_path / "runs")
    assert status == 2 and not (tmp_path / "runs").exists()
    assert "method.stages=nudge is not among STAGES of wide.methods.mine" in errors
    assert len(errors.strip().splitlines()) == 1
