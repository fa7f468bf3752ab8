"""Power-of-two scaling of activations (PTS, DMQ section 4.3): a vote on the exponent of every input channel.

Layers are taken in execution order, so that each one votes on inputs that the layers before it have already been
scaled for. Only votes and summed errors are kept, never activations.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dmqbench.calibration.capture import capture_inputs
from dmqbench.calibration.stage import HELD_OUT_POINTS, CalibrationDiverged, Stage, Workbench
from dmqbench.data.bank import Trajectories
from dmqbench.quant.layer import QuantLayer
from dmqbench.quant.layers import quant_layers, quantization
from dmqbench.quant.power_of_two import Ballot, Exponents, candidate_errors
from dmqbench.quant.quantizer import ActivationQuantizer
from dmqbench.stages.reconstruction import reconstruction_error

log = logging.getLogger(__name__)


def layers_to_scale(bench: Workbench, which: str) -> dict[str, QuantLayer]:
    """Return the convolutions with quantized activations that scaling concerns, in execution order.

    ``skip``: those that read a skip concatenation or stand beside a residual branch (in a U-Net of diffusers, the 1×1
    shortcuts of its residual blocks); ``all``: every convolution. Channels of linear layers are not scaled.
    """
    layers = quant_layers(bench.network)
    return {
        info.name: layers[info.name]
        for info in bench.topology.layers
        if info.name in layers
        and layers[info.name].activation_quantizer is not None
        and info.kind != "linear"
        and (which == "all" or info.shortcut or info.boundaries)
    }


@dataclass(frozen=True)
class Outcome:
    """What was found at one layer, beside its exponents."""

    agreement: Tensor
    """Share of the commonest vote, float64 [rows, C]."""
    held_out: Tensor
    """Output error on the validation trajectories, before and after, float64 [2]."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Which layers vote, and how votes are counted."""

    layers: str
    """``skip`` or ``all``: see ``layers_to_scale``."""
    selection: str
    """``vote`` (the commonest of the samples' best exponents, if enough of them agree) or ``mse`` (the exponent of
    least error over all samples)."""
    agreement: float
    """κ, the least share of the samples that must agree, 0 to 1; otherwise the channel keeps its range."""
    depth: int
    """D, so that the finest scale is s / 2^D."""
    samples: int
    """Bank points that vote; under guidance each of them votes with and without its condition."""
    batch: int
    """Bank points in one network call."""


