"""One layer's equivalent scale in training: its gradient, the running errors of its steps, its best state so far."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dmqbench.calibration.layer_views import LayerBatch
from dmqbench.quant.functional import widened
from dmqbench.quant.layer import QuantLayer
from dmqbench.quant.scaling import (
    Grid,
    ScaledLayer,
    channel_disparity,
    channel_extremes,
    weight_magnitudes,
    weighted_gradient,
)
from dmqbench.quant.spec import InputGroups
from dmqbench.quant.weighting import TimestepWeighting

COPIES = 6
"""Tensors of the size of input and output that one sample's forward and backward pass hold at once."""


class ScaleLearner:
    """Learns τ [C] of one layer; ``layer.equivalent_scale`` holds it at all times.

    Args:
        layer: a layer with a weight or an activation quantizer.
        weighting: of the steps in the loss.
        bins: number of bins of the weighting.
        zero_in_range: see ``ScaledLayer``.
        deployed: learn under the ranges of all calibration points, once ``span`` has seen them; otherwise under
            those of each batch.
        part_bytes: bound on what a step keeps for its backward pass; at least one sample is computed at a time.
        clipping: see ``ScaledLayer``.
    """

    def __init__(
        self,
        layer: QuantLayer,
        weighting: TimestepWeighting,
        bins: int,
        zero_in_range: bool,
        deployed: bool,
        part_bytes: int,
        clipping: str,
    ) -> None:
        self.layer = layer
        self.weighting = weighting
        self.deployed = deployed
        self.part_bytes = part_bytes
        channels = layer.weight.shape[1]
        if layer.equivalent_scale is None:
            layer.set_equivalent_scale_(layer.weight.new_ones(channels))
        self.shared = False
        """Whether other layers have the same τ: then errors count as shares of the energy of the layer's output."""
        self.zero_in_range, self.clipping = zero_in_range, clipping
        self.running = self.scale.new_zeros(bins)
        """Λ."""
        self.low: Tensor | None = None
        self.high: Tensor | None = None
        self.best = self.scale.new_ones(channels)
        self.best_error = float("inf")
        self.looks_since = 0
        self.stopped = False

    @property
    def scale(self) -> nn.Parameter:
        assert self.layer.equivalent_scale is not None
        return self.layer.equivalent_scale

    @property
    def function(self) -> ScaledLayer:
        """The layer as a function of τ; its weight may be brought for it."""
        layer, weights, activation = self.layer, self.layer.weight_quantizer, self.layer.activation_quantizer
        return ScaledLayer(
            linear_map=layer.apply_widened,
            weight=widened(layer.unscaled_weight().detach()),
            bias=None if layer.bias is None else layer.bias.detach(),
            channel_axis=layer.channel_axis,
            groups=InputGroups(layer.weight.shape[1], layer.plan.boundaries),
            weight_levels=None if weights is None else weights.levels,
            activation_levels=None if activation is None else activation.levels,
            zero_in_range=self.zero_in_range,
            clipping=self.clipping,
        )

    def span(self, batch: LayerBatch, rows: int) -> None:
        """Widen the known extremes [rows, C] of the layer's channels by those of a batch."""
        low, high = channel_extremes(batch.x, self.layer.channel_axis)
        if self.low is None or self.high is None:
            nothing = low.new_full((rows, low.shape[1]), torch.inf)
            self.low, self.high = nothing, -nothing
        index = batch.row[:, None].expand_as(low)
        self.low = self.low.scatter_reduce(0, index, low, "amin")
        self.high = self.high.scatter_reduce(0, index, high, "amax")

    def _grid_of(self, function: ScaledLayer, batch: LayerBatch) -> Callable[[Tensor], Grid | None]:
        """Return τ → the input's grid under the ranges that τ learns under."""
        if function.activation_levels is None:
            return lambda scale: None
        if self.deployed:
            assert self.low is not None and self.high is not None, "span() has seen nothing"
            rows = batch.row if len(self.low) > 1 else slice(None)
            low, high = self.low[rows], self.high[rows]
        else:
            lows, highs = channel_extremes(batch.x, self.layer.channel_axis)
            low, high = lows.amin(0, keepdim=True), highs.amax(0, keepdim=True)
        return lambda scale: function.input_grid(low, high, scale)

    def learn(self, batch: LayerBatch) -> Tensor:
        """Set τ's gradient from one batch; return the batch's weighted error over the energy of its output.

        Where τ is shared the gradient is added to what other layers have set.
        """
        function = self.function

        def weights_of(errors: Tensor) -> Tensor:
            self.running = self.weighting.updated(self.running, batch.bin, errors)
            return self.weighting.weights(self.running)[batch.bin]

        per_sample = COPIES * (batch.x[0].nbytes + batch.output[0].nbytes)
        gradient, loss = weighted_gradient(
            function,
            self.scale,
            batch.x,
            batch.output,
            self._grid_of(function, batch),
            weights_of,
            part=max(1, self.part_bytes // per_sample),
        )
        energy = self._energy(batch)
        if self.shared:
            gradient = gradient / energy
            gradient = gradient if self.scale.grad is None else gradient + self.scale.grad
        self.scale.grad = gradient
        return loss / energy

    def _energy(self, batch: LayerBatch) -> Tensor:
        """Of the layer's output, as ``errors`` counts it."""
        energy = batch.output.square().sum() / (len(batch.x) * self.function.positions(batch.output))
        return energy.clamp(min=1e-12)

    def held_out_errors(self, batch: LayerBatch) -> Tensor:
        """``errors`` as ``judge`` takes them, which may be added up over the layers that share τ."""
        return self.errors(batch) / self._energy(batch) if self.shared else self.errors(batch)

    @torch.no_grad()
    def judge(self, error: float, patience: int) -> None:
        """Take note of a held-out error of the present τ; after ``patience`` looks without a better one, stop.

        A layer that has stopped holds its best τ.
        """
        if self.stopped:
            return
        if error < self.best_error:
            self.best, self.best_error, self.looks_since = self.scale.detach().clone(), error, 0
            return
        self.looks_since += 1
        self.stopped = self.looks_since >= patience
        if self.stopped:
            self.settle()

    @torch.no_grad()
    def settle(self) -> None:
        """Go back to the best τ."""
        self.scale.copy_(self.best)

    def progress(self) -> dict[str, Tensor]:
        """What training goes on from, beside τ and the optimizer."""
        judged = torch.tensor([self.best_error, self.looks_since, self.stopped], dtype=torch.float64)
        return {"running": self.running, "best": self.best, "judged": judged}

    def load_progress_(self, kept: dict[str, Tensor]) -> None:
        """Go on from what ``progress`` returned."""
        self.running, self.best = kept["running"].to(self.scale.device), kept["best"].to(self.scale.device)
        best_error, looks_since, stopped = kept["judged"].tolist()
        self.best_error, self.looks_since, self.stopped = best_error, int(looks_since), bool(stopped)

    @torch.no_grad()
    def errors(self, batch: LayerBatch, scale: Tensor | None = None) -> Tensor:
        """Squared output error of every sample [B] under τ, or under ``scale``."""
        scale = self.scale if scale is None else scale
        function = self.function
        grid = self._grid_of(function, batch)(scale)
        return function.errors(batch.x, batch.output, grid, function.quantized_weight(scale))


SHOWN_LAYERS = 6
"""Layers whose channels are listed one by one."""


class HeldOutFacts:
    """What validation points say of one layer."""

    def __init__(self, learner: ScaleLearner) -> None:
        self.learner = learner
        self.errors: list[Tensor] = []
        """Unscaled and under τ, [2, B] of every batch."""
        self.magnitude = torch.zeros_like(learner.scale)
        """Largest magnitude of every input channel [C]."""

    def add(self, batch: LayerBatch) -> None:
        learner = self.learner
        unscaled = learner.errors(batch, torch.ones_like(learner.scale))
        self.errors.append(torch.stack([unscaled, learner.errors(batch)]))
        for ends in channel_extremes(batch.x.abs(), learner.layer.channel_axis):
            self.magnitude = torch.maximum(self.magnitude, ends.amax(0))

    def layer(self) -> dict[str, float | None]:
        before, after = torch.cat(self.errors, dim=1).mean(1).tolist()
        uneven = channel_disparity(self.magnitude) if self.magnitude.isfinite().all() else math.inf
        facts = {"held_out_error_before": before, "held_out_error": after, "disparity": uneven}
        return {key: value if math.isfinite(value) else None for key, value in facts.items()}

    def channels(self) -> dict[str, list[float | None]]:
        scale, weight = self.learner.scale.detach(), weight_magnitudes(widened(self.learner.layer.unscaled_weight()))
        return {
            "scale": rounded(scale),
            "input_before": rounded(self.magnitude),
            "input_after": rounded(self.magnitude / scale),
            "weight_before": rounded(weight),
            "weight_after": rounded(weight * scale),
        }


def weighting_facts(
    weighting: TimestepWeighting, running: Iterable[Tensor], bin_of_call: Tensor
) -> dict[str, str | list[float | None] | list[int]]:
    """λ and the share of the running error of every bin, both averaged over layers, whose Λ are ``running``."""
    errors = list(running)
    return {
        "name": weighting.name,
        "lambda": rounded(torch.stack([weighting.weights(error) for error in errors]).mean(0)),
        "error": rounded(torch.stack([error / error.sum().clamp(min=1e-30) for error in errors]).mean(0)),
        "bin_of_call": bin_of_call.tolist(),
    }


def layer_facts(facts: dict[str, HeldOutFacts]) -> dict[str, Any]:
    """Errors and disparity of every layer, and the channels of those of greatest disparity."""
    layers = {name: of_layer.layer() for name, of_layer in facts.items()}
    uneven = sorted(layers, key=lambda name: layers[name]["disparity"] or 0.0, reverse=True)[:SHOWN_LAYERS]
    return {"layers": layers, "channels": {name: facts[name].channels() for name in uneven}}


def rounded(values: Tensor) -> list[float | None]:
    """Four significant digits of every value, None where it is not finite, for a file that people and plots read."""
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values.tolist()]
