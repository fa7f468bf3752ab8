"""Equivalent scaling: y = (x / τ)(τ ⊙ W), one positive τ per input channel of a layer (DMQ, Lee et al. 2025, eq. 5).

In exact arithmetic nothing changes; quantized, τ moves range from activations to weights or back. Everything here is
differentiable in τ, through the ranges as well.

τ stays inside its layer: a frozen layer divides its input once, by τ and the step together, and every layer learns a τ
of its own. Where all that read the same channels share one, it can be moved into what writes them
(``models.absorption``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from dmqbench.quant.functional import CLIPPINGS, SMALLEST_SCALE, affine_parameters, fake_quantize
from dmqbench.quant.quantizer import along_axis, group_of_channel
from dmqbench.quant.spec import InputGroups

SMALLEST_EQUIVALENT_SCALE = 1e-4
"""τ has no lower bound of its own; below this a channel would be divided by almost nothing, or change its sign."""


def channel_extremes(x: Tensor, channel_axis: int) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of every sample and channel of ``x`` [B, …], both [B, C]."""
    positions = [axis for axis in range(1, x.ndim) if axis != channel_axis % x.ndim]
    if not positions:
        return x, x
    return x.amin(positions), x.amax(positions)  # aminmax() takes three times as long as both on a CPU


def group_ends(low: Tensor, high: Tensor, groups: InputGroups) -> tuple[Tensor, Tensor]:
    """Ends of every input group, both [rows, G], from the extremes [rows, C] of its channels."""
    lows = [low[:, part].amin(1, keepdim=True) for part in groups.slices]
    highs = [high[:, part].amax(1, keepdim=True) for part in groups.slices]
    return torch.cat(lows, dim=1), torch.cat(highs, dim=1)


def scaled_ends(low: Tensor, high: Tensor, scale: Tensor, groups: InputGroups) -> tuple[Tensor, Tensor]:
    """Ends of x / τ per input group, both [rows, G], from the extremes [rows, C] of x's channels.

    They are those of the whole tensor, without looking at it again.
    """
    return group_ends(low / scale, high / scale, groups)


def min_max_parameters(low: Tensor, high: Tensor, levels: Tensor | int, with_zero: bool) -> tuple[Tensor, Tensor]:
    """(scale, zero_point) of a min-max grid; the published LES does not widen a weight's range to hold zero.

    Without zero the zero-point is clipped to the grid, which cuts off a row of one sign: that, and no other
    than in ``affine_parameters``, is the published code, whose search for ranges lets it lie beyond the codes.
    """
    if with_zero:
        return affine_parameters(low, high, levels)
    steps = levels - 1
    scale = (high - low) / steps
    scale = torch.where(scale > SMALLEST_SCALE, scale, torch.ones_like(scale))
    zero_point = torch.round(-low / scale).detach().clamp(min=0)
    return scale, torch.minimum(zero_point, torch.as_tensor(steps, dtype=scale.dtype, device=scale.device))


def spread(table: Tensor, groups: InputGroups) -> Tensor:
    """[…, G] → […, C], or […, 1] with a single group, which broadcasts alike."""
    return table if groups.count == 1 else table[..., group_of_channel(groups).to(table.device)]


def scaled_fake_quantized_weight(
    weight: Tensor,
    scale: Tensor,
    levels: Tensor,
    groups: InputGroups,
    with_zero: bool,
    clipping: str = CLIPPINGS[0],
) -> Tensor:
    """Q(τ ⊙ W) / τ under min-max ranges per (row, input group): the weight that acts on the unscaled input.

    Computed as W on a grid of step s_w / τ, which is the same, and is differentiable in τ with less work.

    Args:
        weight: [R, C, …].
        scale: τ [C].
        levels: number of levels of each row, [R].
    """
    low, high = channel_extremes(weight, 1)
    ends = group_ends(low * scale, high * scale, groups)
    row_levels = levels.to(weight.dtype)[:, None]
    step, zero_point = min_max_parameters(*ends, row_levels, with_zero)
    tables = (spread(step, groups) / scale, spread(zero_point, groups), row_levels)
    return fake_quantize(weight, *(along_axis(table, weight.ndim, 1) for table in tables), clipping=clipping)


Grid = tuple[Tensor, Tensor]
"""(τ ⊙ s_x, zero_point) of an input: [rows, C], or [rows, 1] where channels share them."""


