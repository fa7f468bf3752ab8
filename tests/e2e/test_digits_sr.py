"""The embedded model for restoration: it restores held-out digits as its record says, and can be made again."""

import json
from dataclasses import asdict
from statistics import fmean

import pytest
import torch

from dmqbench.data.digits import load_split
from dmqbench.data.image_streams import own_streams
from dmqbench.data.images import to_signed, to_uint8
from dmqbench.eval.paired import psnr
from dmqbench.zoo.denoiser import WEIGHTS
from dmqbench.zoo.digits_sr import BATCH, NAME, OPTIMIZER, SHAPE, STEPS, degrade, restored, train_restorer

FOLDER = WEIGHTS / NAME
HELD_OUT = 64


def record() -> dict:
    return json.loads((FOLDER / "training.json").read_text())


def test_held_out_digits_are_restored_far_better_than_by_enlarging_them():
    truth = own_streams("digits").images["eval"][:HELD_OUT]
    assert torch.equal(truth, to_uint8(load_split()[1][0][:HELD_OUT]))
    found, bilinear = (
        fmean(psnr(images, truth)) for images in (restored(HELD_OUT), to_uint8(degrade(to_signed(truth))))
    )
    measured = record()["measured"]
    assert measured["held_out"] == 360
    assert found == pytest.approx(measured["psnr_truth"], abs=0.5)
    assert bilinear == pytest.approx(measured["psnr_truth_bilinear"], abs=0.5)
    assert found > bilinear + 8


def test_the_record_says_how_it_was_made():
    said = record()
    assert said["command"] == f"python -m dmqbench.zoo.{NAME} train --seed {said['seed']}"
    assert (said["steps"], said["batch"], said["optimizer"]) == (STEPS, BATCH, asdict(OPTIMIZER))
    losses = [loss for _, loss in said["loss"]]
    assert losses[-1] < losses[0] / 10
    [weights] = FOLDER.rglob("*.safetensors")
    assert weights.stat().st_size <= 2e6


def test_the_shipped_architecture_is_the_one_that_would_be_trained():
    shipped = json.loads((FOLDER / "unet" / "config.json").read_text())
    built = json.loads(SHAPE.build().to_json_string())
    own = {name: value for name, value in built.items() if not name.startswith("_")}
    assert own == {name: value for name, value in shipped.items() if not name.startswith("_")}
    assert (own["in_channels"], own["out_channels"], own["num_class_embeds"]) == (2, 1, None)


def test_training_again_gives_the_same_network():
    first, again, other = (train_restorer(seed, steps=2) for seed in (1, 1, 2))
    assert first.curve == again.curve != other.curve
    for ours, theirs in zip(first.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
