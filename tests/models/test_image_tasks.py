"""Restoration and editing: how images reach a denoiser, as a condition or as a start."""

import numpy as np
import pytest
import torch
from tiny import CLASSES, autoencoder, save_pipeline, unet, vq_autoencoder
from workbench import SCHEDULE, adapter_of, sampler

from dmqbench.anatomy.recorded import predict
from dmqbench.data.degradation import super_resolution_condition
from dmqbench.data.image_streams import ImageStreams
from dmqbench.data.images import to_signed, to_uint8
from dmqbench.data.noise import initial_noise
from dmqbench.models.adapter import Adapter, load_adapter
from dmqbench.models.conditioning import ClassConditioner, LatentDecoder, PixelDecoder, Unconditional
from dmqbench.models.families import family_of
from dmqbench.models.folders import ModelError, ModelSource
from dmqbench.models.foreign import load_foreign_adapter
from dmqbench.models.image_tasks import CleanStates, OfImages, edit_images_, restore_images_
from dmqbench.models.rollout import Denoising

FACTOR = 4


def streams(labels: bool = True, size: int = 8, count: int = 5) -> ImageStreams:
    generator = torch.Generator().manual_seed(3)
    names = ("cal", "val", "eval")
    images = {name: torch.randint(0, 256, (count, 1, size, size), generator=generator).byte() for name in names}
    return ImageStreams(images, {name: torch.arange(count) + 3 for name in names} if labels else None)


def restorer(classes: int | None = None, images: ImageStreams | None = None) -> Adapter:
    """A network of one state channel and one channel of condition, restoring ``images``."""
    network = unet(in_channels=2, class_entries=None if classes is None else classes + 1)
    adapter = Adapter(
        network,
        sample_shape=(1, 8, 8),
        schedule=SCHEDULE,
        prediction="epsilon",
        conditioner=Unconditional() if classes is None else ClassConditioner(classes, classes),
        decoder=PixelDecoder(),
    )
    restore_images_(adapter, images or streams(), FACTOR, classes)
    return adapter


# ---- restoration


