"""What the layers of every family are: embeddings, modulations of blocks, ends and skips."""

from fnmatch import fnmatchcase

import pytest
from tiny import dit, flux, inputs, pixart, sd3, sdxl_unet, text_unet

from dmqbench.models.topology import trace
from dmqbench.quant.plan import uniform_plan
from dmqbench.quant.spec import COMMON_SCOPE, BitWidth

TEXT_STREAM = ("*.norm1_context.linear", "*.attn.add_?_proj", "*.attn.to_add_out", "*.ff_context.net.*")
UNET = {
    "embedding": ("time_embedding.linear_?", "*.time_emb_proj"),
    "modulation": (),
    "skip": ("up_blocks.*.conv_shortcut",),
    "ends": ("conv_in", "conv_out"),
    "text": ("*.attn2.to_k", "*.attn2.to_v"),
    "both": (),
}
ROLES = {
    text_unet: UNET,
    sdxl_unet: UNET | {"embedding": (*UNET["embedding"], "add_embedding.linear_?")},
    dit: {
        "embedding": ("*.norm1.emb.timestep_embedder.linear_?", "proj_out_1"),
        "modulation": ("transformer_blocks.?.norm1.linear",),
        "skip": (),
        "ends": ("pos_embed.proj", "proj_out_2"),
        "text": (),
        "both": (),
    },
    pixart: {
        "embedding": ("adaln_single.*", "caption_projection.linear_?"),
        "modulation": (),
        "skip": (),
        "ends": ("pos_embed.proj", "proj_out"),
        "text": ("caption_projection.linear_?", "*.attn2.to_k", "*.attn2.to_v"),
        "both": (),
    },
    sd3: {
        "embedding": ("time_text_embed.*", "context_embedder", "norm_out.linear"),
        "modulation": ("transformer_blocks.?.norm1.linear", "transformer_blocks.?.norm1_context.linear"),
        "skip": (),
        "ends": ("pos_embed.proj", "proj_out"),
        "text": ("context_embedder", *TEXT_STREAM),
        "both": (),
    },
    flux: {
        "embedding": ("time_text_embed.*", "context_embedder", "norm_out.linear"),
        "modulation": (
            *("transformer_blocks.0.norm1.linear", "transformer_blocks.0.norm1_context.linear"),
            "single_transformer_blocks.0.norm.linear",
        ),
        "skip": (),
        "ends": ("x_embedder", "proj_out"),
        "text": ("context_embedder", *TEXT_STREAM),
        "both": ("single_transformer_blocks.0.*",),
    },
}


@pytest.mark.parametrize("build", ROLES)
def test_roles_of_layers(build):
    network, patterns = build(), ROLES[build]
    topology = trace(network, *inputs(network))
    found = {
        "embedding": {layer.name for layer in topology.layers if layer.embedding},
        "modulation": {layer.name for layer in topology.layers if layer.modulation},
        "skip": {layer.name for layer in topology.layers if layer.boundaries},
        "ends": {topology.first.name, topology.last.name},
        "text": {layer.name for layer in topology.layers if layer.tokens == "text"},
        "both": {layer.name for layer in topology.layers if layer.tokens == "both"},
    }
    vectors = {layer.name for layer in topology.layers if layer.tokens is None}
    assert vectors == found["embedding"] - found["text"]
    assert (topology.tokens is None) == (build is dit)
    for role, names in found.items():
        for pattern in patterns[role]:
            assert any(fnmatchcase(name, pattern) for name in names), (role, pattern)
        expected = {name for name in topology.by_name for pattern in patterns[role] if fnmatchcase(name, pattern)}
        assert names == expected, role
    plan = uniform_plan(topology.layers, BitWidth(4, 8), COMMON_SCOPE)
    assert set(plan.full_precision) == found["embedding"] | found["ends"]


LAST = {sd3: (True,), flux: (False, True)}
"""Of the last block, what anything reads: it has no further use for its text."""


@pytest.mark.parametrize("build", [dit, pixart, sd3, flux])
def test_a_transformer_is_made_of_its_blocks(build):
    network = build()
    topology = trace(network, *inputs(network))
    blocks = [unit for unit in topology.units if unit.kind == "block"]
    lists = [getattr(network, name, ()) for name in ("transformer_blocks", "single_transformer_blocks")]
    assert len(blocks) == sum(map(len, lists))
    assert all(unit.name.rpartition(".")[0].endswith("transformer_blocks") for unit in blocks)
    assert {name for unit in blocks for name in unit.layers} == {
        name for name in topology.by_name if "transformer_blocks." in name
    }
    *others, last = (unit.read for unit in blocks)
    assert set(others) == {(True, True) if build in LAST else (True,)}
    assert last == LAST.get(build, (True,))
