"""The stages that set ranges: of weights by themselves, of activations from the bank."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dmqbench.calibration.capture import run_points, without_points
from dmqbench.calibration.stage import Stage, Workbench
from dmqbench.quant.functional import affine_parameters
from dmqbench.quant.layer import QuantLayer
from dmqbench.quant.layers import quantization, weight_layers
from dmqbench.quant.observers import Observer
from dmqbench.quant.quantizer import ActivationQuantizer
from dmqbench.quant.spec import StepGroups
from dmqbench.quant.state import activation_quantizers


@dataclass(frozen=True, kw_only=True)
class RangeSettings:
    """How the ends of a range are found: see ``Observer``."""

    observer: str
    """``min_max``, ``mse`` or ``percentile``."""
    candidates: int
    """Ranges that ``mse`` compares."""
    exponent: float
    """p of the error |x|^p that ``mse`` compares; 2.4 as in BRECQ."""
    fraction: float = 0.999
    """Share of the values that lies inside a range of ``percentile``, 0 to 1."""

    @property
    def range_of(self) -> Observer:
        return Observer(self.observer, self.candidates, self.exponent, self.fraction)


@dataclass(frozen=True, kw_only=True)
class WeightRangeSettings(RangeSettings):
    """How the ends of a row's range are found."""

    zero_in_range: bool = True
    """Whether ranges are widened to hold zero; those of the published codes are not."""

    @property
    def range_of(self) -> Observer:
        return replace(super().range_of, with_zero=self.zero_in_range)


class WeightRange(Stage):
    """Scale and zero-point of every (row, input group) of every weight, by an observer (rounding to nearest)."""

    name = "weight_range"
    weights_only = True
    settings_type = WeightRangeSettings
    settings: WeightRangeSettings

    def __init__(self, bench: Workbench, settings: WeightRangeSettings) -> None:
        super().__init__(bench, settings)
        self.layers = list(weight_layers(bench.network).values())

    def units(self) -> tuple[str, ...]:
        return ("weights",)

    def iterations(self, unit: str) -> int:
        return len(self.layers)

    @torch.no_grad()
    def iterate(self, unit: str, iteration: int) -> None:
        set_weight_range_(self.layers[iteration], self.settings.range_of)


def set_weight_range_(layer: QuantLayer, observer: Observer) -> None:
    """Set the weight parameters of one layer from its scaled weight."""
    quantizer = layer.weight_quantizer
    assert quantizer is not None
    layer.drop_rounding_()
    parameters = []
    for rows in quantizer.rows(layer.scaled_weight()):
        low, high = observer(rows, quantizer.levels)
        parameters.append(affine_parameters(low, high, quantizer.levels, observer.with_zero))
    scales, zero_points = zip(*parameters, strict=True)
    quantizer.set_parameters_(torch.stack(scales, dim=1), torch.stack(zero_points, dim=1))


class ActivationPass(Stage):
    """One pass over bank points, with quantized weights, that gives every activation quantizer its parameters."""

    def __init__(self, bench: Workbench, settings: Any) -> None:
        super().__init__(bench, settings)
        self.points = bench.bank.cal.spread(settings.samples)
        self.steps = bench.step_groups
        self.quantizers = activation_quantizers(bench.network)

    def units(self) -> tuple[str, ...]:
        return ("observe",)

    def run(self, points: Tensor) -> None:
        """Run the network on ``points`` in one call while hooks or observers look at the activations."""
        bench = self.bench
        with quantization(bench.network, weight=True, activation=True):
            for size in run_points(bench.denoising, bench.bank.cal, points, len(points)):
                self.network_forwards += size * bench.branches

    def facts(self) -> dict[str, float]:
        """What is recorded of the pass."""
        return {"quantizers": len(self.quantizers), "points": len(self.points)}


@dataclass(frozen=True, kw_only=True)
class ActivationRangeSettings(RangeSettings):
    """How the ends of a range are found, and on what."""

    samples: int
    """Bank points, spread evenly over the network calls."""
    batch: int
    """Bank points in one network call."""
    values_per_row: int
    """Values of an activation that are kept for each row of its step table, about."""


