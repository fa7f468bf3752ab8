"""A network that is no longer what its configuration and weights say is refused, not calibrated as if it were."""

import types
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler
from diffusers.models.attention_processor import AttnProcessor
from tiny import unet
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from dmqbench.api import load, quantize_, save
from dmqbench.models.folders import ModelError
from dmqbench.models.likeness import require_as_configured

FIRST = "mid_block.resnets.0"
SIZES = ("budget.trajectories=2", "budget.validation=1", "budget.samples=4", "sampler.chunk=4")


def pipeline(change=None) -> DDIMPipeline:
    pipe = DDIMPipeline(unet(class_entries=None), DDIMScheduler(clip_sample=False))
    if change is not None:
        change(pipe.unet)
    return pipe


def quantized(pipe, folder):
    quantize_(pipe, "rtn", "w4a8", steps=2, store=folder, overrides=SIZES)
    return pipe


def part(network, name=FIRST):
    return network.get_submodule(name)


def patched(module, change):
    forward = module.forward
    module.forward = types.MethodType(lambda self, *args, **kwargs: change(forward(*args, **kwargs)), module)


def adapted(network):
    """A module inside a layer, of which no configuration knows."""
    layer = part(network).conv1
    layer.extra = nn.Conv2d(32, 2, 1)


CHANGED = {
    "an activation of another class": (lambda u: setattr(part(u), "nonlinearity", nn.ReLU()), "nonlinearity is a ReLU"),
    "a layer left out": (lambda u: setattr(part(u), "conv2", nn.Identity()), "conv2 is a Identity"),
    "a module removed": (lambda u: delattr(part(u), "dropout"), "dropout is missing, where .* a Dropout"),
    "a module added": (adapted, "conv1.extra is a Conv2d, where .* makes nothing"),
    "a layer of other width": (lambda u: setattr(u, "conv_in", nn.Conv2d(1, 16, 1)), "conv_in.weight is of shape"),
    "a bias removed": (lambda u: setattr(u.conv_in, "bias", None), "conv_in.bias is missing"),
    "a buffer added": (lambda u: u.register_buffer("mask", torch.ones(1)), r"mask is of shape \[1\]"),
    "weight norm": (lambda u: parametrizations.weight_norm(u.conv_in), "conv_in is a ParametrizedConv2d"),
    "weight norm, the older": (lambda u: weight_norm(u.conv_in), "conv_in.weight is missing|conv_in.weight_"),
    "spectral norm, the older": (lambda u: spectral_norm(u.conv_in), "conv_in.weight is missing|conv_in.weight_"),
    "a method patched": (lambda u: patched(part(u), lambda y: 1.1 * y), f"{FIRST} computes"),
    "the network patched": (lambda u: patched(u, lambda y: (1.1 * y[0],)), "the network itself computes"),
    "a network that returns no tensor": (
        lambda u: u.register_forward_hook(lambda *_: {"sample": _[2][0]}),
        "a call of it returns no tensor",
    ),
    "a hook on outputs": (lambda u: part(u).register_forward_hook(lambda *_: _[2] + 0.1), f"{FIRST} computes"),
    "a hook on inputs": (
        lambda u: part(u).conv1.register_forward_pre_hook(lambda _, args: (args[0] * 0.5,)),
        "conv1 computes",
    ),
    "a hook at late timesteps": (
        lambda u: u.register_forward_hook(lambda m, args, out: (out[0] * (1 + (args[1] > 900)).view(-1, 1, 1, 1),)),
        "the network itself computes",
    ),
    "an attribute of a module": (lambda u: setattr(part(u), "output_scale_factor", 2.0), f"{FIRST} computes"),
    "a setting of a layer": (lambda u: setattr(part(u).norm1, "eps", 1.0), "norm1 computes"),
    "a layer's padding": (lambda u: setattr(part(u).conv1, "padding_mode", "circular"), "conv1 computes"),
    "an attention's factor": (
        lambda u: setattr(part(u, "mid_block.attentions.0"), "rescale_output_factor", 5.0),
        "attentions.0 computes",
    ),
    "an attention's function": (
        lambda u: part(u, "mid_block.attentions.0").set_processor(lambda attn, x, *_, **__: x),
        "mid_block.attentions.0.group_norm computes",
    ),
    "a function of its own": (
        lambda u: setattr(u.time_proj, "forward", torch.zeros_like),
        "a call of it fails: RuntimeError",
    ),
    "weights that are infinite": (lambda u: u.conv_in.weight.data.fill_(torch.inf), "conv_in.weight are not all fin"),
    "weights that are no numbers": (lambda u: u.conv_in.bias.data.fill_(torch.nan), "conv_in.bias are not all finite"),
    "weights too large": (lambda u: [p.data.mul_(1e30) for p in u.parameters()], "predicts is not finite"),
}


@pytest.mark.parametrize("change", CHANGED)
def test_a_changed_network_is_refused_in_one_line_and_left_alone(change, tmp_path):
    alter, said = CHANGED[change]
    pipe = pipeline(alter)
    pipe.unet.train()
    classes = [type(module) for module in pipe.unet.modules()]
    with pytest.raises(ModelError, match=said) as refused:
        quantized(pipe, tmp_path)
    assert str(refused.value).startswith("DDIMPipeline.unet")
    assert "\n" not in str(refused.value)
    assert str(tmp_path) not in str(refused.value)
    assert [type(module) for module in pipe.unet.modules()] == classes
    assert all(module.training for module in pipe.unet.modules())


def tied(network):
    """Two convolutions, two norms and two biases of equal shape share their parameters."""
    down, up = part(network), network.mid_block.resnets[1]
    down.conv1.weight = up.conv1.weight
    down.norm2.weight, down.norm2.bias = up.norm2.weight, up.norm2.bias
    network.conv_norm_out.bias = network.conv_in.bias
    up.time_emb_proj = down.time_emb_proj


def same_values(network):
    """What another program may do without changing a number."""
    part(network).register_forward_hook(lambda *_: None)
    part(network, "mid_block.attentions.0").set_processor(AttnProcessor())
    network.to(memory_format=torch.channels_last)
    part(network).note = "mine"


KEPT = {"tied weights and one module twice": tied, "a hook that looks": same_values}


@pytest.mark.parametrize("change", KEPT)
def test_what_changes_no_number_is_quantized_like_a_copy_with_weights_of_its_own(change, tmp_path):
    pipe, plain = pipeline(KEPT[change]), pipeline()
    plain.unet.load_state_dict({name: value.clone() for name, value in pipe.unet.state_dict().items()})
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = quantized(plain, tmp_path / "store").unet(x, 500).sample
    found = quantized(pipe, tmp_path / "store").unet(x, 500).sample
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    again = load(save(pipe, tmp_path / "saved"))
    torch.testing.assert_close(again.unet(x, 500).sample, found, rtol=0, atol=1e-5)


def test_a_network_as_it_was_made_is_accepted():
    require_as_configured(unet(), "a network")


def test_the_module_is_found_that_differs_first(tmp_path):
    def two(network):
        network.mid_block.resnets[1].output_scale_factor = 2.0
        patched(network.down_blocks[0].resnets[0], lambda y: y + 1)

    with pytest.raises(ModelError, match=r"down_blocks.0.resnets.0 computes something else"):
        quantized(pipeline(two), tmp_path)
    assert not list(Path(tmp_path).glob("trajectories/*"))
