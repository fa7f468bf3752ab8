"""What multi-step calibration trains: the logarithms of activation scales, and the rounding and scales of weights.

Each class owns free variables and the leaves that the network computes with. ``show_`` writes the variables into the
leaves, ``gather_`` turns the leaves' gradients into the variables'. So a weight is quantized once per iteration,
however many calls that runs, and the network is at every moment the one that would be deployed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dmqbench.quant.layer import QuantLayer
from dmqbench.quant.quantizer import ActivationQuantizer, WeightQuantizer


class Trained(Protocol):
    """Free variables behind leaves of the network."""

    def variables(self) -> dict[str, Tensor]:
        """The free variables by name, in a fixed order."""
        ...

    def leaves(self) -> list[Tensor]:
        """The tensors of the network that receive gradients."""
        ...

    def constants(self) -> dict[str, Tensor]:
        """What the variables are relative to; the calibration state alone does not say it once training has begun."""
        ...

    def show_(self) -> None:
        """Let the network compute with the present values of the variables."""
        ...

    def gather_(self) -> None:
        """Set the variables' gradients from the leaves', and clear those."""
        ...

    def outcome(self) -> dict[str, Tensor]:
        """Copies of what the present values come to, by name."""
        ...

    def settle_(self, outcome: Mapping[str, Tensor]) -> None:
        """Leave nothing to train: write an outcome into the calibration state."""
        ...


class TrainedScales:
    """Scales, by their logarithms: they differ by orders of magnitude, and must stay positive."""

    def __init__(self, quantizers: Iterable[ActivationQuantizer | WeightQuantizer], name: str = "scales") -> None:
        self.name = name
        self.scales = [quantizer.scale for quantizer in quantizers]
        self.logs = torch.cat([scale.detach().log().flatten() for scale in self.scales] or [torch.zeros(0)])

    def variables(self) -> dict[str, Tensor]:
        return {self.name: self.logs}

    def constants(self) -> dict[str, Tensor]:
        return {}

    def leaves(self) -> list[Tensor]:
        return list(self.scales)

    def show_(self) -> None:
        values = self.logs.exp().split([scale.numel() for scale in self.scales])
        for scale, value in zip(self.scales, values, strict=True):
            scale.data.copy_(value.view_as(scale))
            scale.requires_grad_(True)

    @torch.no_grad()
    def gather_(self) -> None:
        self.logs.grad = torch.cat([_taken(scale).mul_(scale).flatten() for scale in self.scales] or [self.logs])

    def outcome(self) -> dict[str, Tensor]:
        return {self.name: self.logs.detach().clone()}

    @torch.no_grad()
    def settle_(self, outcome: Mapping[str, Tensor]) -> None:
        self.logs.copy_(outcome[self.name])
        self.show_()
        for scale in self.scales:
            scale.requires_grad_(False)


class TrainedWeights:
    """Rounding and scales of fixed weights, rounded hard at all times, with straight-through gradients.

    A weight's latent is where it lies between its two grid points, 0..1, and rounds up from 1/2 on. It starts at the
    weight's own fraction, or just on its code's side where the fraction is not clearly there: a weight half-way between
    two codes turns first, one that lies on a grid point last. A gain multiplies each scale.
    """

    def __init__(self, layers: Mapping[str, QuantLayer]) -> None:
        self.parts = {
            name: _Rounding.of(layer, layer.weight_quantizer)
            for name, layer in layers.items()
            if layer.weight_quantizer is not None
        }

    def constants(self) -> dict[str, Tensor]:
        return {
            **{f"{name}.lower": part.lower for name, part in self.parts.items()},
            **{f"{name}.first_scale": part.first_scale for name, part in self.parts.items()},
        }

    def variables(self) -> dict[str, Tensor]:
        return {
            **{f"{name}.latent": part.latent for name, part in self.parts.items()},
            **{f"{name}.gain": part.gain for name, part in self.parts.items()},
        }

    def leaves(self) -> list[Tensor]:
        return [part.leaf for part in self.parts.values()]

    @torch.no_grad()
    def show_(self) -> None:
        for part in self.parts.values():
            part.latent.clamp_(0.0, 1.0)
            part.leaf.copy_(part.integers() * part.scale())
            part.layer.fixed_weight = part.leaf

    @torch.no_grad()
    def gather_(self) -> None:
        for part in self.parts.values():
            of_weight = _taken(part.leaf)
            part.latent.grad = of_weight * part.scale()
            part.gain.grad = part.per_scale(of_weight * part.leaf)

    @torch.no_grad()
    def outcome(self) -> dict[str, Tensor]:
        return {
            **{f"{name}.codes": part.codes() for name, part in self.parts.items()},
            **{f"{name}.gain": part.gain.detach().clone() for name, part in self.parts.items()},
        }

    @torch.no_grad()
    def settle_(self, outcome: Mapping[str, Tensor]) -> None:
        for name, part in self.parts.items():
            part.quantizer.scale.copy_(part.first_scale * outcome[f"{name}.gain"].exp())
            part.quantizer.codes = outcome[f"{name}.codes"]
            part.layer.show_codes_()


NEAR = 0.02
"""How far on its code's side a latent starts that disagrees with its weight, in grid steps."""


