"""Conditions as functions of (stream, seed, index), and states to images."""

import numpy as np
import pytest
import torch
from tiny import autoencoder, vq_autoencoder
from workbench import text_conditioner

from dmqbench.models.conditioning import (
    ClassConditioner,
    LatentDecoder,
    PixelDecoder,
    Unconditional,
)


def test_evaluation_labels_go_in_turn_and_depend_on_nothing_else():
    labels = ClassConditioner(10).conditions("eval", 7, range(5, 27))["class_labels"]
    assert labels.tolist() == [index % 10 for index in range(5, 27)]
    assert labels.dtype == torch.long


@pytest.mark.parametrize("stream", ["cal", "val"])
def test_calibration_labels_are_drawn_per_index(stream):
    conditioner = ClassConditioner(10)
    labels = conditioner.conditions(stream, 0, range(200))["class_labels"]
    assert set(labels.tolist()) == set(range(10))
    assert torch.equal(conditioner.conditions(stream, 0, [150, 3])["class_labels"], labels[[150, 3]])
    assert not torch.equal(conditioner.conditions(stream, 1, range(200))["class_labels"], labels)


def test_the_null_label_replaces_every_label():
    null = ClassConditioner(10, null_label=10).null({"class_labels": torch.tensor([3, 4])})
    assert null["class_labels"].tolist() == [10, 10]


@pytest.mark.parametrize("conditioner", [Unconditional(), ClassConditioner(10)])
def test_models_that_cannot_be_guided_say_so(conditioner):
    cond = conditioner.conditions("eval", 0, range(2))
    with pytest.raises(ValueError, match=r"sampler\.guidance=1"):
        conditioner.null(cond)


def test_text_conditions_are_the_prompts_of_their_stream():
    cal, evaluation, null = torch.randn(3, 5, 12), torch.randn(4, 5, 12), torch.randn(5, 12)
    conditioner = text_conditioner({"cal": cal, "eval": evaluation}, null)
    cond = conditioner.conditions("eval", 0, [2, 0])
    assert torch.equal(cond["encoder_hidden_states"], evaluation[[2, 0]])
    assert torch.equal(conditioner.conditions("cal", 5, [2])["encoder_hidden_states"], cal[[2]])
    assert torch.equal(conditioner.null(cond)["encoder_hidden_states"], torch.stack([null, null]))


@pytest.mark.parametrize(
    "conditioner",
    [
        Unconditional(),
        ClassConditioner(4),
        text_conditioner({"eval": torch.ones(3, 5, 12)}, torch.ones(5, 12)),
    ],
)
def test_examples_have_the_shapes_of_real_conditions(conditioner):
    real, example = conditioner.conditions("eval", 0, range(3)), conditioner.example(3, "cpu")
    assert {name: (value.shape, value.dtype) for name, value in real.items()} == {
        name: (value.shape, value.dtype) for name, value in example.items()
    }


def test_pixels_become_bytes_rounded_half_to_even():
    levels = torch.arange(256, dtype=torch.float64)
    assert torch.equal(
        PixelDecoder().decode((levels / 127.5 - 1).float().view(1, 1, 16, 16)).flatten(),
        levels.to(torch.uint8),
    )
    values = torch.linspace(-1.5, 1.5, 64)
    expected = np.rint((np.clip(values.numpy(), -1, 1) + 1) / 2 * 255).astype(np.uint8)
    assert PixelDecoder().decode(values.view(1, 1, 8, 8)).flatten().tolist() == expected.tolist()


@pytest.mark.parametrize("build", [autoencoder, vq_autoencoder])
def test_latents_are_divided_by_the_scaling_factor(build):
    network = build()
    state = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)) / 16  # as large as the codes are
    images = LatentDecoder(network, 0.5).decode(state)
    assert (images.dtype, images.shape) == (torch.uint8, (2, 3, 16, 16))
    with torch.no_grad():
        pixels = network.decode(2 * state).sample
    assert torch.equal(images, PixelDecoder().decode(pixels))
    assert not torch.equal(images, LatentDecoder(network, 1.0).decode(state))
