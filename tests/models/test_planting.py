"""Outliers planted into models: what changes, what does not, and what is refused."""

import math

import pytest
import torch
from e2e.commands import FEW, dmqbench, result_folder
from safetensors.torch import load_file
from tiny import dit, flux, inputs, pixart, save_pipeline, sd3, smallest_unet, text_unet, unet

from dmqbench.config.compose import compose
from dmqbench.config.errors import ConfigError
from dmqbench.config.job import make_job
from dmqbench.models.adapter import load_adapter
from dmqbench.models.equivalence_table import found_in
from dmqbench.models.folders import ModelSource
from dmqbench.models.hooks import hooked
from dmqbench.models.planted import Planted
from dmqbench.models.planting import plant_
from dmqbench.store.files import load_json

MODULATED = (dit, sd3, flux)
"""Networks whose norms are modulated: 1 + scale is rounded once more."""


@torch.no_grad()
def output(network):
    args, kwargs = inputs(network)
    return network(*args, **kwargs)[0]


def digits():
    return load_adapter(ModelSource("embedded", "digits")).network


@pytest.mark.parametrize("build", [digits, unet, text_unet, dit, pixart, sd3, flux])
def test_doses_change_no_bit_if_they_are_powers_of_two_and_little_otherwise(build):
    expected = output(build())
    kinds = dict.fromkeys(place.kind for place in found_in(build())[0])
    for dose in (32.0, 0.125, 3.0):
        for where in [(), *((kind,) for kind in kinds)]:
            network = build()
            counts = plant_(network, Planted(dose, 0.25, where))
            assert counts
            exact = math.log2(dose).is_integer() and not (build in MODULATED and where in ((), ("norm",)))
            if exact:
                assert torch.equal(output(network), expected), (dose, where)
            else:
                most = float(expected.abs().max())
                torch.testing.assert_close(output(network), expected, rtol=1e-3, atol=1e-4 * most)


def seen_by(network, layer):
    found = []
    with hooked({"": network.get_submodule(layer)}, lambda _, __, args, ___: found.append(args[0])):
        output(network)
    return found[0]


def test_a_share_of_channels_has_the_dose_in_what_layers_read():
    layer = "mid_block.attentions.0.to_out.0"
    before, network = seen_by(unet(), layer), unet()
    counts = plant_(network, Planted(32.0, 0.1, ("value",), seed=1))
    assert counts["mid_block.attentions.0.value (value)"] == 3  # of 32
    ratio = (seen_by(network, layer) / before).nanmedian(0).values.nanmedian(0).values
    assert sorted(ratio.round().tolist()) == [1.0] * 29 + [32.0] * 3
    others = plant_(unet(), Planted(32.0, 1e-6, ("value",)))
    assert set(others.values()) == {1}


def test_the_seed_chooses_the_channels():
    states = []
    for seed in (0, 0, 1):
        network = unet()
        plant_(network, Planted(2.0, 0.25, ("group_norm",), seed))
        states.append(network.mid_block.attentions[0].group_norm.weight)
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_a_model_is_given_its_outliers_when_it_is_loaded():
    source = ModelSource("embedded", "digits", planted=Planted(16.0, where=("value",)))
    adapter, plain = load_adapter(source), load_adapter(ModelSource("embedded", "digits"))
    assert sum(adapter.planted.values()) > 0 == len(plain.planted)
    name = next(iter(adapter.planted)).removesuffix(".value (value)")
    own, other = (each.network.get_submodule(f"{name}.to_v").weight for each in (adapter, plain))
    assert set((own / other).flatten().unique().tolist()) == {1.0, 16.0}


# ---- in a job


def job(*overrides):
    return make_job(compose(["method=rtn", *overrides]))


def test_nothing_planted_is_nothing_said():
    plain, unplanted = job(), job("model.planted.seed=3", "model.planted.where=[value]")
    assert plain.config == unplanted.config and "planted" not in plain.config["model"]


def test_what_is_planted_is_said_by_kinds_and_names_the_model():
    planted = job("model.planted.dose=8").model
    assert planted.planted == Planted(8.0, where=("value", "group_norm"))
    assert planted.label == "digits, value+group_norm ×8"
    other = job("model.planted={dose:2,share:0.5,where:[group_norm],seed:1}").model
    assert other.label == "digits, group_norm ×2 of 0.5 seed 1"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("dose=0", "model.planted.dose=0.0 is out of range; nearest: 1.0 (allowed: 1/1024 to 1024)"),
        ("dose=nan", "model.planted.dose=nan is out of range; nearest: 1.0 (allowed: 1/1024 to 1024)"),
        ("share=0", "model.planted.share=0.0 is out of range; nearest: 1.0 (allowed: more than 0, up to 1)"),
        ("seed=-1", "model.planted.seed=-1 is too small; nearest: 0 (allowed: 0 and more)"),
        (
            "where=[values]",
            "model.planted.where=values is not known; nearest: value (allowed: norm, value, gate, group_norm)",
        ),
        ("where=[norm]", "model.planted.where=norm is nowhere in digits (allowed: value, group_norm)"),
    ],
)
def test_what_cannot_be_planted_is_refused_in_one_line(override, line):
    with pytest.raises(ConfigError) as caught:
        job("model.planted.dose=2", f"model.planted.{override}")
    assert str(caught.value) == line


def test_a_model_without_places_is_said_to_have_none():
    with pytest.raises(ConfigError, match="ladder_1 has no channels that can be rescaled exactly"):
        job("model=ladder_1", "model.planted.dose=2")


def test_a_planted_job_draws_the_same_full_precision_and_records_its_places(tmp_path):
    chunks, results = [], []
    folder = save_pipeline(tmp_path / "model", smallest_unet(class_entries=None))
    own = (*FEW, "model=local", f"model.path={folder}", "dataset=none", "metrics.names=[psnr]")
    for dose in (1, 64):
        status, printed, errors = dmqbench(tmp_path, *own, "method=rtn", f"model.planted.dose={dose}")
        assert status == 0, errors
        results.append(load_json(result_folder(printed) / "result.json"))
        chunks.append(load_file(tmp_path / "samples" / results[-1]["samples"]["fp"] / "chunk_00000.safetensors"))
    assert torch.equal(chunks[0]["images"], chunks[1]["images"])
    assert results[1]["metrics"]["psnr"]["value"] != results[0]["metrics"]["psnr"]["value"]
    assert results[1]["config"]["model"]["planted"]["where"]
    record = (tmp_path / "records" / f"{results[1]['job_id']}.jsonl").read_text()
    assert '"event": "planted"' in record and "(value)" in record
