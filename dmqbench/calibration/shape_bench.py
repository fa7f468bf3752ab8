"""A network of shapes alone, and how many bytes its calls, blocks and layers would hold: nothing is computed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from dmqbench.calibration.capture import SHARED
from dmqbench.models.families.family import Family
from dmqbench.models.hooks import hooked, output_tensors
from dmqbench.models.live_memory import live_memory, network_bytes, peak_of
from dmqbench.models.portions import WHOLE, Portions, recomputed
from dmqbench.models.shape_memo import ShapeMemo
from dmqbench.models.sources import example_inputs
from dmqbench.models.topology import Topology
from dmqbench.quant.context import StepContext
from dmqbench.quant.layers import quant_layers, quantization
from dmqbench.quant.state import calibration_bytes

PROBED = 3
"""Samples of the call that shapes are taken from: a size that is hardly another dimension's."""


@dataclass(frozen=True)
class Seen:
    """What a module reads and puts out in a call of ``PROBED`` samples."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Tensor, ...]

    @property
    def input_bytes(self) -> int:
        """Of one sample, as it is captured."""
        return sample_bytes((self.args, {name: value for name, value in self.kwargs.items() if name not in SHARED}))

    @property
    def output_bytes(self) -> int:
        return sample_bytes(self.outputs)

    def inputs(self, samples: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return (args, kwargs) for so many samples."""
        return _resized(self.args, samples), _resized(dict(self.kwargs), samples)


@dataclass(frozen=True)
class PointCounts:
    """Points of the bank: of calibration and of validation, and the calls of a trajectory."""

    cal: int
    val: int
    calls: int

    @property
    def trajectories(self) -> int:
        """Of calibration."""
        return self.cal // self.calls


@dataclass
class ShapeBench:
    """What stages would work on, in the state that those so far would have left it in."""

    network: nn.Module
    """With quantizable layers, on the meta device."""
    family: Family
    topology: Topology
    context: StepContext
    branches: int
    points: PointCounts
    rows: int
    """Rows of activation parameters."""
    dtype: torch.dtype = torch.float32
    """Of the network."""
    portions: Portions = WHOLE
    """What is done to hold less."""
    elsewhere: int = 0
    """Bytes that the last stage keeps elsewhere, if its portions are moved."""

    @property
    def network_bytes(self) -> int:
        return network_bytes(self.network)

    @property
    def saved_bytes(self) -> int:
        """What writing a checkpoint takes."""
        return saved_bytes(self.network)

    def points_of(self, settings: Any) -> int:
        """How many points of calibration a stage takes."""
        return min(settings.samples, self.points.cal)

    def batch_of(self, settings: Any) -> int:
        """How many of them it computes together."""
        return min(settings.batch, self.points_of(settings))

    def portion_of(self, samples: int) -> int:
        """How many of a batch of samples are computed at once."""
        return min(samples, self.portions.samples or samples)

    def kept(self, size: int) -> int:
        """Return what of ``size`` bytes that a stage keeps lies here."""
        self.elsewhere = max(self.elsewhere, size * self.portions.moved)
        return size * (not self.portions.moved)

    def run(self, points: int, portions: Portions | None = None) -> Tensor:
        """Call the network on bank points; of many portions the first two alone, as the others hold no more."""
        samples, portions = points * self.branches, self.portions if portions is None else portions
        outputs: list[Tensor] = []
        for part in [*torch.arange(samples).split(portions.samples or samples)][:2]:

            def portion(size: int = len(part)) -> Tensor:
                with recomputed(self.network, portions.recomputed, self.context):
                    return self._portion(size)

            again = len(part) < samples and torch.is_grad_enabled()
            outputs.append(self.context.checkpoint(portion) if again else portion())
        rest = samples - sum(map(len, outputs))
        return torch.cat([*outputs, outputs[0].new_empty(rest, *outputs[0].shape[1:])]) if rest else torch.cat(outputs)

    def _portion(self, samples: int) -> Tensor:
        args, kwargs = example_inputs(self.family, samples, "meta", dtype=self.dtype)
        with self.context.at(torch.zeros(samples, dtype=torch.long, device="meta")):
            output = self.family.output(self.network, args, kwargs)
            return self.family.prediction(output, torch.empty(samples, *self.family.input_shape, device="meta"))

    def call(self, points: int, weight: bool, activation: bool, portions: Portions | None = None) -> int:
        """Return what a network call without gradients holds beside the network, computed in ``portions`` or as all."""
        with torch.no_grad(), quantization(self.network, weight=weight, activation=activation):
            return peak_of(lambda: self.run(points, portions))

    def watched_call(self, points: int, names: Iterable[str], weight: bool, activation: bool) -> dict[str, int]:
        """Return what the call has held at most when each of the modules is reached."""
        reached: dict[str, int] = {}
        with live_memory() as live, torch.no_grad(), quantization(self.network, weight=weight, activation=activation):

            def note(name: str, *_: Any) -> None:
                reached.setdefault(name, live.peak)

            with hooked({name: self.network.get_submodule(name) for name in names}, note, pre=True):
                self.run(points)
        return reached

    def hooked_call(self, points: int, hook: Callable[..., Any], weight: bool = False, activation: bool = False) -> int:
        """Return what a call of the whole batch without gradients holds while ``hook`` sees every quantizable layer."""
        with (
            hooked(quant_layers(self.network), hook),
            torch.no_grad(),
            quantization(self.network, weight=weight, activation=activation),
        ):
            return peak_of(lambda: self.run(points, WHOLE))

    def training(self, points: int, leaves: Sequence[Tensor]) -> int:
        """Return what a quantized call and its backward pass hold, the gradients of ``leaves`` included."""

        def step() -> object:
            output = self.run(points)
            return torch.autograd.grad(output.square().mean(), leaves, allow_unused=True)

        with quantization(self.network, weight=True, activation=True), torch.enable_grad():
            return peak_of(step)

    @cached_property
    def seen(self) -> dict[str, Seen]:
        """Of every unit and every layer."""
        found: dict[str, Seen] = {}

        def note(name: str, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            found.setdefault(name, Seen(args, kwargs, output_tensors(output)))

        names = {*(unit.name for unit in self.topology.units), *(layer.name for layer in self.topology.layers)}
        modules = {name: self.network.get_submodule(name) for name in names}
        args, kwargs = example_inputs(self.family, PROBED, "meta", dtype=self.dtype)
        step = torch.zeros(PROBED, dtype=torch.long, device="meta")
        with ShapeMemo(), torch.no_grad(), hooked(modules, note, with_kwargs=True), self.context.at(step):
            self.family.output(self.network, args, kwargs)
        return found

    def example(self, layer: str, points: int) -> tuple[Tensor, Tensor]:
        """Return what a layer reads and puts out of so many points."""
        seen, samples = self.seen[layer], points * self.branches
        (x, *_), _ = seen.inputs(samples)
        return x, seen.outputs[0].new_empty(samples, *seen.outputs[0].shape[1:])


def saved_bytes(network: nn.Module) -> int:
    """Return what writing a checkpoint takes: its state is a copy."""
    return calibration_bytes(network)


def sample_bytes(tree: Any) -> int:
    """Return the bytes of one sample of a tree whose tensors are of ``PROBED``."""
    return sum(leaf.nbytes // PROBED for leaf in tree_leaves(tree) if _batched(leaf))


def _batched(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == PROBED


def _resized(tree: Any, samples: int) -> Any:
    return tree_map(lambda leaf: leaf.new_empty(samples, *leaf.shape[1:]) if _batched(leaf) else leaf, tree)
