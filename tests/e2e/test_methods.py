"""Every method against what it is to be better than, in the same run: a line of ``methods.yaml`` each."""

import hashlib
import json
from pathlib import Path

import pytest
import yaml
from e2e.commands import FEW, dmqbench, result_folder

from dmqbench.config.places import CONF

SIZES = (
    *(*FEW, "sampler.chunk=16", "metrics.samples=16", "metrics.pairs=16", "metrics.names=[psnr]"),
    *("budget.trajectories=16", "budget.validation=8", "budget.samples=32", "budget.batch=16"),
    *("budget.scale_iterations=20", "budget.weight_iterations=40", "budget.activation_iterations=5"),
    *("budget.trajectory_iterations=8", "budget.tuning_iterations=25"),
)
LINES = yaml.safe_load(Path(__file__).with_name("methods.yaml").read_text())
NO_METHODS = {"fp", "foreign"}
"""Options that quantize nothing."""


def content(root: Path) -> dict[str, str]:
    files = [path for path in root.rglob("*") if path.is_file() and path.parent.name != "records"]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def finished(store: Path, line: dict, job: dict) -> tuple[dict, list[str]]:
    """The result of the line's job or its baseline, and the overrides that asked for it."""
    method = job.get("method", line["method"])
    chosen = {"method": method, "bits": line["bits"], "model": line.get("model", "ladder_1")}
    overrides = [
        *SIZES,
        *(f"{group}={name}" for group, name in chosen.items()),
        *line.get("overrides", []),
        *job.get("overrides", []),
    ]
    status, output, errors = dmqbench(store, *overrides)
    assert status == 0, errors
    return json.loads((result_folder(output) / "result.json").read_text()), overrides


def test_every_method_has_a_line():
    assert {line["method"] for line in LINES} == {path.stem for path in (CONF / "method").glob("*.yaml")} - NO_METHODS


@pytest.mark.parametrize("line", LINES, ids=lambda line: line["method"])
def test_a_method_gains_what_it_is_to_gain(shared_store, line):
    baseline, _ = finished(shared_store, line, line["baseline"])
    result, asked = finished(shared_store, line, {})
    decibels, least = (found["metrics"]["psnr"]["value"] for found in (result, baseline))
    assert decibels - least >= line["least_gain"], (decibels, least)
    stages = yaml.safe_load((CONF / "method" / f"{line['method']}.yaml").read_text())["stages"]
    assert [part["stage"] for part in result["calibration"]] == ["trajectories", *stages]

    before = content(shared_store)
    status, output, errors = dmqbench(shared_store, *asked)
    assert (status, result_folder(output).name) == (0, result["job_id"]), errors
    assert content(shared_store) == before
