"""Bias correction (Nagel et al., ICCV 2019, §4.2, the empirical form; Banner et al., NeurIPS 2019): the mean error that
quantization makes in every output channel of a layer is taken back by a constant.

Rounding of weights shifts an output by an amount that depends on how a row happened to be rounded, so by luck of the
calibration; the same shift at every step adds up along a trajectory. Errors are those of the layer alone: its output
with quantization against its output without, of the input that it has in the quantized network. Layers so depend on
each other through their inputs only, and one pass over the bank points serves all.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dmqbench.calibration.capture import run_points
from dmqbench.calibration.stage import Stage, Workbench
from dmqbench.models.hooks import hooked
from dmqbench.quant.functional import widened
from dmqbench.quant.layer import QuantLayer
from dmqbench.quant.layers import quant_layers, quantization


@dataclass(frozen=True, kw_only=True)
class Settings:
    """On what means are taken."""

    samples: int
    """Bank points, spread evenly over the network calls."""
    batch: int
    """Bank points in one network call."""


class Means:
    """Of the error of one layer: per output channel its sum, and of its square the sum over all channels."""

    def __init__(self, rows: int) -> None:
        self.total = torch.zeros(rows, dtype=torch.float64)
        self.square = 0.0
        self.count = 0

    def add(self, error: Tensor, axis: int) -> None:
        """Take in errors [B, …] whose output channels lie along ``axis``."""
        by_channel = error.movedim(axis, 0).flatten(1).double()
        self.total += by_channel.sum(dim=1).cpu()
        self.square += float(by_channel.square().sum())
        self.count += by_channel.shape[1]

    @property
    def shift(self) -> Tensor:
        """The mean error of each output channel, float64 [C_out]."""
        return self.total / self.count

    @property
    def share(self) -> float:
        """What part of the mean squared error the shift is, 0 to 1."""
        return float(self.shift.square().sum()) * self.count / self.square if self.square else 0.0


def corrected(network: nn.Module) -> dict[str, QuantLayer]:
    """Return the layers of which anything is quantized, by name."""
    layers = quant_layers(network).items()
    return {name: each for name, each in layers if each.weight_quantizer or each.activation_quantizer}


class BiasCorrection(Stage):
    """Set the output shift of every quantized layer, so that its mean error on the bank points is zero."""

    name = "bias_correction"
    settings_type = Settings
    settings: Settings

    def __init__(self, bench: Workbench, settings: Settings) -> None:
        super().__init__(bench, settings)
        self.layers = corrected(bench.network)
        self.batches = bench.bank.cal.spread(settings.samples).split(settings.batch)
        self.means: dict[str, Means] = {}
        self.shares: dict[str, float] = {}

    @classmethod
    def outline_(cls, network: nn.Module, settings: Settings) -> str | None:
        for layer in corrected(network).values():
            layer.output_shift = widened(layer.weight).new_zeros(len(layer.weight))
        return None

    def units(self) -> tuple[str, ...]:
        return ("shifts",)

    def iterations(self, unit: str) -> int:
        return len(self.batches)

    def start_unit(self, unit: str) -> None:
        self.means = {name: Means(len(layer.weight)) for name, layer in self.layers.items()}
        for layer in self.layers.values():
            layer.output_shift = None

    @torch.no_grad()
    def iterate(self, unit: str, iteration: int) -> None:
        bench, points = self.bench, self.batches[iteration]
        with quantization(bench.network, weight=True, activation=True), hooked(self.layers, self._look):
            for size in run_points(bench.denoising, bench.bank.cal, points, len(points)):
                self.network_forwards += size * bench.branches

    def _look(self, name: str, layer: QuantLayer, args: tuple[Tensor, ...], output: Tensor) -> None:
        exact = layer.apply_weight(args[0], layer.unscaled_weight(), layer.bias)
        self.means[name].add(widened(output) - widened(exact), layer.channel_axis)

    @torch.no_grad()
    def finish_unit(self, unit: str) -> dict[str, float]:
        for name, means in self.means.items():
            layer = self.layers[name]
            layer.output_shift = -means.shift.float().to(layer.weight.device)
        self.shares = {name: means.share for name, means in self.means.items()}
        self.means = {}
        return {"layers": len(self.layers), "largest_share": max(self.shares.values(), default=0.0)}

    def findings(self) -> dict[str, Any]:
        """By layer, what part of the mean squared error of its output was a shift of its channels."""
        return {"shares": self.shares} if self.shares else {}
