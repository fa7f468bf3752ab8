"""What multi-step calibration trains: the logarithms of activation scales, and the rounding and scales of weights.

Each class owns free variables and the leaves that the network computes with. ``show_`` writes the variables into the
leaves, ``gather_`` turns the leaves' gradients into the variables'. So a weight is quantized once per iteration,
however many calls that runs, and the network is at every moment the one that would be deployed.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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

    def settle_(self) -> None:
        """Leave nothing to train: write the values into the calibration state."""
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

    def settle_(self) -> None:
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
    def settle_(self) -> None:
        for part in self.parts.values():
            quantizer = part.quantizer
            codes = part.integers() + quantizer.grid()[1]
            quantizer.scale.copy_(part.first_scale * part.gain.exp())
            quantizer.codes = codes.to(torch.uint8)
            part.layer.fixed_weight = quantizer.reconstruct()


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
    """The lower of the two integers that each weight may become."""
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
            lower=lower,
            latent=latent,
            gain=torch.zeros_like(quantizer.scale),
            leaf=torch.zeros_like(weight).requires_grad_(True),
        )

    def integers(self) -> Tensor:
        return self.lower + (self.latent >= 0.5)

    def scale(self) -> Tensor:
        return self.quantizer.spread(self.first_scale * self.gain.exp())

    def per_scale(self, values: Tensor) -> Tensor:
        """Σ of [R, C, …] over the weights that share a scale, [R, G]."""
        return torch.stack([part.sum(1) for part in self.quantizer.rows(values)], dim=1)


def _taken(leaf: Tensor) -> Tensor:
    """The gradient of a leaf, which is cleared; zeros where it has none."""
    gradient, leaf.grad = leaf.grad, None
    return torch.zeros_like(leaf) if gradient is None else gradient


# ---- Adam over the variables, resumable to the same bits

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


SMALL_GRADIENT = 4e-5
"""Adam's epsilon, for gradients of the loss over its first value: what moves a variable by its whole range would change
the loss by so little that the variable is better left alone. Most roundings are of that kind. Without it (1e-8) six
times as many turn, and the held-out error is not lower."""


def cosine_decay(progress: float) -> float:
    """From 1 to 0, slow at both ends, for a progress of 0..1."""
    return (1 + math.cos(math.pi * progress)) / 2


def linear_decay(progress: float) -> float:
    """From 1 to 0, for a progress of 0..1."""
    return 1 - progress


class VariableOptimizer:
    """Adam with a rate per variable, and a decay to zero over ``total`` iterations.

    Gradients are divided by ``unit``, the loss before training, so that nothing depends on how large errors are.

    Args:
        epsilon: of Adam, for gradients so divided.
        lazy: names of variables of which an element whose gradient is exactly zero is skipped, moments and all, as
            ``torch.optim.SparseAdam`` does: rows of a table that no sample has used would else be carried on by what
            earlier samples left in the moments.
        weight_decay: of variables by name (AdamW, Loshchilov & Hutter 2019); 0 where there is none.
    """

    def __init__(
        self,
        variables: Mapping[str, Tensor],
        rates: Mapping[str, float],
        total: int,
        unit: float,
        decay: Callable[[float], float] = cosine_decay,
        epsilon: float = SMALL_GRADIENT,
        lazy: Iterable[str] = (),
        weight_decay: Mapping[str, float] | None = None,
    ) -> None:
        self.variables, self.rates, self.total, self.unit = dict(variables), dict(rates), total, unit
        self.decay, self.lazy = decay, tuple(lazy)
        decays = weight_decay or {}
        groups = [
            {"params": [variable], "lr": rates[name], "weight_decay": decays.get(name, 0.0)}
            for name, variable in variables.items()
        ]
        self.adam = torch.optim.AdamW(groups, eps=epsilon)

    def step(self, iteration: int) -> None:
        """Take the step of an iteration, 0..total−1."""
        factor = self.decay(iteration / self.total)
        for name, group in zip(self.variables, self.adam.param_groups, strict=True):
            group["lr"] = self.rates[name] * factor
        for variable in self.variables.values():
            if variable.grad is not None:
                variable.grad.div_(self.unit)
        kept = [part for name in self.lazy for part in self._unused(self.variables[name])]
        self.adam.step()
        for tensor, unused, values in kept:
            tensor[unused] = values
        self.adam.zero_grad(set_to_none=True)

    def _unused(self, variable: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """A variable and its moments, each with where the gradient is zero, and with its values there."""
        assert variable.grad is not None
        unused, moments = variable.grad == 0, self.adam.state.get(variable, {})
        own = [variable.detach(), *(moments[key] for key in MOMENTS[1:] if key in moments)]
        return [(tensor, unused, tensor[unused]) for tensor in own]

    def state(self) -> dict[str, Tensor]:
        return {
            f"{name}:{key}": value
            for name, variable in self.variables.items()
            for key, value in moments_of(self.adam, variable).items()
        }

    def load_state_(self, state: Mapping[str, Tensor]) -> None:
        for name, variable in self.variables.items():
            set_moments_(
                self.adam, variable, {key: state[f"{name}:{key}"] for key in MOMENTS if f"{name}:{key}" in state}
            )


def moments_of(adam: torch.optim.Adam, variable: Tensor) -> dict[str, Tensor]:
    """Return copies of what Adam keeps of a variable: nothing before its first step."""
    return {key: value.detach().clone() for key, value in adam.state.get(variable, {}).items() if key in MOMENTS}


def set_moments_(adam: torch.optim.Adam, variable: Tensor, moments: Mapping[str, Tensor]) -> None:
    """Let Adam go on from what ``moments_of`` returned, which may be among other tensors."""
    if "step" in moments:
        on_device = {key: moments[key].to(variable.device) for key in MOMENTS[1:]}
        adam.state[variable] = {"step": moments["step"].cpu(), **on_device}


def copies(variables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: variable.detach().clone() for name, variable in variables.items()}


@torch.no_grad()
def set_(variables: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, variable in variables.items():
        variable.copy_(values[name])


def agreement(own: Sequence[Tensor], exact: Sequence[Tensor]) -> tuple[float, float]:
    """Return (cosine, ratio of norms) of two gradients, each a list of tensors; NaN where one is zero."""
    left, right = (torch.cat([tensor.flatten().double() for tensor in side]) for side in (own, exact))
    return float(left @ right / (left.norm() * right.norm())), float(left.norm() / right.norm())
