"""The embedded model itself: its samples are recognised, what is shipped is whole, and training can be repeated."""

import json

import pytest
import torch

from dmqbench.data.digits import load_split
from dmqbench.data.images import to_signed
from dmqbench.eval.digit_classifier import CLASSIFIER, digit_classifier, recognised
from dmqbench.models.adapter import load_adapter
from dmqbench.models.folders import ModelSource
from dmqbench.models.rollout import Denoising
from dmqbench.samplers.plan import build_plan
from dmqbench.samplers.spec import SamplerSpec
from dmqbench.zoo.denoiser import UNetShape, save_denoiser, train_denoiser
from dmqbench.zoo.digits import MODEL, SHAPE
from dmqbench.zoo.training import Optimizer


def test_samples_are_recognised_as_the_digit_that_was_asked_for():
    adapter = load_adapter(ModelSource("embedded", "digits", classes=10))
    denoising = Denoising(adapter, build_plan(SamplerSpec("ddim", 10), adapter.schedule))
    images = torch.cat([denoising.sample_chunk(i, chunk=40, seed=0).images for i in range(4)])
    found = recognised(digit_classifier(), to_signed(images), torch.arange(len(images)) % 10)
    assert found.float().mean() >= 0.98


def test_the_classifier_is_as_accurate_as_its_record_says():
    record = json.loads(CLASSIFIER.with_suffix(".json").read_text())
    accuracy = recognised(digit_classifier(), *load_split()[1]).float().mean().item()
    assert accuracy >= 0.98
    assert abs(accuracy - record["held_out_accuracy"]) < 0.005


def test_weights_are_small_and_come_with_command_seed_and_curve():
    [weights] = MODEL.rglob("*.safetensors")
    assert weights.stat().st_size <= 8e6
    record = json.loads((MODEL / "training.json").read_text())
    assert {"command", "seed", "steps", "loss"} <= record.keys()
    losses = [loss for _, loss in record["loss"]]
    assert losses[-1] < losses[0] / 10


def test_the_shipped_architecture_is_the_one_that_would_be_trained():
    shipped = json.loads((MODEL / "unet" / "config.json").read_text())
    built = json.loads(SHAPE.build().to_json_string())
    assert {name: value for name, value in built.items() if not name.startswith("_")} == {
        name: value for name, value in shipped.items() if not name.startswith("_")
    }


def test_training_again_gives_the_same_network_and_what_is_saved_is_loaded(tmp_path):
    shape = UNetShape(channels=(8, 8), layers=1, attention=(False, False), groups=4)
    first, again = (train_denoiser(shape, Optimizer(), steps=3, batch=4, seed=1) for _ in range(2))
    other = train_denoiser(shape, Optimizer(weight_decay=0.1), steps=3, batch=4, seed=1)
    assert first.curve == again.curve
    assert first.curve[0] == other.curve[0] and first.curve[1:] != other.curve[1:]
    save_denoiser(tmp_path, first, seed=1)
    adapter = load_adapter(ModelSource("local", str(tmp_path), classes=10))
    for name, weight in again.network.state_dict().items():
        torch.testing.assert_close(adapter.network.state_dict()[name], weight, rtol=0, atol=0)
    assert json.loads((tmp_path / "training.json").read_text())["seed"] == 1


def test_decay_turns_the_step_of_kernels_and_of_nothing_else():
    """Adam's first step is the learning rate times the sign of the gradient, to which decay adds λ times the kernel."""
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.Linear(1, 1))
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, 2.0)
        parameter.grad = torch.full_like(parameter, -0.25)
    Optimizer(learning_rate=0.1, weight_decay=0.5).build(network).step()
    after = {name: parameter.item() for name, parameter in network.named_parameters()}
    assert after == pytest.approx({"0.weight": 1.9, "0.bias": 2.1, "1.weight": 2.1, "1.bias": 2.1})


def test_a_shape_says_of_every_resolution_whether_it_attends():
    with pytest.raises(ValueError, match="attention"):
        UNetShape(channels=(8, 8), layers=1, attention=(False,), groups=4)
