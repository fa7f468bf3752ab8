"""Uniform affine quantization as pure functions.

A value x is represented by an integer q with −z ≤ q ≤ L−1−z and reconstructed as q·s, where s is the scale, z the
zero-point and L the number of levels. q is the stored code minus the zero-point, so that reconstruction needs no
subtraction and zero is always exact. All parameters broadcast against x.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

NARROWEST = 2.0**-14
"""Share of its larger end below which the step of a range without zero is too small: integers must fit 16 bits."""

SMALLEST_SCALE = 1e-30
"""Below this a float32 quotient x/s can overflow; a range this narrow is indistinguishable from zero."""


def is_narrow(x: Tensor) -> bool:
    """Whether values are of a type with fewer bits than float32."""
    return x.is_floating_point() and x.dtype.itemsize < torch.float32.itemsize


def widened(x: Tensor) -> Tensor:
    """Return values in float32, if they are not in that or more: ranges, scales, rounding and losses are never less."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def affine_parameters(low: Tensor, high: Tensor, levels: Tensor | int, with_zero: bool = True) -> tuple[Tensor, Tensor]:
    """Return (scale, zero_point) of an asymmetric grid of ``levels`` values over [low, high] widened to hold zero.

    scale = (high − low) / (L − 1), zero_point = round(−low / scale) in 0..L−1. Differentiable in both ends through
    the scale. A range of width zero gives scale 1, so that a constant zero is reproduced; ends beyond half the
    largest float are pulled in, so that no grid point is infinite.

    With ``with_zero`` false only ranges of almost no width are widened, and the zero-point of values of one sign lies
    beyond the codes, as in the published range search (BRECQ, TFMQ-DM, DMQ).
    """
    largest = torch.finfo(low.dtype).max / 2
    if not with_zero:
        low, high = low.clamp(-largest, largest), high.clamp(-largest, largest)
        scale = high / (levels - 1) - low / (levels - 1)
        usable = scale > SMALLEST_SCALE + torch.maximum(low.abs(), high.abs()) * NARROWEST
        scale = torch.where(usable, scale, torch.ones_like(scale))
        of_zero = affine_parameters(low, high, levels)
        zero_point = torch.round(-low / scale).detach()
        return torch.where(usable, scale, of_zero[0]), torch.where(usable, zero_point, of_zero[1])
    low, high = low.clamp(-largest, 0.0), high.clamp(0.0, largest)
    steps = levels - 1
    scale = high / steps - low / steps  # each end on its own: their difference may overflow
    scale = torch.where(scale > SMALLEST_SCALE, scale, torch.ones_like(scale))
    zero_point = torch.round(-low / scale).detach()
    return scale, torch.minimum(zero_point, torch.as_tensor(steps, dtype=scale.dtype, device=scale.device))


def round_through(x: Tensor) -> Tensor:
    """Round half to even, with the identity as gradient (straight-through estimator)."""
    return x + (x.round() - x).detach()


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, levels: Tensor | int) -> Tensor:
    """Return integers q as floats: clamp(round(x / s), −z, L−1−z).

    Clamping before rounding gives the same integers, because both ends are integers, and never rounds an
    infinity.
    """
    return _clip_(x / scale, zero_point, levels).round_()


def _clip_(ratio: Tensor, zero_point: Tensor, levels: Tensor | int) -> Tensor:
    """clamp(x/s, −z, L−1−z) in place; clamp() with tensors as both bounds takes four times as long on a CPU."""
    return ratio.clamp_min_(-zero_point).clamp_max_(levels - 1 - zero_point)


CLIPPINGS = ("before_rounding", "after_rounding")
"""Which values count as inside the range when gradients are taken. ``after_rounding``: those whose rounded quotient is
on the grid, so up to half a step beyond an end, as in the published codes of DMQ and of EfficientDM and MPQ-DM;
``before_rounding``: those whose quotient is."""