@dataclass(frozen=True)
class _Rounding:
    """One layer's weight [R, C, …] in training."""

    layer: QuantLayer
    quantizer: WeightQuantizer
    first_scale: Tensor
    """The scales that the grid was rounded on, [R, G]."""
    lower: Tensor
    """The lower of the two codes that each weight may get, uint8."""
    latent: Tensor
    gain: Tensor
    """Logarithm of what multiplies the scales, [R, G]."""
    leaf: Tensor
    """The weight that the layer computes with."""

    @classmethod
    @torch.no_grad()
    def of(cls, layer: QuantLayer, quantizer: WeightQuantizer) -> "_Rounding":
        if quantizer.codes is None:
            raise ValueError(f"layer {layer.plan.name}: its rounding must be fixed before it is trained further")
        scale, zero_point, levels = quantizer.grid()
        weight = layer.scaled_weight()
        now = quantizer.integers(weight)
        ratio = (weight / scale).clamp(-zero_point, levels - 1 - zero_point)
        # The code and its neighbour on the weight's side; at the end of the range, the neighbour inside.
        lower = (now - (ratio < now).to(now.dtype)).clamp_min(-zero_point)
        lower = torch.minimum(lower, levels - 2 - zero_point)
        fraction = (ratio - lower).clamp(0, 1)
        latent = torch.where(now > lower, fraction.clamp_min(0.5 + NEAR), fraction.clamp_max(0.5 - NEAR))
        return cls(
            layer=layer,
            quantizer=quantizer,
            first_scale=quantizer.scale.detach().clone(),
            lower=(lower + zero_point).to(torch.uint8),
            latent=latent,
            gain=torch.zeros_like(quantizer.scale),
            leaf=torch.zeros_like(weight).requires_grad_(True),
        )

    def codes(self) -> Tensor:
        return self.lower + (self.latent >= 0.5)

    def integers(self) -> Tensor:
        return self.codes() - self.quantizer.spread(self.quantizer.zero_point)

    def scale(self) -> Tensor:
        return self.quantizer.spread(self.first_scale * self.gain.exp())

    def per_scale(self, values: Tensor) -> Tensor:
        """Σ of [R, C, …] over the weights that share a scale, [R, G]."""
        return torch.stack([part.sum(1) for part in self.quantizer.rows(values)], dim=1)


def _taken(leaf: Tensor) -> Tensor:
    """The gradient of a leaf, which is cleared; zeros where it has none."""
    gradient, leaf.grad = leaf.grad, None
    return torch.zeros_like(leaf) if gradient is None else gradient


def copies(variables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: variable.detach().clone() for name, variable in variables.items()}


@torch.no_grad()
def set_(variables: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, variable in variables.items():
        variable.copy_(values[name])


def agreement(own: Sequence[Tensor], exact: Sequence[Tensor]) -> tuple[float, float]:
    """Return (cosine, ratio of norms) of two gradients, each a list of tensors; NaN where one is zero."""
    products = torch.zeros(3, dtype=torch.float64)
    for left, right in zip(own, exact, strict=True):  # one pair at a time: they are as large as the network
        sides = left.flatten().double(), right.flatten().double()
        products += torch.stack([sides[0] @ sides[1], *(side @ side for side in sides)]).cpu()
    dot, own_square, exact_square = products
    return float(dot / (own_square * exact_square).sqrt()), float((own_square / exact_square).sqrt())
