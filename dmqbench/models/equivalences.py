"""Exact rescalings of channels: what writes a channel multiplied, all that reads it divided, the function unchanged.

Where they are stands in ``equivalence_table``. Powers of two change no bit of what a network computes, except behind
modulations: there 1 + s is what is rescaled, by a bias of its own, and the sum is rounded once more.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dmqbench.models.planted import Kind


@dataclass(frozen=True)
class Rows:
    """Rows of the weight of a layer, or of a norm, and of its bias: one for every channel that they write."""

    module: str
    start: int = 0
    one_added: bool = False
    """The network computes with 1 + the output."""


@dataclass(frozen=True)
class Columns:
    """Columns of the weight of a layer: one for every channel that they read."""

    layer: str
    start: int = 0


@dataclass(frozen=True)
class Equivalence:
    """Channels of one intermediate tensor, all that writes them and all that reads them."""

    name: str
    kind: Kind
    channels: int
    writers: tuple[Rows, ...]
    readers: tuple[Columns, ...]

    @property
    def modules(self) -> tuple[str, ...]:
        return (*(rows.module for rows in self.writers), *(columns.layer for columns in self.readers))


@dataclass(frozen=True)
class Barrier:
    """Layers whose inputs nothing rescales exactly, and why."""

    layers: tuple[str, ...]
    reason: str


@torch.no_grad()
def rescale_(network: nn.Module, place: Equivalence, factor: Tensor) -> None:
    """Multiply every channel of ``place`` by its positive ``factor`` [C], and divide what reads it."""
    factor = factor.double()
    for rows in place.writers:
        _rescale_rows_(network.get_submodule(rows.module), rows, factor)
    for columns in place.readers:
        part = slice(columns.start, columns.start + place.channels)
        _change_weight_(network.get_submodule(columns.layer), lambda w, part=part: _divided(w, part, factor))


def _rescale_rows_(module: Any, rows: Rows, factor: Tensor) -> None:
    part = slice(rows.start, rows.start + len(factor))
    _change_weight_(module, lambda weight: _multiplied(weight, part, factor))
    if module.bias is not None:
        bias = module.bias.data.double()
        factor = factor.to(bias.device)
        bias[part] = (bias[part] + 1) * factor - 1 if rows.one_added else bias[part] * factor
        module.bias.data = bias.to(module.bias.dtype)


def _change_weight_(module: Any, change: Callable[[Tensor], Tensor]) -> None:
    """Change a weight, or what is brought for it while it lies elsewhere."""
    brought = getattr(module, "weight_elsewhere", None)
    if brought is None:
        module.weight.data = change(module.weight.data)
    else:
        module.weight_elsewhere = lambda: change(brought())


def _multiplied(weight: Tensor, part: slice, factor: Tensor) -> Tensor:
    changed = weight.clone()
    factor = factor.to(weight.device).view(-1, *[1] * (weight.ndim - 1))
    changed[part] = (weight[part].double() * factor).to(weight.dtype)
    return changed


def _divided(weight: Tensor, part: slice, factor: Tensor) -> Tensor:
    changed = weight.clone()
    factor = factor.to(weight.device).view(-1, *[1] * (weight.ndim - 2))
    changed[:, part] = (weight[:, part].double() / factor).to(weight.dtype)
    return changed


def tied(network: nn.Module, places: Sequence[Equivalence]) -> list[Equivalence]:
    """Return the places whose weights or biases other modules have too: those would be changed as well."""
    owners = Counter(id(parameter) for module in network.modules() for parameter in module._parameters.values())

    def is_shared(name: str) -> bool:
        module: Any = network.get_submodule(name)
        return any(owners[id(own)] > 1 for own in (module.weight, module.bias) if own is not None)

    return [place for place in places if any(map(is_shared, place.modules))]
