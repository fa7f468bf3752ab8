"""Explicit attention against diffusers' own processors, and through quantizers."""

import logging

import pytest
import torch
from diffusers.models.attention_processor import Attention
from tiny import dit, flux, inputs, pixart, sd3, text_unet, unet
from torch import nn

from dmqbench.models.attention import (
    ExplicitAttention,
    ExplicitJointAttention,
    attention_modules,
    set_explicit_attention_,
)
from dmqbench.models.exchange import quantize_network_, quantized_attentions
from dmqbench.models.topology import trace
from dmqbench.quant.attention import AttentionQuantizers
from dmqbench.quant.context import StepContext
from dmqbench.quant.plan import PrecisionPlan
from dmqbench.quant.spec import BitWidth, Scope, StepGroups


def run(network, seed=0):
    args, kwargs = inputs(network, seed=seed)
    with torch.no_grad():
        return network(*args, **kwargs)[0]


OPERANDS = ("query", "key", "scores", "value")


class Recorder(nn.Module):
    """Stands where a quantizer would; keeps the last operand and multiplies it."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor
        self.seen = None

    def forward(self, x):
        self.seen = x
        return x * self.factor


def recorders(**factors):
    """Attention quantizers that are switched on, with recorders in their places."""
    quantizers = AttentionQuantizers(StepContext(), 256)
    for operand in OPERANDS:
        setattr(quantizers, operand, Recorder(factors.get(operand, 1.0)))
    quantizers.activation_on = True
    return quantizers


def switched_off():
    return AttentionQuantizers(StepContext(), 256)


@pytest.mark.parametrize("build", [unet, text_unet, dit, pixart, sd3, flux])
@pytest.mark.parametrize("quantizers", [recorders, switched_off])
def test_unquantized_explicit_attention_equals_the_fused_one(build, quantizers):
    network = build()
    fused = run(network)
    names = list(attention_modules(network))
    set_explicit_attention_(network, {name: quantizers() for name in names})
    assert names
    assert all(isinstance(module.processor, ExplicitAttention) for module in attention_modules(network).values())
    torch.testing.assert_close(run(network), fused, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"residual_connection": True, "rescale_output_factor": 1.7, "norm_num_groups": 4},
        {"cross_attention_dim": 6, "cross_attention_norm": "layer_norm"},
        {"qk_norm": "layer_norm"},
        {"scale_qk": False},
        {"bias": True, "dropout": 0.5},
    ],
)
def test_every_option_of_an_attention_module_is_kept(settings):
    torch.manual_seed(0)
    attention = Attention(16, heads=2, dim_head=8, **settings).eval()
    context = torch.randn(3, 4, 6) if "cross_attention_dim" in settings else None
    x = torch.randn(3, 16, 5, 7) if settings.get("residual_connection") else torch.randn(3, 9, 16)
    fused = attention(x, encoder_hidden_states=context)
    attention.set_processor(ExplicitAttention(switched_off()))
    torch.testing.assert_close(attention(x, encoder_hidden_states=context), fused, rtol=1e-5, atol=1e-5)


def test_masks_are_added_to_the_scores():
    torch.manual_seed(0)
    attention = Attention(16, heads=2, dim_head=8).eval()
    x, mask = torch.randn(3, 6, 16), torch.zeros(3, 1, 6).index_fill_(2, torch.tensor([1, 4]), -1e4)
    fused = attention(x, attention_mask=mask)
    attention.set_processor(ExplicitAttention(switched_off()))
    torch.testing.assert_close(attention(x, attention_mask=mask), fused, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(fused, attention(x))


def test_operands_pass_through_the_quantizers():
    network = text_unet()
    name = next(name for name in attention_modules(network) if name.endswith("attn2"))
    quantizers = recorders()
    set_explicit_attention_(network, {name: quantizers})
    before = run(network)
    batch, heads, queries, keys, width = 2, 2, 16, 5, 16
    assert quantizers.query.seen.shape == (batch, heads, queries, width)
    assert quantizers.key.seen.shape == quantizers.value.seen.shape == (batch, heads, keys, width)
    assert quantizers.scores.seen.shape == (batch, heads, queries, keys)
    torch.testing.assert_close(quantizers.scores.seen.sum(-1), torch.ones(batch, heads, queries))
    for operand in OPERANDS:
        set_explicit_attention_(network, {name: recorders(**{operand: 2.0})})
        assert not torch.allclose(run(network), before, atol=1e-4), operand


@pytest.mark.parametrize(("build", "queries"), [(sd3, {16, 21}), (flux, {21}), (pixart, {16})])
def test_joint_operands_hold_both_streams_and_masked_tokens_get_no_share(build, queries):
    network = build()
    names = list(attention_modules(network))
    quantizers = {name: recorders() for name in names}
    set_explicit_attention_(network, quantizers)
    before = run(network)
    scores = [quantizers[name].scores.seen for name in names]
    assert {scores_of.shape[2] for scores_of in scores} == queries
    if build is pixart:  # the first prompt has one word
        assert all(part[0, ..., 1:].eq(0).all() for part in scores if part.shape[3] == 5)
    for operand in OPERANDS:
        set_explicit_attention_(network, {name: recorders(**{operand: 2.0}) for name in names})
        assert not torch.allclose(run(network), before, atol=1e-4), operand


def test_only_the_named_modules_change():
    network = text_unet()
    chosen, *others = attention_modules(network)
    before = {name: network.get_submodule(name).processor for name in others}
    set_explicit_attention_(network, {chosen: switched_off()})
    assert {name: network.get_submodule(name).processor for name in others} == before


def test_attached_quantizers_belong_to_the_network_and_start_switched_off():
    network = text_unet()
    before = run(network)
    args, kwargs = inputs(network)
    context, plan, topology = StepContext(), PrecisionPlan(()), trace(network, args, kwargs)
    names = quantized_attentions(topology, Scope(attention=True), BitWidth(4, 6))
    quantize_network_(network, plan, context, StepGroups.per_step(3), attentions=names, bits=BitWidth(4, 6))
    owned = {name: module for name, module in network.named_modules() if isinstance(module, AttentionQuantizers)}
    assert owned.keys() == {f"{name}.processor.quantizers" for name in attention_modules(network)}
    for quantizers in owned.values():
        assert {name for name, _ in quantizers.named_children()} == set(OPERANDS)
        assert {(q.levels, q.per_step) for q in quantizers.children()} == {(64, True)}
        assert all(q.context is context for q in quantizers.children())
    torch.testing.assert_close(run(network), before, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="w4a32"):
        quantize_network_(network, plan, context, attentions=names, bits=BitWidth(4, 32))
    assert quantized_attentions(topology, Scope(attention=True), BitWidth(4, 32)) == ()
    assert quantized_attentions(topology, Scope(attention=False), BitWidth(4, 6)) == ()


def test_diffusers_passes_all_its_arguments_silently(caplog):
    network = unet()
    set_explicit_attention_(network, dict.fromkeys(attention_modules(network), switched_off()))
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        run(network)
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records


def test_unknown_names_and_forms_are_refused():
    with pytest.raises(ValueError, match="no attention module nowhere"):
        set_explicit_attention_(unet(), {"nowhere": switched_off()})
    holder = nn.ModuleDict({"odd": Attention(32, heads=2, dim_head=8, spatial_norm_dim=4)})
    with pytest.raises(ValueError, match="attention odd"):
        set_explicit_attention_(holder, {"odd": switched_off()})
    network = sd3()
    network.fuse_qkv_projections()
    with pytest.raises(ValueError, match=r"0.attn: FusedJointAttnProcessor2_0 is not known here \(allowed: Attn"):
        set_explicit_attention_(network, {"transformer_blocks.0.attn": switched_off()})
    with pytest.raises(ValueError, match="masks are not supported"):
        ExplicitJointAttention(switched_off())(None, torch.zeros(1, 2, 4), None, torch.zeros(1, 2))
