"""One way to call any denoiser: conditions, guidance, learned variance, steps and checkpointing."""

import copy

import pytest
import torch
from tiny import CLASSES, autoencoder, dit, inputs, save_pipeline, text_unet, unet
from torch import nn
from workbench import text_conditioner

from dmqbench.models.adapter import Adapter, load_adapter
from dmqbench.models.conditioning import (
    ClassConditioner,
    LatentDecoder,
    PixelDecoder,
    Unconditional,
)
from dmqbench.models.folders import ModelError, ModelSource
from dmqbench.models.portions import Portions
from dmqbench.quant.context import StepContext
from dmqbench.samplers.schedule import NoiseSchedule


def random_prompts():
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randn(4, 5, 12, generator=generator)
    return text_conditioner({"eval": prompts}, torch.randn(5, 12, generator=generator))


def conditioner_of(network):
    if "cross_attention_dim" in network.config:
        return random_prompts()
    return ClassConditioner(CLASSES, null_label=CLASSES)


def adapted(network, **settings):
    config = network.config
    defaults = {
        "sample_shape": (config.in_channels, config.sample_size, config.sample_size),
        "schedule": NoiseSchedule(1000, 1e-4, 0.02, "linear"),
        "prediction": "epsilon",
        "conditioner": conditioner_of(network),
        "decoder": PixelDecoder(),
    }
    return Adapter(network, **{**defaults, **settings})


def batch_of(adapter, size=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, *adapter.sample_shape, generator=generator)
    cond = adapter.conditioner.conditions("eval", 0, range(size))
    return x, torch.tensor([900, 500, 10])[:size], cond, torch.tensor([0, 4, 9])[:size]


class Calls:
    """Counts the network's calls, and notes their batch sizes, conditions and steps."""

    def __init__(self, adapter):
        self.seen = []
        self.context = adapter.context
        adapter.network.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module, args, kwargs):
        self.seen.append((len(args[0]), kwargs, self.context.step.clone()))


@pytest.mark.parametrize("build", [unet, text_unet, dit])
@torch.no_grad()
def test_denoise_is_one_call_with_the_network_s_own_arguments(build):
    adapter = adapted(build())
    x, timestep, cond, step = batch_of(adapter)
    calls = Calls(adapter)
    output = adapter.denoise(x, timestep, cond, step)
    assert [size for size, _, _ in calls.seen] == [3]
    direct = adapter.context
    with direct.at(step):
        expected = adapter.network(x, timestep, **cond).sample[:, : x.shape[1]]
    assert torch.equal(output, expected)
    assert output.shape == x.shape


