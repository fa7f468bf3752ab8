"""What learned equivalent scaling found, for the report: weights of steps, errors of layers, magnitudes of channels."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dmqbench.methods.layer_views import LayerBatch
from dmqbench.methods.scale_learner import ScaleLearner
from dmqbench.quant.scaling import channel_disparity, channel_extremes, weight_magnitudes
from dmqbench.quant.weighting import TimestepWeighting

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
        found = {"held_out_error_before": before, "held_out_error": after, "disparity": uneven}
        return {key: value if math.isfinite(value) else None for key, value in found.items()}

    def channels(self) -> dict[str, list[float | None]]:
        scale, weight = self.learner.scale.detach(), weight_magnitudes(self.learner.layer.weight.detach())
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
    layers = {name: found.layer() for name, found in facts.items()}
    uneven = sorted(layers, key=lambda name: layers[name]["disparity"] or 0.0, reverse=True)[:SHOWN_LAYERS]
    return {"layers": layers, "channels": {name: facts[name].channels() for name in uneven}}


def rounded(values: Tensor) -> list[float | None]:
    """Four significant digits of every value, None where it is not finite, for a file that people and plots read."""
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values.tolist()]
