"""What a network is made of, found by running it once: layers, skip concatenations, attentions and units."""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from dmqbench.models.attention import attention_modules
from dmqbench.models.blocks import BLOCKS, Tokens, is_modulation, tokens_of
from dmqbench.models.dataflow import ChannelCuts, ResidualSums
from dmqbench.models.hooks import hooked, output_tensors
from dmqbench.quant.layers import QUANTIZABLE

Run = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any]], Any]
"""Calls a network with (args, kwargs)."""

Kind = Literal["conv1d", "conv2d", "linear"]

_KINDS: Mapping[type[nn.Module], Kind] = {
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Linear: "linear",
}


@dataclass(frozen=True)
class LayerInfo:
    """One executed convolution or linear layer.

    Args:
        order: position among the layers, by first execution.
        boundaries: cut points inside the input channels where a concatenation that feeds this layer directly was
            joined: (64,) for a skip of 32 joined to 64 channels; empty without one.
        shortcut: a convolution beside a residual branch: its output is added to what the branch made of its own input.
        embedding: makes or hands on the embedding of time, label or text: a layer on vectors [B, C] that is no
            modulation, or one outside blocks; it reads nothing of the sample.
        modulation: makes the shifts, scales and gates of a transformer block of that embedding.
        tokens: whose it works on: the image's, a text's (also the one of a class) or both in one stream; None for
            embeddings of vectors.
        macs: multiply-accumulates of one network call at batch 1.
        in_block: part of a block, and not between blocks.
        bare_attention: a projection of an attention that is a block of its own, with neither a feed-forward nor another
            attention beside it; in LDM's code these are one-dimensional convolutions.
        downsampling: a convolution between blocks whose stride is more than 1.
    """

    name: str
    kind: Kind
    order: int
    boundaries: tuple[int, ...]
    shortcut: bool
    embedding: bool
    modulation: bool
    tokens: Tokens | None
    macs: int
    groups: int
    weight_shape: tuple[int, ...]
    in_block: bool
    bare_attention: bool
    downsampling: bool


@dataclass(frozen=True)
class AttentionInfo:
    """One executed attention; ``macs`` are those of its two products in one network call at batch 1."""

    name: str
    macs: int


@dataclass(frozen=True)
class Unit:
    """A block, or a layer outside blocks, with its layers in execution order."""

    name: str
    kind: Literal["block", "layer"]
    layers: tuple[str, ...]
    read: tuple[bool, ...] = (True,)
    """Of each tensor that it puts out, whether anything reads it: the last block of Flux has no further use for its
    text."""


@dataclass(frozen=True)
class Topology:
    """What one network call executes, in execution order. Layers that are never executed are absent."""

    layers: tuple[LayerInfo, ...]
    attentions: tuple[AttentionInfo, ...]
    units: tuple[Unit, ...]

    @property
    def by_name(self) -> dict[str, LayerInfo]:
        return {layer.name: layer for layer in self.layers}

    @property
    def first(self) -> LayerInfo:
        """The first layer that is part of no embedding."""
        return next(layer for layer in self.layers if not layer.embedding)

    @property
    def last(self) -> LayerInfo:
        """The last layer that is part of no embedding."""
        return next(layer for layer in reversed(self.layers) if not layer.embedding)

    @property
    def tokens(self) -> tuple[Tokens | None, ...] | None:
        """Whose tokens every layer works on; None for a network that has those of an image alone."""
        found: tuple[Tokens | None, ...] = tuple(layer.tokens for layer in self.layers)
        return None if {"text", "both"}.isdisjoint(found) else found

    @property
    def share_of_macs(self) -> dict[str, float]:
        """Share of every layer, by its name."""
        total = self.macs
        return {layer.name: layer.macs / total for layer in self.layers}

    @property
    def macs(self) -> int:
        """Of all convolutions and linear layers."""
        return sum(layer.macs for layer in self.layers)

    @property
    def attention_macs(self) -> int:
        """Of the matrix products inside attentions."""
        return sum(attention.macs for attention in self.attentions)


def is_layer(module: nn.Module) -> bool:
    """Whether a module is one of torch's layers or ours; what a subclass or a parametrization computes is not known."""
    return type(module) in (*QUANTIZABLE, *QUANTIZABLE.values())


@torch.no_grad()
def trace(
    network: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    run: Run | None = None,
    blocks: Collection[str] = (),
) -> Topology:
    """Call a network once, by ``run`` if that is given, and return what was executed; works on the meta device.

    The first argument is the sample, [B, C, H, W] or [B, N, C]. A layer's concatenation is recognised by the tensor
    itself: a layer reads a skip if its input *is* what ``torch.cat`` returned along the channels of 4-D tensors,
    whatever the names. A shortcut y = conv(x) + f(x) is recognised by the sum, whose other operand was made of the same
    input. Of the names in ``blocks``, each is a block beside those that are known by their class.
    """
    sums = ResidualSums()
    probe = _Probe(len(args[0]), sums.number(args[0]), sums)
    modules = dict(network.named_modules())
    known = {name for name, module in modules.items() if isinstance(module, BLOCKS)} | {*blocks}
    layers = {name: module for name, module in modules.items() if is_layer(module)}
    with (
        hooked(layers, probe.see_layer),
        hooked(attention_modules(network), probe.see_attention, with_kwargs=True),
        hooked({name: modules[name] for name in known}, probe.see_block),
        probe.joined,
        sums,
    ):
        result = network(*args, **kwargs) if run is None else run(network, args, kwargs)
    units = tuple(replace(unit, read=probe.read(unit, result)) for unit in _units(list(probe.layers), known))
    unit_of = {layer: unit for unit in units for layer in unit.layers}
    return Topology(
        tuple(_layer_info(modules, seen, sums, unit_of[name]) for name, seen in probe.layers.items()),
        tuple(AttentionInfo(name, macs) for name, macs in probe.attentions.items()),
        units,
    )