class PowerOfTwoScaling(Stage):
    """Exponents −D..0 on the activation scale, for every input channel and row of steps of some convolutions.

    Raises:
        ValueError: a setting is out of range, or a layer has no calibrated static range to scale.
    """

    name = "power_of_two_scaling"
    settings_type = Settings
    settings: Settings

    def __init__(self, bench: Workbench, settings: Settings) -> None:
        super().__init__(bench, settings)
        self.points = bench.bank.cal.spread(settings.samples)
        self.held_out = bench.bank.val.spread(HELD_OUT_POINTS)
        self.layers = layers_to_scale(bench, settings.layers)
        self.outcomes: dict[str, Outcome] = {}
        self._check_ranges()
        if not self.layers and any(layer.activation_quantizer for layer in quant_layers(bench.network).values()):
            finds = f"layers={settings.layers} finds no convolution to scale in this model"
            reason = f"{finds}: its ranges stay as they are"
            log.warning("%s: %s", self.name, reason)
            bench.record.log("nothing_to_do", stage=self.name, reason=reason)

    def _check_ranges(self) -> None:
        for name, layer in self.layers.items():
            quantizer = layer.activation_quantizer
            if quantizer is None or quantizer.dynamic or not quantizer.initialised:
                raise ValueError(f"{self.name}: layer {name} has no calibrated static activation range to scale")

    @classmethod
    def outline_(cls, network: nn.Module, settings: Settings) -> str | None:
        quantized = any(layer.activation_quantizer for layer in quant_layers(network).values())
        return "which layers get powers of two is found while calibrating" if quantized else None

    def units(self) -> tuple[str, ...]:
        return tuple(self.layers)

    def iterations(self, unit: str) -> int:
        return -(-len(self.points) // self.settings.batch)

    def quantizer(self, unit: str) -> ActivationQuantizer:
        quantizer = self.layers[unit].activation_quantizer
        assert quantizer is not None  # layers_to_scale takes no others
        return quantizer

    def start_unit(self, unit: str) -> None:
        quantizer = self.quantizer(unit)
        quantizer.exponent = None
        rows, channels = len(quantizer.scale), quantizer.groups.channels
        self.ballot = Ballot(rows, channels, self.settings.depth, quantizer.scale.device)

    @torch.no_grad()
    def iterate(self, unit: str, iteration: int) -> None:
        layer, quantizer = self.layers[unit], self.quantizer(unit)
        part = self.points[iteration * self.settings.batch : (iteration + 1) * self.settings.batch]
        x, step = self._inputs(unit, self.bench.bank.cal, part)
        x = layer.scaled_input(x)
        with self.bench.adapter.context.at(step):
            rows = quantizer.rows().expand(len(x))
        errors = candidate_errors(x, *quantizer.tables(rows), quantizer.levels, self.settings.depth)
        if not errors.isfinite().all():
            raise CalibrationDiverged(f"stage {self.name}, unit {unit}: its input is not finite")
        self.ballot.add(errors, rows)

    def _inputs(self, unit: str, trajectories: Trajectories, points: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [B, C, …] and steps [B] of a layer behind the quantized layers before it."""
        bench, layer = self.bench, self.layers[unit]
        # On average the forward passes end half-way through the network.
        self.network_forwards += len(points) * bench.branches / 2
        with quantization(bench.network, weight=True, activation=True):
            seen = capture_inputs(bench.denoising, layer, trajectories, points, self.settings.batch)
        (x, *_), _, step = seen.select(slice(None))
        return x, step

    @torch.no_grad()
    def finish_unit(self, unit: str) -> dict[str, float]:
        by_vote = self.settings.selection == "vote"
        election = self.ballot.by_vote(self.settings.agreement) if by_vote else self.ballot.by_error()
        outcome = Outcome(election.agreement.cpu(), self._held_out_errors(unit, election))
        # Without a table the engines have nothing to multiply by.
        self.quantizer(unit).exponent = election.exponent if election.exponent.any() else None
        self.outcomes[unit] = outcome
        del self.ballot
        before, after = outcome.held_out.tolist()
        return {
            "held_out_error_before": before,
            "held_out_error": after,
            "scaled": float((election.exponent < 0).double().mean()),
            "agreement": float(outcome.agreement.mean()),
        }

    def _held_out_errors(self, unit: str, election: Exponents) -> Tensor:
        """Output error without and with the exponents, against full precision on the same inputs, float64 [2]."""
        layer, quantizer = self.layers[unit], self.quantizer(unit)
        sums = torch.zeros(2, dtype=torch.float64)
        for part in self.held_out.split(self.settings.batch):
            x, step = self._inputs(unit, self.bench.bank.val, part)
            target = layer.apply_weight(x, layer.unscaled_weight(), layer.bias)
            with self.bench.adapter.context.at(step), quantization(layer, weight=True, activation=True):
                for place, exponent in enumerate((None, election.exponent)):
                    quantizer.exponent = exponent
                    sums[place] += float(reconstruction_error(layer(x), target)) * len(part)
        return sums / len(self.held_out)

    def progress(self) -> dict[str, Tensor]:
        return {
            f"{name}.{fact}": getattr(outcome, fact)
            for name, outcome in self.outcomes.items()
            for fact in ("agreement", "held_out")
        }

    def load_progress_(self, progress: dict[str, Tensor]) -> None:
        self.outcomes = {
            name: Outcome(progress[f"{name}.agreement"], progress[f"{name}.held_out"])
            for name in self.units()[: self.first_unit]
        }

    def findings(self) -> dict[str, Any]:
        return {
            "layers": {name: self._finding(name, outcome) for name, outcome in self.outcomes.items()},
            "selection": self.settings.selection,
            "samples": len(self.points),
        }

    def _finding(self, name: str, outcome: Outcome) -> dict[str, Any]:
        exponent = self.quantizer(name).exponent
        if exponent is None:
            exponent = torch.zeros(outcome.agreement.shape, dtype=torch.int8)
        before, after = outcome.held_out.tolist()
        return {
            "exponents": {str(e): int((exponent == e).sum()) for e in range(-self.settings.depth, 1)},
            "agreement": outcome.agreement.mean(1).tolist(),
            "scaled": float((exponent < 0).double().mean()),
            "held_out_error_before": before,
            "held_out_error": after,
        }
