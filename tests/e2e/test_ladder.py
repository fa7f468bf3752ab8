"""The rungs of the dose-response ladder: whole, trained as their records say, and of growing disparity."""

import json
from dataclasses import asdict
from functools import cache
from itertools import pairwise

import pytest

from dmqbench.anatomy.disparity import model_disparity
from dmqbench.zoo.ladder import RUNGS, layer_disparities, load_rung, recognised_share, rung_folder

TRAJECTORIES = 16


def record(number: int) -> dict:
    return json.loads((rung_folder(number) / "training.json").read_text())


@cache
def measured(number: int) -> dict[str, float]:
    """On half of the trajectories that the record was measured on, and other noise."""
    return layer_disparities(load_rung(number), TRAJECTORIES, seed=1)


@pytest.mark.parametrize("number", RUNGS)
def test_the_recorded_disparity_is_found_again_on_another_bank(number):
    said = record(number)["measured"]
    assert said["layers"].keys() == measured(number).keys()
    assert said["disparity"] == pytest.approx(model_disparity(said["layers"]), rel=1e-3)
    assert model_disparity(measured(number)) == pytest.approx(said["disparity"], rel=0.1)


def test_disparity_grows_from_rung_to_rung():
    found = [model_disparity(measured(number)) for number in RUNGS]
    assert all(high > 1.2 * low for low, high in pairwise(found)), found
    assert found[-1] > 8 * found[0], "the ladder spans too little"


@pytest.mark.parametrize("number", RUNGS)
def test_samples_are_digits(number):
    said = record(number)["measured"]["recognised"]
    assert said >= 0.85
    assert abs(recognised_share(load_rung(number), samples=64) - said) < 0.1


@pytest.mark.parametrize("number", RUNGS)
def test_the_record_is_of_the_rung_as_it_is_described(number):
    said, rung = record(number), RUNGS[number]
    assert said["command"] == f"python -m dmqbench.zoo.ladder train {number} --seed {said['seed']}"
    assert said["optimizer"] == asdict(rung.optimizer)
    assert (said["steps"], said["batch"]) == (rung.steps, rung.batch)
    losses = [loss for _, loss in said["loss"]]
    assert losses[-1] < losses[0] / 10
    [weights] = rung_folder(number).rglob("*.safetensors")
    assert weights.stat().st_size <= 2e6


def test_rungs_share_architecture_and_noise_schedule():
    for part in ("unet/config.json", "scheduler/scheduler_config.json", "model_index.json"):
        assert len({(rung_folder(number) / part).read_text() for number in RUNGS}) == 1, part
