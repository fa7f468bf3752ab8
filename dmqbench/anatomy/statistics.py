"""Statistics of a network's activations and weights: streaming moments, kept per input channel and per step.

No activation is stored: each batch is reduced to moments, and moments of parts are combined exactly (Pébay 2008,
"Formulas for robust, one-pass parallel computation of covariances and arbitrary-order statistical moments").
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from dmqbench.anatomy.recorded import batches, predict
from dmqbench.data.bank import Trajectories
from dmqbench.models.hooks import hooked
from dmqbench.models.rollout import Denoising
from dmqbench.models.topology import LayerInfo, Topology


@dataclass(frozen=True)
class Moments:
    """Count, mean, sums of powers of deviations and extremes of sets of numbers, float64 tensors of one shape."""

    count: Tensor
    mean: Tensor
    m2: Tensor
    """Σ (x − mean)²; likewise m3 and m4."""
    m3: Tensor
    m4: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, values: Tensor) -> "Moments":
        """Return the moments of every row of ``values`` [..., K], of shape [...]."""
        values = values.double()
        mean = values.mean(dim=-1)
        deviation = values - mean[..., None]
        square = deviation.square()
        low, high = values.aminmax(dim=-1)
        return cls(
            count=torch.full_like(mean, values.shape[-1]),
            mean=mean,
            m2=square.sum(dim=-1),
            m3=(square * deviation).sum(dim=-1),
            m4=square.square().sum(dim=-1),
            low=low,
            high=high,
        )

    @classmethod
    def stack(cls, parts: Sequence["Moments"]) -> "Moments":
        """Return moments of shape [len(parts), ...]."""
        return cls(*(torch.stack([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def __getitem__(self, index: Any) -> "Moments":
        return Moments(*(getattr(self, field.name)[index] for field in fields(self)))

    def pooled(self, dim: int = 0) -> "Moments":
        """Return the moments of the unions along ``dim``."""
        count = self.count.sum(dim)
        mean = (self.count * self.mean).sum(dim) / count
        d = self.mean - mean.unsqueeze(dim)
        return Moments(
            count=count,
            mean=mean,
            m2=(self.m2 + self.count * d**2).sum(dim),
            m3=(self.m3 + 3 * d * self.m2 + self.count * d**3).sum(dim),
            m4=(self.m4 + 4 * d * self.m3 + 6 * d**2 * self.m2 + self.count * d**4).sum(dim),
            low=self.low.amin(dim),
            high=self.high.amax(dim),
        )

    def merged(self, other: "Moments | None") -> "Moments":
        """Return the moments of the unions with those of ``other``, which has the same shape."""
        return self if other is None else Moments.stack([self, other]).pooled()

    def cpu(self) -> "Moments":
        return Moments(*(getattr(self, field.name).cpu() for field in fields(self)))

    @property
    def variance(self) -> Tensor:
        """Of the population (divided by the count)."""
        return self.m2 / self.count

    @property
    def std(self) -> Tensor:
        return self.variance.sqrt()

    @property
    def kurtosis(self) -> Tensor:
        """m4 / m2² · count: 3 for a Gaussian; NaN where all values are the same to rounding."""
        noise = self.count * (torch.finfo(torch.float64).eps * self.absmax).square()
        return torch.where(self.m2 > noise, self.count * self.m4 / self.m2.square(), torch.nan)

    @property
    def absmax(self) -> Tensor:
        return torch.maximum(self.low.abs(), self.high.abs())

    def to_json(self) -> dict[str, Any]:
        """Lists (or numbers, for moments of one set) of min, max, mean, std, kurtosis and absmax; None for NaN."""
        named = {"min": self.low, "max": self.high, "mean": self.mean, "std": self.std}
        named |= {"kurtosis": self.kurtosis, "absmax": self.absmax}
        return {name: short(value.tolist()) for name, value in named.items()}


@dataclass(frozen=True)
class InputStatistics:
    """Of one layer's input: ``channels`` over all calls, moments of shape [C]; ``parts`` per call, [T, parts].

    Parts are the pieces of a concatenation that feeds the layer; an ordinary input is one part.
    """

    channels: Moments
    parts: Moments

    @property
    def steps(self) -> Moments:
        """The whole input per call, [T]."""
        return self.parts.pooled(1)

    @property
    def whole(self) -> Moments:
        """The whole input over all calls, a single set."""
        return self.channels.pooled()


@dataclass(frozen=True)
class WeightStatistics:
    """Of one layer's weight. ``row_ratio``: largest row's absmax over the median row's, None if that is 0."""

    whole: Moments
    row_ratio: float | None

    def to_json(self) -> dict[str, Any]:
        return {**self.whole.to_json(), "row_absmax_ratio": short(self.row_ratio)}


def weight_statistics(weight: Tensor) -> WeightStatistics:
    """Return the statistics of a weight [R, C, …]."""
    rows = weight.detach().flatten(1).double().abs().amax(dim=1)
    median = float(rows.quantile(0.5))
    whole = Moments.of(weight.detach().flatten())
    return WeightStatistics(whole, float(rows.max()) / median if median > 0 else None)


def channel_axis(layer: LayerInfo) -> int:
    """Of the layer's input: [B, C, …] of a convolution, [B, …, C] of a linear layer."""
    return -1 if layer.kind == "linear" else 1


@torch.no_grad()
def input_statistics(
    denoising: Denoising,
    topology: Topology,
    trajectories: Trajectories,
    *,
    members: int,
    chunk: int,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, InputStatistics]:
    """Run the network on the recorded states of the first ``members`` trajectories; return statistics by layer.

    The network runs as its switches say, in batches of ``chunk`` at one call; ``advance`` is called after each. Under
    guidance both branches count. Memory: one batch, and moments per layer for [C] channels and [T] calls.
    """
    modules = dict(denoising.adapter.network.named_modules())
    seen = {layer.name: _Seen(layer) for layer in topology.layers}

    def look(name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[name].look(args[0])

    with hooked({name: modules[name] for name in seen}, look, pre=True):
        for call in range(trajectories.calls):
            for batch in batches(min(members, len(trajectories)), chunk):
                predict(denoising, trajectories, batch, call)
                advance()
            for layer in seen.values():
                layer.end_call()
    return {name: layer.statistics() for name, layer in seen.items()}


class _Seen:
    """What has flowed into one layer so far."""

    def __init__(self, layer: LayerInfo) -> None:
        self.layer = layer
        self.channels: Moments | None = None
        self.call: Moments | None = None
        """Of the call in flight, [parts]."""
        self.calls: list[Moments] = []

    def look(self, x: Tensor) -> None:
        x = x.movedim(channel_axis(self.layer), 0).flatten(1)
        channels = Moments.of(x)
        self.channels = channels.merged(self.channels)
        edges = (0, *self.layer.boundaries, len(x))
        parts = [channels[low:high].pooled() for low, high in pairwise(edges)]
        self.call = Moments.stack(parts).merged(self.call)

    def end_call(self) -> None:
        assert self.call is not None  # the topology names layers that every call executes
        self.calls.append(self.call)
        self.call = None

    def statistics(self) -> InputStatistics:
        assert self.channels is not None
        return InputStatistics(self.channels.cpu(), Moments.stack(self.calls).cpu())


def short(value: Any) -> Any:
    """Round numbers, also in nested lists, to six significant digits; NaN becomes None, which JSON can say."""
    if isinstance(value, list):
        return [short(item) for item in value]
    if value is None or value != value:
        return None
    return float(f"{value:.6g}")
