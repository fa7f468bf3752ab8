"""A network from elsewhere is a method like others: sampled with the job's sampler, compared with full precision."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dmqbench.config.compose import compose
from dmqbench.config.errors import ConfigError
from dmqbench.config.ids import job_ids
from dmqbench.config.job import make_job
from dmqbench.config.model_facts import weights_hash
from dmqbench.eval.protocol import entries_of
from dmqbench.models.folders import CONFIG, EMBEDDED, WEIGHTS
from dmqbench.store.artifacts import Store
from dmqbench.tasks.run import carry_out as run_job

SMALL = [
    *("sampler.steps=2", "sampler.chunk=10", "metrics.samples=10", "metrics.pairs=10"),
    *("budget.trajectories=10", "budget.validation=4", "metrics.names=[psnr,mse]", "tracker.mode=disabled"),
]


def network(folder: Path, levels: int | None) -> Path:
    """The network of digits, every weight rounded to ``levels`` steps of its largest value, or as it is."""
    folder.mkdir()
    unet = EMBEDDED / "digits" / "unet"
    (folder / CONFIG).write_bytes((unet / CONFIG).read_bytes())
    weights = load_file(unet / WEIGHTS)
    if levels is not None:
        for name, weight in weights.items():
            step = weight.abs().max() / levels
            weights[name] = (weight / step).round() * step if weight.ndim > 1 else weight
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    return folder


def job_on(folder: Path, store: Path, *overrides: str):
    return make_job(compose(["method=foreign", f"method.path={folder}", f"store.root={store}", *SMALL, *overrides]))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("store")


def ran(job) -> dict:
    return json.loads((run_job(job) / "result.json").read_text())


def test_its_samples_are_compared_with_full_precision(tmp_path, store):
    coarse, fine = (ran(job_on(network(tmp_path / str(levels), levels), store)) for levels in (7, 127))
    for result in (coarse, fine):
        assert (result["method"], result["bits"], result["scope"]) == ("foreign", "unknown", "unknown")
        entries = entries_of(result["metrics"]["psnr"]["protocol"])
        assert (entries["sampler"], entries["scope"], entries["engine"]) == ("ddim", "unknown", "unknown")
        assert result["metrics"]["mse"]["value"] > 0
        assert result["cost"]["size_mib"]["packed"] > 1
    assert coarse["samples"]["fp"] == fine["samples"]["fp"]
    assert coarse["name"] == "7"
    assert fine["metrics"]["psnr"]["value"] > coarse["metrics"]["psnr"]["value"] + 10  # 20 log10(127/7) = 25 dB


def test_the_networks_own_weights_give_the_samples_of_full_precision(tmp_path, store):
    result = ran(job_on(network(tmp_path / "same", None), store))
    assert result["metrics"]["psnr"]["exact"] is True
    chunks = [
        load_file(Store(store).path("samples", id) / "chunk_00000.safetensors") for id in result["samples"].values()
    ]
    assert torch.equal(chunks[0]["state"], chunks[1]["state"])


def test_its_samples_are_named_by_its_content_and_by_nothing_of_bits_or_calibration(tmp_path, store):
    folders = [network(tmp_path / "a", 7), network(tmp_path / "b", 7), network(tmp_path / "c", 5)]
    weights = weights_hash(job_on(folders[0], store).model)
    same, copy, other = (job_ids(job_on(folder, store), weights).samples for folder in folders)
    assert same == copy != other
    for override in ("bits=w8a8", "seed=3", "bits.scope=paper", "budget.samples=64"):
        assert job_ids(job_on(folders[0], store, override), weights).samples == same
    assert job_ids(job_on(folders[0], store, "metrics.seed=3"), weights).samples != same


def test_a_path_is_needed_and_must_hold_a_network_that_fits(tmp_path, store):
    with pytest.raises(ConfigError, match=r"method\.path=null must be given"):
        make_job(compose(["method=foreign"]))
    with pytest.raises(ConfigError, match=r"no config\.json"):
        job_on(tmp_path, store)
    folder = network(tmp_path / "net", None)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"sample_size": 32}))
    with pytest.raises(ConfigError, match="sample_size is 32, and 16"):
        job_on(folder, store)
