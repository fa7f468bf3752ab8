"""The embedded model itself: its samples are recognised, and what is shipped is whole."""

import json

import torch

from dmqbench.eval.generate import sample_chunk
from dmqbench.images import to_signed
from dmqbench.models.adapter import load_adapter
from dmqbench.models.folders import ModelSource
from dmqbench.samplers.plan import build_plan
from dmqbench.samplers.spec import SamplerSpec
from dmqbench.zoo.classifier import recognised
from dmqbench.zoo.digits import CLASSIFIER, MODEL, digit_classifier
from dmqbench.zoo.digits_data import load_split


def test_samples_are_recognised_as_the_digit_that_was_asked_for():
    adapter = load_adapter(ModelSource("embedded", "digits", classes=10))
    plan = build_plan(SamplerSpec("ddim", 20), adapter.schedule)
    images = torch.cat([sample_chunk(adapter, plan, i, chunk=32, seed=0, guidance=1.0).images for i in range(10)])
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