class ActivationRange(ActivationPass):
    """Activation ranges from bank points that run through the network with quantized weights.

    A bounded sample of the values of every quantizer is kept, row by row of its step table; the smallest and largest
    values are exact. The observer then works on these rows.
    """

    name = "activation_range"
    settings_type = ActivationRangeSettings
    settings: ActivationRangeSettings

    def __init__(self, bench: Workbench, settings: ActivationRangeSettings) -> None:
        super().__init__(bench, settings)
        self.values_per_sample = max(1, settings.values_per_row * bench.step_groups.rows // len(self.points))
        self.seen: dict[str, ActivationSample] = {}

    def iterations(self, unit: str) -> int:
        return -(-len(self.points) // self.settings.batch)

    def start_unit(self, unit: str) -> None:
        self.seen = {
            name: ActivationSample(quantizer, self.steps, self.values_per_sample)
            for name, quantizer in self.quantizers.items()
        }

    @torch.no_grad()
    def iterate(self, unit: str, iteration: int) -> None:
        for name, quantizer in self.quantizers.items():
            quantizer.observer = self.seen[name].add
        try:
            self.run(self.points.split(self.settings.batch)[iteration])
        finally:
            for quantizer in self.quantizers.values():
                quantizer.observer = None

    @torch.no_grad()
    def finish_unit(self, unit: str) -> dict[str, float]:
        for name, quantizer in self.quantizers.items():
            low, high = sampled_ends(self.seen[name], self.settings.range_of)
            scale, zero_point = affine_parameters(low, high, quantizer.levels)
            quantizer.set_parameters_(scale, zero_point, self.steps)
            quantizer.exponent = None  # chosen for another range
        self.seen = {}
        return self.facts()


def sampled_ends(sample: "ActivationSample", observer: Observer) -> tuple[Tensor, Tensor]:
    """Range ends of a sample, both [rows, groups].

    Raises:
        ValueError: no bank point was at the steps of some row.
    """
    ends = []
    for group in range(sample.quantizer.groups.count):
        rows = []
        for row in range(sample.steps.rows):
            values, low, high = sample.row(group, row)
            levels = torch.tensor([sample.quantizer.levels], device=values.device)
            ends_of_row = observer(values[None], levels, (low[None], high[None]))
            rows.append(torch.cat(ends_of_row))
        ends.append(torch.stack(rows))
    stacked = torch.stack(ends, dim=1)  # [rows, groups, 2]
    return stacked[..., 0], stacked[..., 1]


class ActivationSample:
    """Values of one activation, thinned evenly, kept per (input group, row of steps) with exact extremes."""

    def __init__(self, quantizer: ActivationQuantizer, steps: StepGroups, per_sample: int) -> None:
        self.quantizer = quantizer
        self.steps = steps
        self.row_of_call = torch.tensor(steps.row_of_call)
        self.per_sample = per_sample
        self.values: dict[tuple[int, int], list[Tensor]] = {}
        self.taken: dict[tuple[int, int], int] = {}
        """Samples so far."""
        self.low: dict[tuple[int, int], Tensor] = {}
        self.high: dict[tuple[int, int], Tensor] = {}

    def add(self, x: Tensor) -> None:
        """Take in activations [B, …] of the batch that is in flight."""
        steps = self.quantizer.context.step.cpu()
        rows = self.row_of_call[steps] if len(self.row_of_call) else torch.zeros_like(steps)
        for group, part in enumerate(self.quantizer.groups.slices):
            piece = x.narrow(self.quantizer.channel_axis, part.start, part.stop - part.start).flatten(1)
            stride = max(1, piece.shape[1] // self.per_sample)
            for row in rows.unique().tolist():
                chosen = piece[rows == row]
                key = (group, row)
                # Each sample of a row starts its thinning elsewhere, or some pixels would never be looked at.
                before = self.taken.get(key, 0)
                self.taken[key] = before + len(chosen)
                starts = [(before + index) % stride for index in range(len(chosen))]
                kept = torch.cat([v[start::stride] for v, start in zip(chosen, starts, strict=True)])
                self.values.setdefault(key, []).append(kept)
                low, high = torch.aminmax(chosen)
                self.low[key] = torch.minimum(self.low.get(key, low), low)
                self.high[key] = torch.maximum(self.high.get(key, high), high)

    def row(self, group: int, row: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return (values [K], smallest, largest) of one row.

        Raises:
            ValueError: no bank point was at any of the row's steps.
        """
        key = (group, row)
        if key not in self.values:
            raise without_points(row)
        return torch.cat(self.values[key]), self.low[key], self.high[key]
