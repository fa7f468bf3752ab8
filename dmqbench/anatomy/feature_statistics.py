"""What quantization does to activations over the steps: the codes that layers use, and the network's last feature.

The claim behind relation distillation (MPQ-DM) is that features of few levels jump from step to step. Both networks run
on the same recorded full-precision states.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dmqbench.anatomy.recorded import batches, predict
from dmqbench.anatomy.statistics import short
from dmqbench.data.bank import Trajectories
from dmqbench.models.hooks import hooked
from dmqbench.models.rollout import Denoising
from dmqbench.models.topology import Topology, last_features
from dmqbench.quant.functional import quantize
from dmqbench.quant.layer import QuantLayer
from dmqbench.quant.layers import quant_layers, quantization


@dataclass(frozen=True)
class CodeUse:
    """How many activation codes the L quantized layers use at T calls, of ``levels``.

    Attributes:
        values: activations that each layer quantizes at one call, over all samples, [L]; means over layers weight them.
        used: codes that occur at all, [L, T].
        effective: 2^entropy of the codes: as many equally frequent ones would be as uncertain, [L, T].

    Parts of an input that have ranges of their own are counted apart; the layer's numbers are their mean.
    """

    names: tuple[str, ...]
    levels: int
    values: Tensor
    used: Tensor
    effective: Tensor

    def mean(self, counts: Tensor) -> Tensor:
        """Return the mean of ``counts`` [L, T] over layers, weighted by ``values``, [T]."""
        return (self.values[:, None] * counts).sum(dim=0) / self.values.sum()

    def to_json(self) -> dict[str, Any]:
        return {
            "levels": self.levels,
            "mean_used": short(self.mean(self.used).tolist()),
            "mean_effective": short(self.mean(self.effective).tolist()),
            "names": list(self.names),
            "values": [int(value) for value in self.values.tolist()],
            "used": short(self.used.tolist()),
            "effective": short(self.effective.tolist()),
        }


@dataclass(frozen=True)
class FeatureStatistics:
    """Of the feature before the last projection at T calls; means over trajectories, each ≥ 0 but the cosine.

    Attributes:
        relative_error: ‖f_q − f‖ / ‖f‖ with f the full-precision and f_q the quantized network's feature, [T].
        cosine: of f and f_q, −1..1, [T].
        change: ‖f_t − f_(t+1)‖ / ‖f_t‖ of full precision, where t + 1 is the call before, [T]; NaN at the first call.
        change_quantized: the same of f_q.
        codes: None where no activation is quantized to codes that are known.
    """

    timesteps: tuple[float, ...]
    trajectories: int
    relative_error: Tensor
    cosine: Tensor
    change: Tensor
    change_quantized: Tensor
    codes: CodeUse | None

    def to_json(self) -> dict[str, Any]:
        return {
            "stream": "val",
            "trajectories": self.trajectories,
            "timesteps": list(self.timesteps),
            **{name: short(getattr(self, name).tolist()) for name in _NUMBERS},
            "codes": None if self.codes is None else self.codes.to_json(),
        }


_NUMBERS = ("relative_error", "cosine", "change", "change_quantized")


@torch.no_grad()
def feature_statistics(
    quantized: Denoising,
    full_precision: Denoising,
    topology: Topology,
    trajectories: Trajectories,
    *,
    members: int,
    chunk: int,
    advance: Callable[[], None] = lambda: None,
) -> FeatureStatistics:
    """Compare the features of two networks on the recorded states of the first ``members`` trajectories.

    ``quantized`` is ready to sample: frozen and lowered, or quantized by another program. ``full_precision`` may be
    the same; its quantization is off while it serves as such. Under guidance both branches count as
    trajectories. ``advance`` is called after each batch at one call. Memory: two features of both networks.

    Raises:
        FloatingPointError: a feature or an activation of the quantized network is not finite.
    """
    count = min(members, len(trajectories))
    rows: list[list[Tensor]] = [[] for _ in range(trajectories.calls)]
    codes = _Codes(quantized.adapter.network, topology, trajectories.calls)
    networks = full_precision.adapter.network, quantized.adapter.network
    reference, own = (last_features(network, topology) for network in networks)
    with hooked(codes.layers, codes.look, pre=True), reference as exact, own as inexact:
        for batch in batches(count, chunk):
            before: tuple[Tensor, Tensor] | None = None
            for call in range(trajectories.calls):
                with quantization(networks[0], weight=False, activation=False):
                    predict(full_precision, trajectories, batch, call)
                wanted = exact[0].flatten(1).double()
                codes.call = call
                predict(quantized, trajectories, batch, call)
                codes.call = None
                now = (wanted, inexact[0].flatten(1).double())
                rows[call].append(_compared(now, before))
                before = now
                advance()
    means = torch.stack([torch.cat(parts, dim=1).mean(dim=1) for parts in rows], dim=1).cpu()
    if not means[:2].isfinite().all():
        raise FloatingPointError("a feature of the quantized network is not finite")
    return FeatureStatistics(trajectories.timesteps, count, *means, codes=codes.use())


def _compared(now: tuple[Tensor, Tensor], before: tuple[Tensor, Tensor] | None) -> Tensor:
    """Relative error, cosine and both changes of every sample, float64 [4, B]; features are [B, K]."""
    exact, own = now
    cosine = torch.nn.functional.cosine_similarity(exact, own, dim=1)
    unknown = torch.full_like(cosine, torch.nan)
    changes = [unknown, unknown] if before is None else [_relative(b, a) for b, a in zip(now, before, strict=True)]
    return torch.stack([_relative(exact, own), cosine, *changes])


def _relative(x: Tensor, other: Tensor) -> Tensor:
    """‖x − other‖ / ‖x‖ of every row; 0 where both are zero."""
    return (x - other).norm(dim=1) / x.norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)


class _Codes:
    """Counts the codes of every layer's activations while it is told to."""

    def __init__(self, network: nn.Module, topology: Topology, calls: int) -> None:
        quantizable = quant_layers(network)
        layers = {layer.name: quantizable[layer.name] for layer in topology.layers if layer.name in quantizable}
        self.layers = {name: layer for name, layer in layers.items() if layer.activation_quantizer is not None}
        self.call: int | None = None
        """As which call's what flows is counted; None: not at all."""
        self._counts: dict[str, list[Tensor | None]] = {name: [None] * calls for name in self.layers}

    def look(self, name: str, layer: QuantLayer, args: tuple[Tensor, ...]) -> None:
        if self.call is not None and layer.activation_on:
            counts, known = code_counts(layer, args[0]), self._counts[name][self.call]
            self._counts[name][self.call] = counts if known is None else known + counts

    def use(self) -> CodeUse | None:
        counted = {name: counts for name, counts in self._counts.items() if counts[0] is not None}
        if not counted:
            return None
        measured = [[_use(counts) for counts in of_calls if counts is not None] for of_calls in counted.values()]
        values, used, effective = (
            torch.tensor([[numbers[place] for numbers in row] for row in measured], dtype=torch.float64)
            for place in range(3)
        )
        levels = max(counts.shape[1] for of_calls in counted.values() for counts in of_calls if counts is not None)
        return CodeUse(tuple(counted), levels, values[:, 0], used, effective)