def test_the_condition_image_is_read_behind_the_state():
    adapter, x, t = restorer(), torch.randn(3, 1, 8, 8), torch.tensor([10, 20, 30])
    cond = adapter.conditioner.conditions("cal", 0, [0, 1, 2])
    expected = super_resolution_condition(streams().signed("cal", [0, 1, 2]), FACTOR)
    assert torch.allclose(cond["image"], expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        found = adapter.denoise(x, t, cond, torch.zeros(3, dtype=torch.long))
        by_hand = adapter.network(torch.cat([x, cond["image"]], dim=1), t).sample
    assert torch.equal(found, by_hand)
    assert found.shape == x.shape


def test_a_condition_does_not_depend_on_its_batch():
    conditioner = restorer().conditioner
    alone = torch.cat([conditioner.conditions("eval", 0, [index])["image"] for index in range(7)])
    assert torch.equal(conditioner.conditions("eval", 0, range(7))["image"], alone)
    assert torch.equal(alone[5], alone[0])


def test_the_bank_keeps_the_condition_and_the_network_sees_it_again():
    plan = sampler()
    denoising = Denoising(restorer(), plan)
    bank = denoising.follow(stream="cal", seed=0, indices=range(3))
    assert bank.cond["image"].shape == (3, 1, 8, 8)
    for call in range(plan.network_calls):
        assert torch.allclose(predict(denoising, bank, range(3), call), bank.output[:, call], rtol=0, atol=1e-6)


def test_layers_and_their_inputs_are_found_with_the_condition():
    first = restorer().topology().first
    assert first.weight_shape[1] == 2
    assert first.boundaries == ()


def test_guidance_takes_the_class_away_and_leaves_the_image():
    adapter, x, step = restorer(CLASSES), torch.randn(2, 1, 8, 8), torch.zeros(2, dtype=torch.long)
    cond = adapter.conditioner.conditions("eval", 0, [0, 1])
    assert cond["class_labels"].tolist() == [3, 4]
    without = cond | {"class_labels": torch.tensor([CLASSES, CLASSES])}
    with torch.no_grad():
        guided = adapter.denoise(x, 500, cond, step, guidance=2.0)
        with_class, null = (adapter.denoise(x, 500, each, step) for each in (cond, without))
    assert torch.allclose(guided, null + 2 * (with_class - null), rtol=0, atol=1e-5)


def test_without_a_class_there_is_no_guidance():
    adapter = restorer()
    cond = adapter.conditioner.conditions("eval", 0, [0])
    with pytest.raises(ValueError, match="guidance"):
        adapter.denoise(torch.zeros(1, 1, 8, 8), 0, cond, torch.zeros(1, dtype=torch.long), guidance=2.0)


def test_what_is_shown_is_what_the_network_is_given():
    conditioner = restorer().conditioner
    assert isinstance(conditioner, OfImages)
    assert torch.equal(conditioner.shown([0, 6]), to_uint8(conditioner.conditions("eval", 0, [0, 6])["image"]))


def test_only_a_declared_condition_excuses_more_input_than_output_channels(tmp_path):
    config = {"_class_name": "UNet2DModel", "in_channels": 2, "out_channels": 1, "sample_size": 8}
    with pytest.raises(ModelError, match=r"2 input and 1 output channels.*model\.condition") as caught:
        family_of(config)
    assert "\n" not in str(caught.value)
    spec = family_of(config, 1)
    assert (spec.sample_shape, spec.input_shape, spec.learned_variance) == ((1, 8, 8), (2, 8, 8), False)
    with pytest.raises(ModelError, match="input and"):
        family_of(config | {"out_channels": 3}, 1)
    folder = str(save_pipeline(tmp_path, unet(in_channels=2, class_entries=None)))
    with pytest.raises(ModelError, match="2 input and 1 output channels"):
        load_adapter(ModelSource("local", folder))
    assert load_adapter(ModelSource("local", folder, condition_channels=1)).sample_shape == (1, 8, 8)


def test_a_foreign_network_takes_the_same_images(tmp_path):
    folder = save_pipeline(tmp_path / "theirs", unet(1, in_channels=2, class_entries=None))
    base = restorer()
    foreign = load_foreign_adapter(folder, base)
    cond = base.conditioner.conditions("eval", 0, [0, 1])
    found = foreign.conditioner.conditions("eval", 0, [0, 1])
    assert torch.equal(found["image"], cond["image"])
    plan = sampler()
    ours, theirs = (Denoising(each, plan).sample_chunk(0, chunk=2, seed=0).state for each in (base, foreign))
    assert not torch.equal(ours, theirs)
    edited = adapter_of(unet())
    edit_images_(edited, streams(), CLASSES)
    whole = save_pipeline(tmp_path / "whole", unet(1))
    assert load_foreign_adapter(whole, edited).start is edited.start


# ---- editing


def test_editing_starts_from_the_noised_image():
    adapter, plan = adapter_of(unet()), sampler(steps=4, strength=0.5)
    edit_images_(adapter, streams(), CLASSES)
    first = next(Denoising(adapter, plan).rollout(stream="eval", seed=9, indices=[0, 1, 7]))
    assert len(plan.timesteps) == 2
    alpha = float(SCHEDULE.alphas_cumprod()[plan.timesteps[0]])
    noise = initial_noise("eval", 9, [0, 1, 7], (1, 8, 8))
    clean = to_signed(streams().images["eval"][[0, 1, 2]])
    assert torch.allclose(first.before.x, alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise, rtol=0, atol=1e-6)


def test_an_edited_image_keeps_its_own_label_and_others_take_turns():
    known, unknown = adapter_of(unet()), adapter_of(unet())
    edit_images_(known, streams(), CLASSES)
    edit_images_(unknown, streams(labels=False), CLASSES)
    assert known.conditioner.conditions("cal", 0, [0, 1, 5])["class_labels"].tolist() == [3, 4, 3]
    assert unknown.conditioner.conditions("cal", 0, [0, 1, 15])["class_labels"].tolist() == [0, 1, 5]
    assert known.conditioner.null(known.conditioner.conditions("cal", 0, [0]))["class_labels"].tolist() == [CLASSES]


def test_a_weaker_edit_stays_closer_to_the_image():
    adapter = adapter_of(unet())
    edit_images_(adapter, streams(), CLASSES)
    clean = adapter.start("eval", range(4))
    distances = []
    for strength in (0.1, 0.5, 1.0):
        chunk = Denoising(adapter, sampler(steps=10, strength=strength)).sample_chunk(0, chunk=4, seed=0)
        distances.append(float((chunk.state - clean).square().mean()))
    assert distances == sorted(distances)


@pytest.mark.parametrize("build", [autoencoder, vq_autoencoder])
def test_a_latent_model_edits_the_latent_of_the_image(build):
    network = build()
    decoder = LatentDecoder(network, 0.5)
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        encoded = network.encode(images)
        expected = encoded.latents if build is vq_autoencoder else encoded.latent_dist.mean
    assert torch.allclose(decoder.encode(images), 0.5 * expected, rtol=0, atol=1e-6)
    pixels = {"eval": to_uint8(images)}
    start = CleanStates(ImageStreams(pixels), decoder)("eval", range(3))
    assert start.shape == (3, 4, 8, 8)
    assert np.allclose(start, decoder.encode(to_signed(pixels["eval"])), rtol=0, atol=1e-5)
