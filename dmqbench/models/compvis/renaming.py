"""Names of blocks and of the layers within them: the original's, and diffusers'."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from dmqbench.models.folders import ModelError


class Block(NamedTuple):
    """A module that both call differently; ``layers``: what is within it, None where both agree on that."""

    original: str
    name: str
    layers: Mapping[str, str] | None = None


ATTENTION = {
    **{"norm": "group_norm", "proj_out": "to_out.0"},
    **{letter: f"to_{letter}" for letter in ("q", "k", "v")},
}
"""Attention among pixels, whose projections are convolutions in the original."""


def renamed(tensors: Mapping[str, Tensor], blocks: Iterable[Block]) -> dict[str, Tensor]:
    """Return tensors by diffusers' names.

    Raises:
        ModelError: one belongs to no block, so that something else would be computed without it.
    """
    known = {block.original: block for block in blocks}
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, parameter = name.rpartition(".")
        prefix = next((each for each in _prefixes(module) if each in known), None)
        if prefix is None:
            raise ModelError(f"{name} belongs to no block that a network of this configuration has")
        block, layer = known[prefix], module[len(prefix) + 1 :]
        if block.layers is not None and layer not in block.layers:
            raise ModelError(f"{name} is no layer that such a block has")
        ours = layer if block.layers is None else block.layers[layer]
        tensor = tensor.reshape(tensor.shape[:2]) if block.layers is ATTENTION else tensor
        found[".".join(part for part in (block.name, ours, parameter) if part)] = tensor
    return found


def _prefixes(module: str) -> Iterable[str]:
    """The module, and those around it."""
    parts = module.split(".")
    return (".".join(parts[:count]) for count in range(len(parts), 0, -1))