class _FakeQuantize(torch.autograd.Function):
    """One node instead of six: a chain keeps every intermediate, and takes 2 to 3 times as long.

    The mask is inclusive at both ends, which that of ``torch.clamp`` is not.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, levels: Tensor | int, clipping: str) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.levels, ctx.clipping = levels, clipping
        return quantize(x, scale, zero_point, levels).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, zero_point = ctx.saved_tensors
        ratio = x / scale
        judged = ratio.round() if ctx.clipping == "after_rounding" else ratio
        clipped = _clip_(judged.clone(), zero_point, ctx.levels)
        inside = clipped == judged
        of_x = of_scale = of_zero_point = None
        if ctx.needs_input_grad[0]:
            of_x = gradient * inside
        if ctx.needs_input_grad[1]:
            integers = clipped.round_()
            of_scale = (gradient * torch.where(inside, integers - ratio, integers)).sum_to_size(scale.shape)
        if ctx.needs_input_grad[2]:
            of_zero_point = -(gradient * scale * ~inside).sum_to_size(zero_point.shape)
        return of_x, of_scale, of_zero_point, None, None


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, levels: Tensor | int, clipping: str = CLIPPINGS[0]
) -> Tensor:
    """Quantize and reconstruct, differentiable once in ``x``, ``scale`` and ``zero_point``.

    The gradient of x is 1 inside the range and 0 outside; that of the scale is round(x/s) − x/s inside and the
    clipped integer outside (LSQ, Esser et al. 2020, eq. 3); that of the zero-point is 0 inside and −s outside.
    ``clipping``, one of ``CLIPPINGS``, says what is inside; the values do not depend on it.
    """
    return _FakeQuantize.apply(x, scale, zero_point, levels, clipping)


RECTIFIED_LOW, RECTIFIED_HIGH = -0.1, 1.1


def rectified_sigmoid(alpha: Tensor) -> Tensor:
    """h(α) = clip(1.2 σ(α) − 0.1, 0, 1): the soft rounding variable (AdaRound, Nagel et al. 2020, eq. 23)."""
    return (torch.sigmoid(alpha) * (RECTIFIED_HIGH - RECTIFIED_LOW) + RECTIFIED_LOW).clamp(0, 1)


def rectified_sigmoid_inverse(fraction: Tensor) -> Tensor:
    """Return α with h(α) = fraction, for fractions in [0, 1]."""
    return -torch.log((RECTIFIED_HIGH - RECTIFIED_LOW) / (fraction - RECTIFIED_LOW) - 1)


def rounding_regularizer(alpha: Tensor, beta: float) -> Tensor:
    """Σ 1 − |2 h(α) − 1|^β: pushes every h towards 0 or 1 as β falls (AdaRound, eq. 24)."""
    return (1 - (2 * rectified_sigmoid(alpha) - 1).abs().pow(beta)).sum()


def soft_round_weight(weight: Tensor, alpha: Tensor, scale: Tensor, zero_point: Tensor, levels: Tensor | int) -> Tensor:
    """clamp(⌊w/s⌋ + h(α), −z, L−1−z)·s: the weight while its rounding is learned (AdaRound, eq. 22)."""
    rounded = (weight / scale).floor() + rectified_sigmoid(alpha)
    return rounded.clamp(-zero_point, levels - 1 - zero_point) * scale


def interpolate_parameters(
    scale: Tensor, zero_point: Tensor, other_scale: Tensor, other_zero_point: Tensor, share: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the parameters that lie ``share`` (0 to 1) of the way from the first to the other; all shapes broadcast.

    Scales are interpolated in their logarithms: what a step does depends on its ratio to the values, so that half-way
    between 0.1 and 0.4 is 0.2, and no average can be dominated by the larger one. Zero-points are interpolated
    linearly and rounded. A share of 0, or equal ends, gives the first ones' bits, as doubles hold more than those.
    """
    share = share.double()
    logarithm = torch.lerp(scale.double().log(), other_scale.double().log(), share)
    place = torch.lerp(zero_point.double(), other_zero_point.double(), share)
    return logarithm.exp().to(scale.dtype), place.round().to(zero_point.dtype)


def dynamic_parameters(x: Tensor, levels: int, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Min-max parameters reduced over ``axes``, kept as size 1; differentiable through the ranges."""
    return affine_parameters(x.amin(axes, keepdim=True), x.amax(axes, keepdim=True), levels)
