"""Recording what flows into and out of modules while the network runs on bank points."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from dmqbench.calibration.rows import Rows, Shelf
from dmqbench.data.bank import Trajectories
from dmqbench.models.hooks import Reached, hooked, output_tensors
from dmqbench.models.rollout import Denoising

SHARED = ("image_rotary_emb",)
"""Arguments of blocks that are the same for all samples: tables of positions, which can be as long as a batch."""

ON_DEVICE = Shelf()


@dataclass(frozen=True)
class ModuleInputs:
    """Inputs of one module for many samples: (args, kwargs) whose tensors are ``Rows``, and each sample's step."""

    arguments: Any
    step: Tensor
    shared: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments, the same for all samples."""

    def __len__(self) -> int:
        return len(self.step)

    def select(self, index: Tensor | slice) -> tuple[tuple[Any, ...], dict[str, Any], Tensor]:
        """Return (args, kwargs, step) of the samples ``index``."""
        args, kwargs = tree_map(lambda leaf: leaf[index] if isinstance(leaf, Rows) else leaf, self.arguments)
        return args, kwargs | self.shared, self.step[index]


class _Joined:
    """Trees of tensors joined leaf by leaf, in room for ``count`` samples; leaves that are not batched are those of the
    first tree."""

    def __init__(self, count: int, shelf: Shelf) -> None:
        self.count, self.shelf = count, shelf
        self.structure: TreeSpec | None = None
        self.leaves: list[Any] = []

    def append(self, tree: Any, size: int) -> None:
        """Take the next tree, of so many samples."""
        leaves, structure = tree_flatten(tree)
        if self.structure is None:
            self.structure = structure
            self.leaves = [self.shelf.rows(self.count, leaf) if _batched(leaf, size) else leaf for leaf in leaves]
        for place, (known, leaf) in enumerate(zip(self.leaves, leaves, strict=True)):
            if isinstance(known, Rows) and _batched(leaf, size):
                known.append(leaf)
            elif isinstance(known, Rows):  # its length was that of the first batch by chance
                self.leaves[place] = leaf

    @property
    def tree(self) -> Any:
        assert self.structure is not None, "there were no points"
        return tree_unflatten(self.leaves, self.structure)


def _batched(leaf: Any, size: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == size


def run_points(denoising: Denoising, trajectories: Trajectories, points: Tensor, batch: int) -> Iterator[int]:
    """Run the network on bank points, batch by batch; hooks see the activations. Yields the size of each batch."""
    for part in points.split(batch):
        with suppress(Reached):
            denoising.predict(trajectories.at(part))
        yield len(part)


@torch.no_grad()
def capture_inputs(
    denoising: Denoising,
    module: nn.Module,
    trajectories: Trajectories,
    points: Tensor,
    batch: int,
    shelf: Shelf = ON_DEVICE,
) -> ModuleInputs:
    """Return the module's inputs on ``points``; each forward pass ends where the module would start."""
    joined = _Joined(len(points) * denoising.branches, shelf)
    steps: list[Tensor] = []
    shared: dict[str, Any] = {}

    def keep(_: str, __: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        shared.update((name, value) for name, value in kwargs.items() if name in SHARED)
        step = denoising.adapter.context.step
        joined.append((args, {name: value for name, value in kwargs.items() if name not in SHARED}), len(step))
        steps.append(step)
        raise Reached

    with hooked({"": module}, keep, pre=True, with_kwargs=True):
        for _ in run_points(denoising, trajectories, points, batch):
            pass
    return ModuleInputs(joined.tree, torch.cat(steps), shared)


@torch.no_grad()
def capture_outputs(
    denoising: Denoising,
    modules: dict[str, nn.Module],
    trajectories: Trajectories,
    points: Tensor,
    batch: int,
    shelf: Shelf = ON_DEVICE,
) -> dict[str, tuple[Rows, ...]]:
    """Return the output tensors of every module on ``points``, all from one pass."""
    joined = {name: _Joined(len(points) * denoising.branches, shelf) for name in modules}

    def keep(name: str, _: nn.Module, __: Any, output: Any) -> None:
        tensors = output_tensors(output)
        joined[name].append(tensors, len(tensors[0]))

    with hooked(modules, keep):
        for _ in run_points(denoising, trajectories, points, batch):
            pass
    return {name: outputs.tree for name, outputs in joined.items()}


def memory_groups(sizes: dict[str, int], budget: int) -> list[list[str]]:
    """Cut names into consecutive groups whose sizes (bytes) add up to at most ``budget``; a group has at least one."""
    groups: list[list[str]] = []
    used = 0
    for name, size in sizes.items():
        if not groups or used + size > budget:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups


def without_points(row: int) -> ValueError:
    """The error of a row of steps that no bank point is at."""
    return ValueError(f"no calibration point is at the steps of row {row}; raise budget.samples")