@pytest.mark.parametrize("build", [unet, text_unet, dit])
@torch.no_grad()
def test_guidance_is_one_doubled_call_with_the_null_condition_first(build):
    adapter = adapted(build())
    x, timestep, cond, step = batch_of(adapter)
    null = adapter.conditioner.null(cond)
    unguided, guided = (adapter.denoise(x, timestep, given, step) for given in (null, cond))
    calls = Calls(adapter)
    output = adapter.denoise(x, timestep, cond, step, guidance=3.0)
    ((size, kwargs, seen_step),) = calls.seen
    assert size == 6
    assert seen_step.tolist() == [0, 4, 9, 0, 4, 9]
    for name in cond:
        assert torch.equal(kwargs[name], torch.cat([null[name], cond[name]]))
    torch.testing.assert_close(output, 3 * guided - 2 * unguided, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(output, guided, atol=1e-2)


@torch.no_grad()
def test_guidance_zero_is_the_unconditional_prediction():
    adapter = adapted(unet())
    x, timestep, cond, step = batch_of(adapter)
    expected = adapter.denoise(x, timestep, adapter.conditioner.null(cond), step)
    torch.testing.assert_close(adapter.denoise(x, timestep, cond, step, guidance=0.0), expected)


def test_an_unconditional_model_cannot_be_guided():
    adapter = adapted(unet(class_entries=None), conditioner=Unconditional())
    x, timestep, _, step = batch_of(adapter)
    assert adapter.denoise(x, timestep, {}, step).shape == x.shape
    with pytest.raises(ValueError, match="unconditional"):
        adapter.denoise(x, timestep, {}, step, guidance=2.0)


@torch.no_grad()
def test_a_learned_variance_is_dropped():
    adapter = adapted(dit())
    x, timestep, cond, step = batch_of(adapter)
    full = adapter.network(x, timestep, **cond).sample
    assert full.shape[1] == 8
    assert torch.equal(adapter.denoise(x, timestep, cond, step), full[:, :4])


@pytest.mark.parametrize("build", [unet, text_unet, dit])
@torch.no_grad()
def test_one_time_for_all_samples(build):
    adapter = adapted(build())
    x, _, cond, step = batch_of(adapter)
    expected = adapter.denoise(x, torch.tensor([321] * 3), cond, step)
    assert torch.equal(adapter.denoise(x, 321, cond, step), expected)


@pytest.mark.parametrize("step", [torch.tensor(1), torch.tensor([1]), torch.tensor([1, 2, 3, 4])])
def test_a_step_per_sample_is_required(step):
    adapter = adapted(unet())
    x, timestep, cond, _ = batch_of(adapter)
    with pytest.raises(ValueError, match=r"step must have shape \[3\]"):
        adapter.denoise(x, timestep, cond, step)


@pytest.mark.parametrize("build", [unet, text_unet, dit])
def test_topology_and_example_inputs(build):
    adapter = adapted(build())
    args, kwargs = adapter.example_inputs(batch=2)
    with torch.no_grad():
        assert adapter.network(*args, **kwargs)[0].shape[0] == 2
    (x, timestep), _ = adapter.example_inputs(device="meta")
    assert x.device.type == timestep.device.type == "meta"
    assert adapter.topology().first.name in ("conv_in", "pos_embed.proj")


class ScaledByStep(nn.Module):
    """A layer whose output is scaled by a number that belongs to the step, as a quantizer's parameters do."""

    def __init__(self, layer, context):
        super().__init__()
        self.layer = layer
        self.context = context
        self.table = nn.Parameter(torch.tensor([0.5, 1.0, 2.0, 3.0]))

    def forward(self, x):
        factor = self.table[self.context.step]
        return self.layer(x) * factor.view(-1, *[1] * (x.ndim - 1))


PLACES = {
    unet: ("down_blocks.1.resnets.0", "conv1"),
    text_unet: ("down_blocks.1.attentions.0.transformer_blocks.0.attn2", "to_q"),
    dit: ("transformer_blocks.1.attn1", "to_q"),
}


def stepwise(build):
    """An adapter whose network reads the step inside a block that checkpointing runs again."""
    context = StepContext()
    network = build()
    parent_name, child = PLACES[build]
    parent = network.get_submodule(parent_name)
    wrapper = ScaledByStep(getattr(parent, child), context)
    wrapper.layer.weight.requires_grad_(True)
    setattr(parent, child, wrapper)
    return adapted(network, context=context), wrapper


def rollout_gradients(adapter, wrapper, guidance):
    """Gradients of a loss after two calls whose samples are at different steps."""
    x, timestep, cond, _ = batch_of(adapter, size=2)
    for step in (torch.tensor([0, 2]), torch.tensor([3, 1])):
        x = x - 0.3 * adapter.denoise(x, timestep, cond, step, guidance=guidance)
    return torch.autograd.grad(x.square().sum(), [wrapper.table, wrapper.layer.weight])


@pytest.mark.parametrize("build", [unet, text_unet, dit])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_checkpointing_recomputes_every_block_at_its_own_step(build, guidance):
    adapter, wrapper = stepwise(build)
    expected = rollout_gradients(adapter, wrapper, guidance)
    assert all(gradient.abs().max() > 1e-4 for gradient in expected)
    forwards = []
    wrapper.register_forward_hook(lambda *_: forwards.append(adapter.context.step.tolist()))
    names = tuple(unit.name for unit in adapter.topology().units)
    forwards.clear()
    with adapter.computing(Portions(recomputed=names)):
        gradients = rollout_gradients(adapter, wrapper, guidance)
    first, second = ([0, 2], [3, 1]) if guidance == 1.0 else ([0, 2, 0, 2], [3, 1, 3, 1])
    assert forwards == [first, second, second, first]
    for gradient, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-5, atol=1e-6)
    forwards.clear()
    rollout_gradients(adapter, wrapper, guidance)
    assert forwards == [first, second]


