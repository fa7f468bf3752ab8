"""What a job makes does not depend on what was in the store before, nor on the order in which it is made."""

import json
import shutil
import weakref
from functools import partial

import pytest
from e2e.commands import FEW
from safetensors.torch import load_file
from tiny import save_pipeline, smallest_unet

from dmqbench.config.compose import compose
from dmqbench.config.job import make_job
from dmqbench.models.adapter import load_adapter
from dmqbench.store.artifacts import Store
from dmqbench.tasks import workshop
from dmqbench.tasks.run import carry_out as run_job
from dmqbench.tasks.trajectories import bank_of
from dmqbench.tasks.workshop import Workshop

JOB = (
    *FEW,
    "metrics.names=[psnr]",
    "metrics.samples=32",
    "metrics.pairs=32",
    "sampler.steps=2",
    "sampler.chunk=32",
    "budget.trajectories=16",
)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Overrides of a network with few layers."""
    folder = save_pipeline(tmp_path_factory.mktemp("run") / "model", smallest_unet())
    return ("model=local", f"model.path={folder}", "model.classes=10")


@pytest.fixture
def job(tmp_path, network):
    def make(*overrides: str, model: tuple[str, ...] = network):
        own = (f"store.root={tmp_path / 'runs'}", "method=rtn", "bits=w4a6")
        return make_job(compose([*JOB, *model, *own, *overrides]))

    return make


def states(store, kind):
    return {path.name: load_file(path) for path in sorted(store.glob(f"{kind}/*/*.safetensors"))}


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    return all((ours[file][name] == theirs[file][name]).all() for file in ours for name in ours[file])


def test_trajectories_that_were_lost_come_back_with_the_same_bits(job, tmp_path):
    small, more = (job("metrics.samples=32", "diagnose=false"), job("metrics.samples=64", "diagnose=true"))
    run_job(small)
    store = tmp_path / "runs"
    before = states(store, "trajectories")
    shutil.rmtree(store / "trajectories")
    run_job(more)  # draws samples too, for which layers are exchanged
    assert same(states(store, "trajectories"), before)


def test_trajectories_are_the_same_whether_layers_were_exchanged_before_or_not(job):
    shop = Workshop(job(), Store(job().store_root))
    store = shop.store.root
    bank_of(shop)
    before = states(store, "trajectories")
    shutil.rmtree(store / "trajectories")
    _ = shop.quantized
    bank_of(shop)
    assert same(states(store, "trajectories"), before)


def test_a_diagnosis_changes_no_sample(job, tmp_path):
    run_job(job("metrics.samples=32", "diagnose=true"))
    store = tmp_path / "runs"
    with_diagnosis = states(store, "samples")
    shutil.move(store, tmp_path / "first")
    run_job(job("metrics.samples=32", "diagnose=false"))
    assert same(states(store, "samples"), with_diagnosis)


def test_a_network_is_let_go_of_before_another_is_loaded(job, monkeypatch):
    """For the floors, which are of a model whose layers nobody has exchanged."""
    loaded = []

    def load(*args, **kwargs):
        assert all(network() is None for network in loaded)
        adapter = load_adapter(*args, **kwargs)
        loaded.append(weakref.ref(adapter.network))
        return adapter

    monkeypatch.setattr(workshop, "load_adapter", load)
    run_job(job("diagnose=true"))
    assert len(loaded) == 2


@pytest.mark.parametrize("change", [{"version": 0}, {"bank": "another"}])
def test_a_diagnosis_of_another_version_or_bank_is_made_again(job, change):
    folder = run_job(job("metrics.samples=32", "diagnose=true"))
    made = json.loads((folder / "diagnosis.json").read_text())
    Store(job().store_root).replace_files("result", folder.name, {"diagnosis.json": json.dumps(made | change)})
    run_job(job("metrics.samples=32", "diagnose=true"))
    assert json.loads((folder / "diagnosis.json").read_text()) == made


def test_a_metric_that_is_no_longer_to_be_had_leaves_the_latest_answers_but_not_the_records(job):
    job = partial(job, model=("model=ladder_1",))  # whose images the metric is of
    folder = run_job(job("metrics.samples=32", "metrics.names=[psnr,fd_digits]", "metrics.pairs=16"))
    assert "fd_digits" in json.loads((folder / "result.json").read_text())["unavailable"]
    run_job(job("metrics.samples=128", "metrics.names=[fd_digits]"))
    assert "fd_digits" in json.loads((folder / "result.json").read_text())["metrics"]
    run_job(job("metrics.samples=32", "metrics.names=[fd_digits]"))
    result = json.loads((folder / "result.json").read_text())
    assert "fd_digits" not in result["metrics"]
    assert "psnr" in result["metrics"]
    assert {record["metric"] for record in result["records"]} == {"psnr", "fd_digits"}
