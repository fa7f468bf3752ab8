"""What single layers read and put out while the network runs on bank points in full precision."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from dmqbench.calibration.capture import run_points, without_points
from dmqbench.calibration.stage import Workbench
from dmqbench.data.bank import Trajectories
from dmqbench.models.hooks import hooked
from dmqbench.quant.functional import widened
from dmqbench.quant.layer import QuantLayer
from dmqbench.quant.layers import quantization


@dataclass(frozen=True)
class LayerBatch:
    """A layer's full-precision input and output, and where in the sampling its samples are.

    ``row`` [B] is each sample's row of activation parameters, ``bin`` [B] its bin of the timestep weighting.
    """

    x: Tensor
    output: Tensor
    row: Tensor
    bin: Tensor

    @classmethod
    def join(cls, parts: Sequence["LayerBatch"]) -> "LayerBatch":
        return cls(*(torch.cat([getattr(part, item.name) for part in parts]) for item in fields(cls)))

    def select(self, index: Tensor | slice) -> "LayerBatch":
        return LayerBatch(self.x[index], self.output[index], self.row[index], self.bin[index])

    def split(self, size: int) -> list["LayerBatch"]:
        """Batches of at most ``size`` samples."""
        return [self.select(slice(start, start + size)) for start in range(0, len(self.x), size)]


See = Callable[[str, LayerBatch], None]
"""Is shown the name of a layer, and a batch of what it sees."""


class LayerViews:
    """Shows batches of what layers see, from passes of the network or from memory.

    The methods return how many samples the network computed for them.

    Args:
        layers: by name.
        bin_of_call: bin of the timestep weighting of every network call, int64 [calls].
        points: the bank points of every stream that is looked at as a whole.
        batch: bank points in one pass of the network.
    """

    def __init__(
        self,
        bench: Workbench,
        layers: dict[str, QuantLayer],
        bin_of_call: Tensor,
        points: dict[str, Tensor],
        batch: int,
    ) -> None:
        self.bench = bench
        self.layers = layers
        self.bin_of_call = bin_of_call
        self.row_of_call = torch.tensor(bench.step_groups.row_of_call or (0,) * len(bin_of_call))
        self.points = points
        self.batch = batch
        self.kept: dict[str, dict[str, LayerBatch]] = {}
        """What a layer sees on all points of a stream, by layer and stream."""

    def require_every_row(self, stream: str) -> None:
        """Raise ValueError where a row of steps has no point to take a range from."""
        calls = getattr(self.bench.bank, stream).calls
        seen = set(self.row_of_call[self.points[stream] % calls].tolist())
        for row in range(self.bench.step_groups.rows):
            if row not in seen:
                raise without_points(row)

    def show(self, see: See, stream: str, points: Tensor, names: Sequence[str]) -> int:
        """Run the network on bank points and show every batch of the layers ``names``.

        Nothing is kept: a layer's batch is gone when the next layer runs.
        """
        bench, computed = self.bench, 0

        def watch(name: str, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            call = bench.adapter.context.step.cpu()
            row, bin = self.row_of_call[call], self.bin_of_call[call]
            see(name, LayerBatch(widened(args[0]), widened(output), row.to(output.device), bin.to(output.device)))

        with (
            hooked({name: self.layers[name] for name in names}, watch),
            torch.no_grad(),
            quantization(bench.network, weight=False, activation=False),
        ):
            trajectories: Trajectories = getattr(bench.bank, stream)
            for size in run_points(bench.denoising, trajectories, points, self.batch):
                computed += size * bench.branches
        return computed

    def show_all(self, see: See, stream: str, names: Sequence[str]) -> int:
        """Show all points of a stream, batch by batch: what is kept, and the other layers from one pass."""
        others = [name for name in names if stream not in self.kept.get(name, {})]
        for name in names:
            if name not in others:
                for batch in self.kept[name][stream].split(self.batch * self.bench.branches):
                    see(name, batch)
        return self.show(see, stream, self.points[stream], others) if others else 0

    def keep(self, streams: Sequence[str], names: Sequence[str]) -> int:
        """Keep what the layers ``names`` see on all points of some streams, and no longer what was kept before."""
        self.kept = {name: {} for name in names}
        computed = 0
        for stream in streams:
            seen: dict[str, list[LayerBatch]] = {name: [] for name in names}
            computed += self.show(
                lambda name, batch, seen=seen: seen[name].append(batch), stream, self.points[stream], names
            )
            for name in names:
                self.kept[name][stream] = LayerBatch.join(seen.pop(name))
        return computed

    def kept_samples(self, name: str, stream: str, picks: Tensor) -> LayerBatch:
        """What a layer whose view is kept sees on the ``picks``-th points of a stream, as ``show`` would show it.

        Under guidance a network call holds the unconditional samples of its points first, then the conditional ones.
        """
        start = picks // self.batch * self.batch
        size = (len(self.points[stream]) - start).clamp(max=self.batch)
        branches = self.bench.branches
        index = [start * branches + branch * size + picks - start for branch in range(branches)]
        return self.kept[name][stream].select(torch.cat(index))
