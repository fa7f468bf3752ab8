"""Layer-wise output error: what each quantized layer gets wrong by itself, on full-precision inputs.

A proxy for sample quality that costs a few network calls: one full-precision pass, in which every layer also computes
its quantized output on the same input.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from dmqbench.anatomy.recorded import batches, predict, spread_calls
from dmqbench.data.bank import Trajectories
from dmqbench.models.hooks import hooked
from dmqbench.models.rollout import Denoising
from dmqbench.quant.layer import QuantLayer
from dmqbench.quant.layers import quant_layers, quantization

TRAJECTORIES = 8

_NOTHING = 1e-30
"""Below any sum of squares: a layer whose output is zero divides by it."""


@dataclass(frozen=True)
class LayerErrors:
    """Relative squared output errors Σ‖y_q − y‖² / Σ‖y‖², by quantized layer in execution order and call.

    ``skip`` says which layers read a concatenation with a skip, ``calls`` which network calls were measured;
    ``error`` is [L][K], each ≥ 0; ``tokens`` is whose each layer works on, of a network that has a text's as well.
    """

    names: tuple[str, ...]
    skip: tuple[bool, ...]
    calls: tuple[int, ...]
    error: tuple[tuple[float, ...], ...]
    tokens: tuple[str | None, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "tokens" or value is not None}

    @property
    def mean_log10(self) -> float | None:
        """Mean of log10 over layers and calls; those without any error are left out, None if all are."""
        logs = [math.log10(value) for row in self.error for value in row if value > 0]
        return sum(logs) / len(logs) if logs else None


def relative_error(error: Tensor, power: Tensor) -> Tensor:
    """Return ``error / power`` of two sums of squares; 0 where both are 0."""
    return error / power.clamp_min(_NOTHING)


@torch.no_grad()
def layer_errors(
    denoising: Denoising, trajectories: Trajectories, *, chunk: int, members: int = TRAJECTORIES
) -> LayerErrors | None:
    """Measure every quantizable layer of the network on the first ``members`` trajectories.

    The layers may be calibrated, frozen or lowered to an engine; their switches are as before when this returns. All
    calls are measured, or 20 of them spread evenly. None for a network without quantizable layers.

    Raises:
        FloatingPointError: an error is not finite, for example because a range was never calibrated.
    """
    adapter = denoising.adapter
    quantizable = quant_layers(adapter.network)
    with quantization(adapter.network, weight=False, activation=False):
        topology = adapter.topology()
        traced = [layer for layer in topology.layers if layer.name in quantizable]
        if not traced:
            return None
        names = tuple(layer.name for layer in traced)
        calls = spread_calls(trajectories.calls)
        sums = _Sums(names, len(calls), adapter.device)
        with hooked({name: quantizable[name] for name in names}, sums.measure):
            for column, call in enumerate(calls):
                sums.column = column
                for batch in batches(min(members, len(trajectories)), chunk):
                    predict(denoising, trajectories, batch, call)
    error = relative_error(sums.error, sums.power).cpu()
    broken = [name for name, row in zip(names, error.isfinite().all(dim=1), strict=True) if not row]
    if broken:
        raise FloatingPointError(f"layer {broken[0]}: its quantized output is not finite")
    skip = tuple(bool(layer.boundaries) for layer in traced)
    tokens = None if topology.tokens is None else tuple(layer.tokens for layer in traced)
    return LayerErrors(names, skip, calls, tuple(tuple(row) for row in error.tolist()), tokens)


class _Sums:
    """Float64 sums of squares [L, K] of what the hooks see; ``column`` is the call in flight."""

    def __init__(self, names: Sequence[str], calls: int, device: torch.device) -> None:
        self.row = {name: row for row, name in enumerate(names)}
        self.error = torch.zeros(len(names), calls, dtype=torch.float64, device=device)
        self.power = torch.zeros_like(self.error)
        self.column = 0

    def measure(self, name: str, layer: QuantLayer, args: tuple[Tensor, ...], output: Tensor) -> None:
        layer.weight_on = layer.activation_on = True
        quantized = layer.forward(args[0])  # past the hooks, which would call this one again
        layer.weight_on = layer.activation_on = False
        place = self.row[name], self.column
        self.error[place] += (quantized.double() - output.double()).square().sum()
        self.power[place] += output.double().square().sum()