def test_the_step_is_unset_outside_a_call():
    adapter, wrapper = stepwise(unet)
    adapter.network.enable_gradient_checkpointing()  # diffusers' own, which forgets the step
    with pytest.raises(RuntimeError, match="step is not set"):
        rollout_gradients(adapter, wrapper, 1.0)
    args, kwargs = inputs(adapter.network)
    with pytest.raises(RuntimeError, match="step is not set"):
        adapter.network(*args, **kwargs)
    x, timestep, cond, step = batch_of(adapter, size=2)
    adapter.denoise(x, timestep, cond, step.clamp(max=3))
    with pytest.raises(RuntimeError, match="step is not set"):
        _ = adapter.context.step


def test_the_step_is_unset_after_a_failed_call():
    adapter = adapted(unet())
    x, timestep, _, step = batch_of(adapter)
    with pytest.raises(ValueError, match="class_labels"):
        adapter.denoise(x, timestep, {}, step)
    with pytest.raises(RuntimeError, match="step is not set"):
        _ = adapter.context.step


def test_loading_an_adapter(tmp_path):
    network = unet()
    save_pipeline(tmp_path, network, beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195)
    adapter = load_adapter(ModelSource("local", str(tmp_path), classes=CLASSES))
    assert adapter.sample_shape == (1, 8, 8)
    assert adapter.schedule == NoiseSchedule(1000, 0.0015, 0.0195, "scaled_linear")
    assert adapter.prediction == "epsilon"
    assert isinstance(adapter.decoder, PixelDecoder)
    x, timestep, cond, step = batch_of(adapter)
    original = adapted(copy.deepcopy(network))
    assert torch.equal(
        adapter.denoise(x, timestep, cond, step, guidance=1.5),
        original.denoise(x, timestep, cond, step, guidance=1.5),
    )


def test_loading_a_latent_text_model(tmp_path):
    save_pipeline(tmp_path, text_unet(), autoencoder())
    source = ModelSource("local", str(tmp_path))
    with pytest.raises(ModelError, match="conditioned on text"):
        load_adapter(source)
    adapter = load_adapter(source, conditioner=random_prompts())
    assert isinstance(adapter.decoder, LatentDecoder)
    assert adapter.decoder.decode(torch.randn(1, *adapter.sample_shape)).shape == (1, 3, 16, 16)


def test_a_bare_network_needs_a_schedule(tmp_path):
    unet(class_entries=None).save_pretrained(tmp_path)
    source = ModelSource("local", str(tmp_path))
    with pytest.raises(ModelError, match="no scheduler"):
        load_adapter(source)
    schedule = NoiseSchedule(100, 1e-4, 0.02, "linear")
    adapter = load_adapter(source, schedule=schedule)
    assert adapter.schedule == schedule
    assert isinstance(adapter.conditioner, Unconditional)


def test_a_schedule_that_cannot_be_expressed(tmp_path):
    save_pipeline(tmp_path, unet(), trained_betas=[0.1] * 1000)
    with pytest.raises(ModelError, match="trained_betas"):
        load_adapter(ModelSource("local", str(tmp_path)))
