"""Where channels can be rescaled exactly in diffusers' blocks, class by class, and where they cannot."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffusers.models.activations import GEGLU, SwiGLU
from diffusers.models.attention import BasicTransformerBlock, FeedForward, JointTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.normalization import (
    AdaLayerNormContinuous,
    AdaLayerNormZero,
    AdaLayerNormZeroSingle,
    SD35AdaLayerNormZeroX,
)
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_flux import (
    FluxAttention,
    FluxSingleTransformerBlock,
    FluxTransformer2DModel,
    FluxTransformerBlock,
)
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from torch import nn

from dmqbench.models.attention import ExplicitAttention, ExplicitJointAttention, form_of
from dmqbench.models.equivalences import Barrier, Columns, Equivalence, Rows, tied
from dmqbench.models.planted import Kind

_BESIDE_PROJECTIONS = ("group_norm", "spatial_norm", "norm_cross", "residual_connection")
"""What else reads the input of an attention, where it has one."""

ACTIVATED = "an activation function stands before it"
SHARED_MODULATION = "one modulation is shared by all blocks, and added to a table of each"


class _Found:
    """What one module says of the tensors inside it; names are relative to it.

    Args:
        prefix: the module's name, with a dot behind it unless it is the whole network.
    """

    def __init__(self, prefix: str, module: Any) -> None:
        self.prefix, self.module = prefix, module
        self.places: list[Equivalence] = []
        self.barriers: list[Barrier] = []

    def weight(self, name: str) -> Any:
        return self.module.get_submodule(name).weight

    def place(self, at: str, kind: Kind, writers: Sequence[Rows], readers: Sequence[str | Columns]) -> None:
        """Note a place, or why it is none: there may be nothing to rescale in what writes it, or nothing that reads."""
        if not readers:
            return
        columns = [reader if isinstance(reader, Columns) else Columns(reader) for reader in readers]
        for rows in writers:
            own = self.module.get_submodule(rows.module)
            if own.weight is None or (rows.one_added and own.bias is None):
                self.barrier([part.layer for part in columns], f"{rows.module} has no weight or no bias to rescale")
                return
        channels = len(self.weight(writers[0].module)) if kind == "value" else self.weight(columns[0].layer).shape[1]
        named = [Columns(self.prefix + part.layer, part.start) for part in columns]
        rows_of = [Rows(self.prefix + rows.module, rows.start, rows.one_added) for rows in writers]
        self.places.append(Equivalence(self.prefix + at, kind, channels, tuple(rows_of), tuple(named)))

    def barrier(self, layers: Sequence[str], reason: str) -> None:
        self.barriers.append(Barrier(tuple(self.prefix + layer for layer in layers), reason))

    def modulated(self, norm: str, linear: str, parts: int, shift: int, scale: int, readers: Sequence[str]) -> None:
        """Behind norm(x) · (1 + scale) + shift, which are two of so many equal parts of what a layer says."""
        width = len(self.weight(linear)) // parts
        rows = Rows(linear, shift * width), Rows(linear, scale * width, one_added=True)
        self.place(norm, "norm", rows, readers)

    def normed(self, norm: str, readers: Sequence[str]) -> None:
        """Behind a norm with a weight of its own."""
        self.place(norm, "norm", [Rows(norm)], readers)

    def projections(self, attention: str, kind: type[Any], names: str = "to_{}", which: str = "qkv") -> list[str]:
        """The layers of an attention that read its input; none if anything else of it does."""
        own = self.module.get_submodule(attention)
        if form_of(own) is not kind or getattr(own, "fused_projections", False):
            return []
        if any(getattr(own, part, None) for part in _BESIDE_PROJECTIONS):
            return []
        return [f"{attention}.{names.format(letter)}" for letter in which]


def found_in(network: nn.Module) -> tuple[list[Equivalence], dict[str, str]]:
    """Return the places of a network in the order of registration, and why layers have none, where that is known."""
    places, reasons = list[Equivalence](), dict[str, str]()
    for name, module in network.named_modules():
        if (look := _TABLE.get(type(module))) is not None:
            found = _Found(f"{name}." if name else "", module)
            look(found)
            places += found.places
            reasons |= {layer: each.reason for each in found.barriers for layer in each.layers}
    shared = tied(network, places)
    reasons |= {part.layer: "parameters are shared with other layers" for place in shared for part in place.readers}
    return [place for place in places if place not in shared], reasons


def _attention(found: _Found) -> None:
    own = found.module
    form, fused = form_of(own), getattr(own, "fused_projections", False)
    if form is None or fused or own.to_v is None:
        return
    if getattr(own, "group_norm", None) is not None and own.spatial_norm is None and not own.is_cross_attention:
        found.place("group_norm", "group_norm", [Rows("group_norm")], ["to_q", "to_k", "to_v"])
    outputs = ["to_out.0"] if getattr(own, "to_out", None) is not None else []
    writers = ["to_v"]
    if issubclass(form, ExplicitJointAttention) and getattr(own, "add_v_proj", None) is not None:
        writers.append("add_v_proj")
        outputs += ["to_add_out"] if getattr(own, "to_add_out", None) is not None else []
    if outputs and found.weight(outputs[0]).shape[1] == len(found.weight("to_v")):  # not with fewer values than queries
        found.place("value", "value", [Rows(writer) for writer in writers], outputs)


def _feed_forward(found: _Found) -> None:
    first, last = found.module.net[0], found.module.net[2]
    if isinstance(first, GEGLU | SwiGLU) and isinstance(last, nn.Linear):
        found.place("gate", "gate", [Rows("net.0.proj")], ["net.2"])
    else:
        found.barrier(["net.2"], ACTIVATED)


def _transformer_block(found: _Found) -> None:
    block, first = found.module, ["ff.net.0.proj"]
    own = found.projections("attn1", ExplicitAttention, which="q" if block.only_cross_attention else "qkv")
    if block.norm_type == "ada_norm_single":
        found.barrier([*own, *first], SHARED_MODULATION)
    elif block.pos_embed is not None:
        return
    elif block.norm_type == "ada_norm_zero":
        found.modulated("norm1", "norm1.linear", 6, 0, 1, own)
        found.modulated("norm3", "norm1.linear", 6, 3, 4, first)
    elif block.norm_type == "layer_norm":
        found.normed("norm1", own)
        found.normed("norm3", first)
    crosses = block.attn2 is not None and block.attn2.is_cross_attention
    if crosses and block.norm_type in ("ada_norm_zero", "layer_norm"):
        found.normed("norm2", found.projections("attn2", ExplicitAttention, which="q"))


_PARTS = {AdaLayerNormZero: 6, SD35AdaLayerNormZeroX: 9, AdaLayerNormContinuous: 2}
"""Parts of what the layers of modulated norms say: shift and scale for an attention, its gate, the same for a
feed-forward and again for a second attention; of the last kind, scale and shift."""


def _two_streams(found: _Found) -> None:
    kind = form_of(found.module.attn)
    if kind is None or not issubclass(kind, ExplicitJointAttention):
        return
    streams = ("", "to_{}", "ff.net.0.proj"), ("_context", "add_{}_proj", "ff_context.net.0.proj")
    for stream, names, first in streams:
        norm, readers = f"norm1{stream}", found.projections("attn", kind, names)
        linear, parts = f"{norm}.linear", _PARTS[type(getattr(found.module, norm))]
        if parts == 2:
            found.modulated(norm, linear, 2, 1, 0, readers)
            continue
        found.modulated(norm, linear, parts, 0, 1, readers)
        found.modulated(f"norm2{stream}", linear, parts, 3, 4, [first])
        if parts == 9:
            found.modulated(f"{norm}.second", linear, 9, 6, 7, found.projections("attn2", ExplicitJointAttention))


def _one_stream(found: _Found) -> None:
    kind = form_of(found.module.attn)
    if kind is None or not isinstance(found.module.norm, AdaLayerNormZeroSingle):
        return
    readers = found.projections("attn", kind)
    found.modulated("norm", "norm.linear", 3, 0, 1, [*readers, "proj_mlp"] if readers else [])
    found.place("attn.value", "value", [Rows("attn.to_v")], ["proj_out"] if readers else [])


def _group_norm(found: _Found) -> None:
    if found.module.is_input_continuous:
        found.place("norm", "group_norm", [Rows("norm")], ["proj_in"])


_TABLE: Mapping[type[nn.Module], Callable[[_Found], None]] = {
    Attention: _attention,
    FluxAttention: _attention,
    FeedForward: _feed_forward,
    ResnetBlock2D: lambda found: found.barrier(["conv1", "conv2", "time_emb_proj"], ACTIVATED),
    Transformer2DModel: _group_norm,
    BasicTransformerBlock: _transformer_block,
    JointTransformerBlock: _two_streams,
    FluxTransformerBlock: _two_streams,
    FluxSingleTransformerBlock: _one_stream,
    DiTTransformer2DModel: lambda found: found.modulated("norm_out", "proj_out_1", 2, 0, 1, ["proj_out_2"]),
    SD3Transformer2DModel: lambda found: found.modulated("norm_out", "norm_out.linear", 2, 1, 0, ["proj_out"]),
    FluxTransformer2DModel: lambda found: found.modulated("norm_out", "norm_out.linear", 2, 1, 0, ["proj_out"]),
}
"""By the very class: what a subclass computes is not known."""
