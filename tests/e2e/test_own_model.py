"""A user's own diffusers folder as the model, and one that is damaged."""

import json
import re

import pytest
from e2e.commands import SMALL, dmqbench, result_folder
from tiny import save_pipeline, unet

from dmqbench.config.compose import compose
from dmqbench.config.errors import ConfigError
from dmqbench.config.ids import job_ids
from dmqbench.config.job import make_job
from dmqbench.config.model_facts import weights_hash
from dmqbench.models.adapter import load_adapter

OWN = (
    *SMALL,
    "model=local",
    "metrics.names=[psnr,mse]",
    "metrics.samples=32",
    "sampler.chunk=16",
    "method=rtn",
    "bits=w8a8",
)


def test_a_folder_of_ones_own(tmp_path):
    folder = save_pipeline(tmp_path / "mine", unet(class_entries=None))
    status, output, errors = dmqbench(tmp_path / "runs", *OWN, f"model.path={folder}")
    assert status == 0, errors
    result = json.loads((result_folder(output) / "result.json").read_text())
    assert result["metrics"]["psnr"]["value"] > 20
    assert result["cost"]["skip_layers"] > 0


def test_a_truncated_checkpoint_is_one_line(tmp_path):
    folder = save_pipeline(tmp_path / "mine", unet(class_entries=None))
    [weights] = folder.rglob("diffusion_pytorch_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    status, _, errors = dmqbench(tmp_path / "runs", *OWN, f"model.path={folder}")
    assert status == 2
    assert len(errors.strip().splitlines()) == 1
    assert str(weights) in errors


def test_the_folder_of_the_network_alone_is_given_its_scheduler(tmp_path):
    network = unet(class_entries=None)
    folder = save_pipeline(tmp_path / "mine", network, beta_end=0.01)
    alone = (*OWN, f"model.path={folder / 'unet'}")
    status, _, errors = dmqbench(tmp_path / "runs", *alone)
    assert status == 2
    assert "name one with model.scheduler; " in errors
    assert errors.strip().endswith(f"{folder}, the folder around it, has one")

    status, output, errors = dmqbench(tmp_path / "runs", *alone, f"model.scheduler={folder}")
    assert status == 0, errors
    result = json.loads((result_folder(output) / "result.json").read_text())
    assert result["config"]["model"]["scheduler"] == str(folder)

    other = save_pipeline(tmp_path / "other", network) / "scheduler"
    within, file = f"{folder / 'scheduler'}", f"{other / 'scheduler_config.json'}"
    jobs = [make_job(compose([*alone, f"model.scheduler={given}"])) for given in (folder, within, file)]
    assert [job.calibration_sampler for job in jobs] == [jobs[0].calibration_sampler] * 3
    ids = [job_ids(job, weights_hash(job.model)).trajectories for job in jobs]
    assert ids[0] == ids[1] == result["artifacts"]["trajectories"]
    assert ids[2] != ids[0]
    assert load_adapter(jobs[1].model.checkpoint).schedule.beta_end == 0.01


@pytest.mark.parametrize(
    ("model", "given", "problem"),
    [
        (("model=digits",), "nowhere", "cannot be used: nowhere: no scheduler_config.json there nor in scheduler/"),
        (("model=sd14", "task=cost"), "nowhere", "changes nothing for sd14's shapes (allowed: null)"),
    ],
)
def test_a_scheduler_that_cannot_be_used(model, given, problem):
    with pytest.raises(ConfigError, match=re.escape(f"model.scheduler={given} {problem}")):
        make_job(compose([*model, "method=rtn", "bits=w8a8", f"model.scheduler={given}"]))