def feature_module(network: nn.Module, topology: Topology) -> nn.Module:
    """Return the module whose *input* is the feature before the network's last projection.

    In diffusers' U-Nets that is the normalisation before the last convolution, whose input is [B, C, H, W]; elsewhere
    the last layer outside embeddings, whose input is [B, C, H, W] or, of a linear layer, [B, N, C].
    """
    norm = getattr(network, "conv_norm_out", None)
    return norm if isinstance(norm, nn.Module) else network.get_submodule(topology.last.name)


@contextmanager
def last_features(network: nn.Module, topology: Topology, calls: int | None = 1) -> Iterator[deque[Tensor]]:
    """Receive the features before the last projection of the last ``calls`` network calls (None: of all), each
    [branches · samples, …]."""
    features: deque[Tensor] = deque(maxlen=calls)
    module = feature_module(network, topology)
    with hooked({"": module}, lambda _name, _module, args: features.append(args[0]), pre=True):
        yield features


@dataclass
class _SeenLayer:
    name: str
    order: int
    boundaries: tuple[int, ...]
    on_vectors: bool
    reads_sample: bool
    macs: int = 0


@dataclass
class _Probe:
    """What the hooks of one forward pass have seen."""

    batch: int
    sample: int
    """Its number among the tensors."""
    sums: ResidualSums
    joined: ChannelCuts = field(default_factory=ChannelCuts)
    layers: dict[str, _SeenLayer] = field(default_factory=dict)
    attentions: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, list[int]] = field(default_factory=dict)
    """Numbers of what every block puts out."""

    def see_layer(self, name: str, module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        if name not in self.layers:
            on_vectors = isinstance(module, nn.Linear) and args[0].ndim == 2
            cuts, reads_sample = self.joined.of(args[0]), self.sums.made_of(args[0], self.sample)
            self.layers[name] = _SeenLayer(name, len(self.layers), cuts, on_vectors, reads_sample)
        if not isinstance(module, nn.Linear):
            self.sums.note_layer(name, args[0], output)
        products_per_output = module.weight[0].numel()
        self.layers[name].macs += output.numel() // self.batch * products_per_output

    def see_attention(self, name: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        context = args[1] if len(args) > 1 else kwargs.get("encoder_hidden_states")
        queries = _tokens(x)
        keys = queries if context is None else _tokens(context)
        if context is not None and getattr(module, "add_q_proj", None) is not None:
            queries = keys = queries + keys  # image and text attend to all of both
        self.attentions[name] = self.attentions.get(name, 0) + 2 * queries * keys * module.inner_dim

    def see_block(self, name: str, _: nn.Module, __: Any, output: Any) -> None:
        self.outputs[name] = [self.sums.number(tensor) for tensor in output_tensors(output)]

    def read(self, unit: Unit, result: Any) -> tuple[bool, ...]:
        """Of each tensor that a unit puts out, whether the network's ``result`` was made of it."""
        finals, numbers = output_tensors(result), self.outputs.get(unit.name, ())
        read = tuple(any(self.sums.made_of(final, number) for final in finals) for number in numbers)
        return read if any(read) else (True,) * max(1, len(read))  # what cannot be followed is taken to be read


def _tokens(x: Tensor) -> int:
    """Sequence length of [B, N, C] or [B, C, H, W]."""
    return x.shape[1] if x.ndim == 3 else prod(x.shape[2:])


def _layer_info(modules: Mapping[str, Any], seen: _SeenLayer, sums: ResidualSums, unit: Unit) -> LayerInfo:
    module, parent, around = modules[seen.name], modules[seen.name.rpartition(".")[0]], modules[unit.name]
    weight: Tensor = module.weight
    in_block = unit.kind == "block"
    modulation = is_modulation(parent, around)
    of_condition = not seen.reads_sample and (seen.on_vectors or not in_block)
    embedding = of_condition and not modulation
    of_text = not (seen.reads_sample or seen.on_vectors)
    kind: Kind = next(kind for cls, kind in _KINDS.items() if isinstance(module, cls))
    return LayerInfo(
        name=seen.name,
        kind=kind,
        order=seen.order,
        boundaries=seen.boundaries,
        shortcut=seen.name in sums.shortcuts,
        embedding=embedding,
        modulation=modulation,
        tokens=None if embedding and seen.on_vectors else tokens_of(seen.name, around, of_text),
        macs=seen.macs,
        groups=getattr(module, "groups", 1),
        weight_shape=tuple(weight.shape),
        in_block=in_block,
        bare_attention=isinstance(around, Attention),
        downsampling=not in_block and any(stride > 1 for stride in getattr(module, "stride", ())),
    )


def _units(layers: Sequence[str], blocks: Collection[str]) -> tuple[Unit, ...]:
    """Group layers (in execution order) by their outermost block; units are ordered by their first layer."""
    members: dict[str, list[str]] = {}
    for layer in layers:
        path = layer.split(".")
        parents = (".".join(path[:depth]) for depth in range(1, len(path)))
        members.setdefault(next((parent for parent in parents if parent in blocks), layer), []).append(layer)
    return tuple(Unit(name, "block" if name in blocks else "layer", tuple(names)) for name, names in members.items())
