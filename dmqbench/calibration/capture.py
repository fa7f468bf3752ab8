"""Recording what flows into and out of modules while the network runs on bank points."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from dmqbench.data.bank import Trajectories
from dmqbench.models.hooks import hooked, output_tensors
from dmqbench.models.rollout import Denoising

SHARED = ("image_rotary_emb",)
"""Arguments of blocks that are the same for all samples: tables of positions, which can be as long as a batch."""


class _Reached(Exception):
    """The module of interest was reached: the rest of the forward pass is not needed."""


@dataclass(frozen=True)
class ModuleInputs:
    """Inputs of one module for many samples: (args, kwargs) whose tensors are batched, and each sample's step."""

    arguments: Any
    step: Tensor
    shared: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments, the same for all samples."""

    def __len__(self) -> int:
        return len(self.step)

    def select(self, index: Tensor) -> tuple[tuple[Any, ...], dict[str, Any], Tensor]:
        """Return (args, kwargs, step) of the samples ``index``."""
        total = len(self)

        def pick(leaf: Any) -> Any:
            return leaf[index] if isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == total else leaf

        args, kwargs = tree_map(pick, self.arguments)
        return args, kwargs | self.shared, self.step[index]


def _join(parts: Sequence[Any], sizes: Sequence[int]) -> Any:
    """Concatenate trees leaf by leaf; leaves that are not batched are taken from the first."""
    flat = [tree_flatten(part) for part in parts]
    leaves = []
    for column in zip(*(leaves for leaves, _ in flat), strict=True):
        batched = all(
            isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == size
            for leaf, size in zip(column, sizes, strict=True)
        )
        leaves.append(torch.cat(column) if batched else column[0])
    return tree_unflatten(leaves, flat[0][1])


def run_points(denoising: Denoising, trajectories: Trajectories, points: Tensor, batch: int) -> Iterator[int]:
    """Run the network on bank points, batch by batch; hooks see the activations. Yields the size of each batch."""
    for part in points.split(batch):
        with suppress(_Reached):
            denoising.predict(trajectories.at(part))
        yield len(part)


@torch.no_grad()
def capture_inputs(
    denoising: Denoising, module: nn.Module, trajectories: Trajectories, points: Tensor, batch: int
) -> ModuleInputs:
    """Return the module's inputs on ``points``; each forward pass ends where the module would start."""
    parts: list[Any] = []
    steps: list[Tensor] = []
    shared: dict[str, Any] = {}

    def keep(_: str, __: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        shared.update((name, value) for name, value in kwargs.items() if name in SHARED)
        parts.append((args, {name: value for name, value in kwargs.items() if name not in SHARED}))
        steps.append(denoising.adapter.context.step)
        raise _Reached

    with hooked({"": module}, keep, pre=True, with_kwargs=True):
        for _ in run_points(denoising, trajectories, points, batch):
            pass
    return ModuleInputs(_join(parts, [len(step) for step in steps]), torch.cat(steps), shared)


@torch.no_grad()
def capture_outputs(
    denoising: Denoising, modules: dict[str, nn.Module], trajectories: Trajectories, points: Tensor, batch: int
) -> dict[str, tuple[Tensor, ...]]:
    """Return the output tensors of every module on ``points``, all from one pass."""
    outputs: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in modules}

    def keep(name: str, _: nn.Module, __: Any, output: Any) -> None:
        outputs[name].append(output_tensors(output))

    with hooked(modules, keep):
        for _ in run_points(denoising, trajectories, points, batch):
            pass
    return {name: tuple(map(torch.cat, zip(*parts, strict=True))) for name, parts in outputs.items()}


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
