"""Packages of others bring methods to one store: each is answered with its own numbers."""

import importlib
import json
import sys
from pathlib import Path

import torch
from diffusers import DDIMPipeline, DDIMScheduler
from e2e import commands
from e2e.commands import FEW, SMALL, result_folder
from forks import forked
from plugin_packages import NETWORK, family_package, forget_plugins, method_package, the_one

from dmqbench import api
from dmqbench.cli import main
from dmqbench.config.compose import compose
from dmqbench.config.ids import job_ids
from dmqbench.config.job import make_job

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


def test_a_family_of_a_package_runs_through_commands_and_a_script(site, tmp_path):
    """Its network is of its own class, is called in its own words, and has blocks of its own."""
    family_package(site, "mine")
    the_one()
    networks = importlib.import_module("mine.networks")
    torch.manual_seed(0)
    pipe = DDIMPipeline(networks.TileNet(), DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path / "model")
    few = [word for word in FEW if word.startswith("budget.")]
    job = (*FEW, "model=local", f"model.path={tmp_path / 'model'}", "metrics.names=[psnr]", "method=q_diffusion")
    status, output, errors = commands.dmqbench(tmp_path / "runs", *job)
    assert status == 0, errors
    result = json.loads((result_folder(output) / "result.json").read_text())
    assert result["cost"]["quantized_layers"] == 4 and 15 < result["metrics"]["psnr"]["value"] < 100
    record = "".join(path.read_text() for path in (tmp_path / "runs").rglob("*.jsonl"))
    assert '"unit": "tiles.0"' in record and "tiles.0.first" not in record.replace("full_precision", "")

    def trajectories():
        the_one()
        return job_ids(make_job(compose(job)), "weights").trajectories

    before = trajectories()
    (tmp_path / "site" / "mine" / "networks.py").write_text(NETWORK + "# other code\n")
    assert trajectories() != before

    def drawn(pipe):
        generator = torch.Generator().manual_seed(0)
        return torch.from_numpy(pipe(batch_size=2, num_inference_steps=4, generator=generator, output_type="np").images)

    before = drawn(pipe)
    api.quantize_(pipe, "rtn", "w4a6", steps=4, ranges="step", store=tmp_path / "runs", overrides=few)
    quantized = drawn(pipe)
    assert 0 < (quantized - before).abs().max() < 0.5
    api.save(pipe, tmp_path / "saved")
    assert torch.equal(drawn(api.load(tmp_path / "saved")), quantized)