def code_counts(layer: QuantLayer, x: Tensor) -> Tensor:
    """Return how often a layer's activation quantizer gives each code for the layer's input ``x``, int64 [G, L].

    Counted apart for each of the G groups of input channels. FloatingPointError: a code is undefined.
    """
    quantizer = layer.activation_quantizer
    assert quantizer is not None
    x = layer.scaled_input(x)
    scale, zero_point = quantizer.parameters_for(x)
    codes = (quantize(x, scale, zero_point, quantizer.levels) + zero_point).round()
    if not codes.isfinite().all():
        raise FloatingPointError(f"layer {layer.plan.name}: its quantized input is not finite")
    parts = [codes.narrow(layer.channel_axis, part.start, part.stop - part.start) for part in quantizer.groups.slices]
    return torch.stack([part.long().flatten().bincount(minlength=quantizer.levels) for part in parts])


def _use(counts: Tensor) -> tuple[float, float, float]:
    """Values, used codes and effective number of codes of counts [G, L]; means over groups weighted by their values."""
    counts = counts.double()
    of_group = counts.sum(dim=1)
    share = counts / of_group[:, None]
    entropy = -torch.xlogy(share, share).sum(dim=1)
    weights = of_group / of_group.sum()
    used = (counts > 0).sum(dim=1).double()
    return float(of_group.sum()), float((weights * used).sum()), float((weights * entropy.exp()).sum())
