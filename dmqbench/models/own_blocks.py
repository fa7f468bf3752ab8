"""Which modules of a network that nobody knows can be reconstructed as blocks."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dmqbench.models.hooks import hooked
from dmqbench.models.topology import is_layer

LAYERS = 2
"""So many layers at least make a block."""

BATCHES = (2, 3)
"""Of the calls by which is told what has the samples as its first axis; two, as a table may be as long as a batch."""

Tensors = list[tuple[Tensor, int]]
"""Tensors with their versions: one that is changed in place afterwards has another."""


@torch.no_grad()
def own_blocks(network: nn.Module, call: Callable[[nn.Module, int], Any]) -> frozenset[str]:
    """Return the names of the blocks of ``network``, which ``call`` calls with a batch of samples.

    They are the innermost members of its lists and sequences of modules with several layers; each runs once in a call,
    and all tensors that it reads and puts out have the samples as their first axis and are not changed in place.
    """
    blocks = dict(_innermost(network))
    for batch in BATCHES:
        seen: dict[str, list[Tensors]] = {name: [] for name in blocks}

        def before(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], seen: Any = seen) -> None:
            seen[name].append(_tensors((args, kwargs)))

        def after(name: str, _: nn.Module, __: Any, output: Any, seen: Any = seen) -> None:
            seen[name].append(_tensors(output))

        with hooked(blocks, before, pre=True, with_kwargs=True), hooked(blocks, after):
            call(network, batch)
        blocks = {name: module for name, module in blocks.items() if _separable(seen[name], batch)}
    return frozenset(blocks)


def _innermost(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    members = {
        f"{name}.{key}" if name else key: member
        for name, holder in network.named_modules()
        if isinstance(holder, (nn.ModuleList, nn.ModuleDict, nn.Sequential))
        for key, member in holder.named_children()
        if sum(map(is_layer, member.modules())) >= LAYERS
    }
    for name, member in members.items():
        if not any(other.startswith(f"{name}.") for other in members):
            yield name, member


def _tensors(tree: Any) -> Tensors:
    return [(leaf, leaf._version) for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _separable(seen: list[Tensors], batch: int) -> bool:
    """Whether a module ran once, from tensors of ``batch`` samples to such, of which none was changed afterwards."""
    return len(seen) == 2 and all(
        side and all(tensor.shape[:1] == (batch,) and tensor._version == version for tensor, version in side)
        for side in seen
    )
