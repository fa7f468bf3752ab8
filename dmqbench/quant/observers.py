"""Range estimators: from observed values to the ends of a quantization range.

All work on rows: values [R, K] in, ends [R] out, every row on its own. A row is an output channel of a weight, or an
activation's values at one step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dmqbench.quant.functional import affine_parameters

CHUNK_ELEMENTS = 1 << 16
"""Rows are searched in chunks whose buffers stay inside a core's cache: a quarter faster than all at once."""

WHOLE_VECTORS = 64
"""Elements that a processor's vectors divide, also where it takes several at a time."""


def min_max(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and largest value of each row."""
    low, high = torch.aminmax(values, dim=1)
    return low, high


def percentile(values: Tensor, fraction: float = 0.999) -> tuple[Tensor, Tensor]:
    """Return the ends that leave (1 − fraction)/2 of a row's values outside on each side."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction {fraction}: allowed is 0 < fraction <= 1")
    tail = (1 - fraction) / 2
    ordered = values.sort(dim=1).values
    last = values.shape[1] - 1
    return ordered[:, round(tail * last)], ordered[:, round((1 - tail) * last)]


def mse_search(
    values: Tensor,
    levels: Tensor,
    *,
    candidates: int = 80,
    exponent: float = 2.4,
    ends: tuple[Tensor, Tensor] | None = None,
    with_zero: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return the shrunken min-max ends with the least mean |x − Q(x)|^p (LAPQ, as in Q-Diffusion).

    Candidate i multiplies both ends by 1 − i/100; the first of equal ones wins.

    Args:
        values: [R, K].
        levels: number of levels of each row, [R] or a scalar tensor.
        candidates: how many shrink factors are tried, 1..100.
        exponent: p.
        ends: (low, high) [R] to shrink; by default each row's smallest and largest value.
        with_zero: see ``affine_parameters``.
    """
    if not 1 <= candidates <= 100:
        raise ValueError(f"candidates {candidates}: allowed are 1 to 100")
    low, high = ends if ends is not None else min_max(values)
    levels = levels.to(values).expand(len(values))
    factors = 1 - 0.01 * torch.arange(candidates, dtype=values.dtype, device=values.device)
    scale, zero_point = affine_parameters(low * factors[:, None], high * factors[:, None], levels, with_zero)
    grids = torch.stack((scale, -zero_point, levels - 1 - zero_point), dim=1)[..., None]
    rows = max(1, CHUNK_ELEMENTS // max(1, values.shape[1]))
    parts = [slice(start, start + rows) for start in range(0, len(values), rows)]
    errors = torch.cat([_errors(values[part], grids[:, :, part], exponent) for part in parts], dim=1)
    best = (errors * (scale / scale[0]).pow(exponent)).argmin(dim=0)  # the first of equal ones
    return low * factors[best], high * factors[best]


def _errors(values: Tensor, grids: Tensor, exponent: float) -> Tensor:
    """Mean |x/s − q|^p of every candidate and row [N, R], for grids [N, (scale, bottom, top), R, 1].

    The rows are vectorised and the candidates looped over, as many at a time as fit into the cache; every operation
    writes into one of two buffers, because at this size the memory traffic of temporaries costs more than the
    arithmetic. Errors are in units of the scale, so that their power can neither overflow nor vanish.
    """
    count = values.numel()
    # A function's last bit may differ in what is left over of whole vectors: every candidate is to begin with one.
    together = max(1, CHUNK_ELEMENTS // count) if count and count % WHOLE_VECTORS == 0 else 1
    ratios = values.new_empty(min(together, len(grids)), *values.shape)
    errors = torch.empty_like(ratios)
    means = []
    for part in grids.split(together):
        scale, bottom, top = part.unbind(1)
        ratio, error = ratios[: len(part)], errors[: len(part)]
        torch.div(values, scale, out=ratio)
        torch.round(ratio, out=error)
        error.clamp_min_(bottom).clamp_max_(top).sub_(ratio)
        # |d|^p as 2^(p/2 · log2 d²): pow() guards its last bit at twice the price of all of these.
        error.mul_(error).log2_().mul_(exponent / 2).exp2_()
        means.append(error.mean(dim=2))
    return torch.cat(means)


@dataclass
class MovingRange:
    """Exponential moving average of batch ranges (momentum 0.95 in TFMQ-DM and DMQ)."""

    momentum: float = 0.95
    low: Tensor | None = None
    high: Tensor | None = None

    def update(self, values: Tensor) -> None:
        """Take in one batch of rows [R, K]; the first batch sets the range."""
        low, high = min_max(values)
        if self.low is None or self.high is None:
            self.low, self.high = low, high
        else:
            self.low = torch.lerp(low, self.low, self.momentum)
            self.high = torch.lerp(high, self.high, self.momentum)


@dataclass(frozen=True)
class Observer:
    """A range estimator by name, with the settings that it needs.

    ``candidates`` and ``exponent`` belong to "mse", ``fraction`` to "percentile"; "min_max" has none.
    """

    name: str
    candidates: int = 80
    exponent: float = 2.4
    fraction: float = 0.999
    with_zero: bool = True
    """Whether ranges are widened to hold zero: see ``affine_parameters``."""

    def __post_init__(self) -> None:
        if self.name not in ("mse", "min_max", "percentile"):
            raise ValueError(f"observer={self.name} is not known (allowed: min_max, mse, percentile)")

    def __call__(
        self, values: Tensor, levels: Tensor, ends: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the range ends [R] of rows [R, K]; ``ends`` are their extremes where the rows are only a sample."""
        if self.name == "percentile":
            return percentile(values, self.fraction)
        if self.name == "min_max":
            return ends or min_max(values)
        return mse_search(
            values,
            levels,
            candidates=self.candidates,
            exponent=self.exponent,
            ends=ends,
            with_zero=self.with_zero,
        )