@dataclass(frozen=True)
class ScaledLayer:
    """A layer's quantized output as a function of τ, on full-precision input.

    ``weight_levels`` [R] or ``activation_levels`` is None where that side stays in full precision.
    """

    linear_map: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    """The bare convolution or matrix product: (x, weight, bias) → y."""
    weight: Tensor
    bias: Tensor | None
    channel_axis: int
    groups: InputGroups
    weight_levels: Tensor | None
    activation_levels: int | None
    zero_in_range: bool
    clipping: str = CLIPPINGS[0]
    """Of the gradient: see ``functional.CLIPPINGS``."""

    def input_grid(self, low: Tensor, high: Tensor, scale: Tensor) -> Grid | None:
        """The grid of an input whose channels span ``low`` to ``high`` [rows, C]; None if it is not quantized.

        Dividing x by τ ⊙ s_x at once is what a fused layer does (DMQ, eq. 10, 11).
        """
        if self.activation_levels is None:
            return None
        step, zero_point = affine_parameters(*scaled_ends(low, high, scale, self.groups), self.activation_levels)
        return spread(step, self.groups) * scale, spread(zero_point, self.groups)

    def quantized_weight(self, scale: Tensor) -> Tensor:
        """Q(τ ⊙ W) / τ."""
        if self.weight_levels is None:
            return self.weight
        return scaled_fake_quantized_weight(
            self.weight, scale, self.weight_levels, self.groups, self.zero_in_range, self.clipping
        )

    def output(self, x: Tensor, grid: Grid | None, weight: Tensor) -> Tensor:
        """The quantized output [B, …] on ``x`` [B, …].

        Args:
            grid: from ``input_grid``, with one row or one per sample; None leaves x as it is.
            weight: from ``quantized_weight``.
        """
        if grid is not None and self.activation_levels is not None:
            divisor, zero_point = (along_axis(table, x.ndim, self.channel_axis) for table in grid)
            x = fake_quantize(x, divisor, zero_point, self.activation_levels, self.clipping)
        return self.linear_map(x, weight, self.bias)

    def positions(self, output: Tensor) -> int:
        """Pixels or tokens of one sample of an output [B, …]."""
        return output[0].numel() // output.shape[self.channel_axis]

    def squared(self, difference: Tensor) -> Tensor:
        """Squared error of every sample [B] of a difference of outputs: sum over channels, mean over positions."""
        return difference.square().flatten(1).sum(1) / self.positions(difference)

    def errors(self, x: Tensor, target: Tensor, grid: Grid | None, weight: Tensor) -> Tensor:
        """``squared`` error of ``output`` against the full-precision output ``target``, [B]."""
        return self.squared(self.output(x, grid, weight) - target)


def _gradients(
    layer: ScaledLayer, difference: Tensor, weights: Tensor, batch: int, trained: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return those of Σ λ_i ‖d_i‖² / positions / batch in ``trained``; the derivative in d is made in d's place.

    The derivative of a linear map does not ask for its output.
    """
    factor = weights * (2 / (layer.positions(difference) * batch))
    start = difference.detach().mul_(along_axis(factor[:, None], difference.ndim, 1))
    return torch.autograd.grad(difference, trained, start)


@torch.enable_grad()
def weighted_gradient(
    layer: ScaledLayer,
    scale: Tensor,
    x: Tensor,
    target: Tensor,
    grid: Callable[[Tensor], Grid | None],
    weights_of: Callable[[Tensor], Tensor],
    part: int,
) -> tuple[Tensor, Tensor]:
    """Return (gradient in τ [C] of the loss mean(λ ⊙ errors), the loss), computing ``part`` samples at a time.

    The result does not depend on ``part`` but for rounding: quantized weight and grid are made once, their gradients
    are added up over the parts and carried back to τ together.

    Args:
        scale: τ [C].
        grid: τ → the grid of every sample (or of all), as ``ScaledLayer.output`` takes it.
        weights_of: errors [B] → λ [B].
    """
    scale = scale.detach().requires_grad_(True)
    made = (layer.quantized_weight(scale), *(grid(scale) or ()))
    leaves = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in made]
    trained = [leaf for leaf in leaves if leaf.requires_grad]

    def difference(piece: slice) -> Tensor:
        rows = [table if len(table) == 1 else table[piece] for table in leaves[1:]]
        return layer.output(x[piece], (rows[0], rows[1]) if rows else None, leaves[0]).sub_(target[piece])

    first, *others = (slice(start, start + part) for start in range(0, len(x), part))
    residual = difference(first)
    errors = layer.squared(residual.detach())
    if others:  # λ depends on the errors of the whole batch
        del residual  # its graph
        with torch.no_grad():
            errors = torch.cat([errors, *(layer.squared(difference(piece)) for piece in others)])
        residual = difference(first)
    weights = weights_of(errors)
    totals = _gradients(layer, residual, weights[first], len(x), trained)
    for piece in others:
        gradients = _gradients(layer, difference(piece), weights[piece], len(x), trained)
        for total, gradient in zip(totals, gradients, strict=True):
            total += gradient
    origins = [tensor for tensor in made if tensor.requires_grad]
    return torch.autograd.grad(origins, scale, totals)[0], (weights * errors).mean()


def weight_magnitudes(weight: Tensor) -> Tensor:
    """Largest magnitude of every input channel of a weight [R, C, …], over rows and positions: [C]."""
    return weight.abs().movedim(1, 0).flatten(1).amax(1)


def channel_disparity(largest: Tensor) -> float:
    """Return max over median of ``largest`` [C] ≥ 0, each channel's largest magnitude; at least 1.

    The median of an even number of channels is the mean of the middle two. Infinite where at least half of the
    channels are always zero and one is not; 1 where all are.

    Raises:
        ValueError: there are no channels, or a magnitude is negative or not finite.
    """
    if largest.ndim != 1 or not len(largest):
        raise ValueError(f"largest magnitudes of channels must have shape [C] with C ≥ 1, not {list(largest.shape)}")
    if not (largest.isfinite() & (largest >= 0)).all():
        raise ValueError("largest magnitudes of channels must be finite and not negative")
    # In double precision no quotient of two single-precision numbers overflows.
    top, median = float(largest.max()), float(largest.double().quantile(0.5))
    if top == 0:
        return 1.0
    return top / median if median > 0 else inf
