"""Weights that their configuration does not make are refused before anything runs: one line, status 2, for all jobs."""

import json
import re
import shutil
import sys
import types

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import autoencoder, save_pipeline, small_unet

from dmqbench import cli
from dmqbench.models.folders import CONFIG, WEIGHTS

NETWORK = f"unet/{WEIGHTS}"
CHANNELS = {"in_channels": 4, "out_channels": 4}


def rewritten(name, change):
    def rewrite(folder):
        weights = load_file(folder / name)
        change(weights)
        save_file(weights, folder / name, {"format": "pt"})

    return rewrite


def configured(part, **changes):
    def edit(folder):
        path = folder / part / CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


MISFITS = {
    "missing": (
        rewritten(NETWORK, lambda w: w.pop("conv_in.bias")),
        "lacks 1 of the network's weights, the first is conv_in.bias",
    ),
    "unknown": (rewritten(NETWORK, lambda w: w.update(stray=torch.zeros(1))), "has unknown 1 .* stray"),
    "another shape": (
        rewritten(NETWORK, lambda w: w.update({"conv_in.bias": torch.zeros(3)})),
        "misfits 1 .* conv_in.bias",
    ),
    "another width": (configured("unet", block_out_channels=[16]), r"misfits \d+ of the network's weights"),
    "another depth": (configured("unet", layers_per_block=2), r"lacks \d+ of the network's weights"),
    "fewer labels": (configured("unet", num_class_embeds=5), "misfits 1 .* class_embedding.weight"),
    "a decoder that lacks one": (
        rewritten(f"vae/{WEIGHTS}", lambda w: w.pop("decoder.conv_in.bias")),
        "vae: the checkpoint lacks 1 .* decoder.conv_in.bias",
    ),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original") / "model"
    return save_pipeline(folder, small_unet(**CHANNELS), autoencoder())


@pytest.fixture
def started(monkeypatch, tmp_path):
    """The jobs that were started, of which nothing is computed."""
    jobs = []
    for task in ("run", "plan"):
        module = types.ModuleType(f"dmqbench.tasks.{task}")
        module.carry_out = jobs.append  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("DMQBENCH_RUNS", str(tmp_path / "runs"))
    return jobs


def command(folder, *more):
    own = ("model=local", f"model.path={folder}", "metrics.names=[psnr]", "trainer=cpu")
    return cli.main(["-m", "method=fp", *own, *more])


@pytest.mark.parametrize("misfit", MISFITS)
def test_every_misfit_is_found_before_the_first_job_of_a_sweep(original, started, capsys, tmp_path, misfit):
    change, said = MISFITS[misfit]
    wrong = tmp_path / "wrong"
    shutil.copytree(original, wrong)
    change(wrong)
    for more in ([], ["task=plan"]):
        assert command(f"{original},{wrong}", *more) == 2
        [line] = capsys.readouterr().err.strip().splitlines()
        assert re.search(said, line)
        assert str(wrong) in line
    assert started == []


def test_weights_that_fit_run(original, started):
    assert command(original, "task=plan") == 0
    assert len(started) == 1


def test_a_network_made_elsewhere_must_fit_too(started, capsys, tmp_path):
    save_pipeline(tmp_path / "base", small_unet())
    small_unet(seed=1).save_pretrained(tmp_path / "theirs")
    job = ("model=local", f"model.path={tmp_path / 'base'}", "metrics.names=[psnr]", "trainer=cpu", "task=plan")
    arguments = ["method=foreign", f"method.path={tmp_path / 'theirs'}", *job]
    assert cli.main(arguments) == 0
    weights = load_file(tmp_path / "theirs" / WEIGHTS)
    del weights["conv_in.bias"]
    save_file(weights, tmp_path / "theirs" / WEIGHTS, {"format": "pt"})
    assert cli.main(arguments) == 2
    assert "theirs: the checkpoint lacks 1" in capsys.readouterr().err
    assert len(started) == 1
