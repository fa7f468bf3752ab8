"""Outlier-driven mixed quantization (OMQ; MPQ-DM, Feng et al. 2025): weight bits of the rows of one layer.

Rows whose weights have the heaviest tails get a bit more, as many of the lightest a bit less, so that the mean stays.
A row of the weight makes one output channel, so that its output error depends on its own bits alone: one output per
number of bits gives the error of every allocation as a sum over rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmqbench.quant.spec import LARGEST_WEIGHT_BITS, SMALLEST_WEIGHT_BITS

SMALLEST_MAGNITUDE = 1e-5
"""Of a channel, where scales are divided by one another: a channel that is always zero keeps a finite one."""

TENTHS = 10

CONSTANT = 1e-7
"""A row is constant where its standard deviation is at most so much of its largest magnitude."""


def prescale(input_largest: Tensor, weight_largest: Tensor) -> Tensor:
    """Return τ_j = sqrt(max|X_j| / max|W_j|) [C], which makes channels of x / τ and τ ⊙ W equally large.

    Args:
        input_largest: largest magnitude of every input channel, [C].
        weight_largest: largest magnitude of the weights of every input channel, [C].
    """
    return (input_largest.clamp(min=SMALLEST_MAGNITUDE) / weight_largest.clamp(min=SMALLEST_MAGNITUDE)).sqrt()


def row_kurtosis(weight: Tensor) -> Tensor:
    """Return E[(w − μ)⁴] / Var(w)² of every row of a weight [R, …], float64 [R] on the CPU; 0 for constant rows.

    Of a row that is not constant it is at least 1.
    """
    rows = weight.detach().flatten(1).cpu().double()
    centred = rows - rows.mean(1, keepdim=True)
    variance = centred.square().mean(1)
    constant = variance.sqrt() <= CONSTANT * rows.abs().amax(1)
    squared = torch.where(constant, torch.ones_like(variance), variance).square()
    return torch.where(constant, torch.zeros_like(variance), centred.pow(4).mean(1) / squared)


def row_order(rule: str, measure: Tensor, generator: torch.Generator) -> Tensor:
    """Return the rows in the order in which they are promoted, int64 [R]; from its end they are demoted.

    Args:
        rule: ``kurtosis`` or ``error``: the largest measure first, of equal ones the earlier row; ``random``;
            ``head_tail``: as they stand.
        measure: of every row, [R].
    """
    if rule == "random":
        return torch.randperm(len(measure), generator=generator)
    if rule == "head_tail":
        return torch.arange(len(measure))
    return measure.cpu().argsort(descending=True, stable=True)


def moved_rows(rows: int, bits: int, largest_tenths: int, plus: bool) -> tuple[int, ...]:
    """How many rows are promoted (and demoted, but for ``plus``) in each allocation that is considered.

    They are tenths · ⌊rows / 10⌋ for tenths = 0, 1, …; only 0 where ``blocked``, or where there are fewer than 10 rows.

    >>> moved_rows(64, 4, 5, plus=False), moved_rows(64, 4, 5, plus=True), moved_rows(9, 4, 5, plus=False)
    ((0, 6, 12, 18, 24, 30), (0, 6), (0,))
    """
    step = 0 if blocked(bits, plus) is not None else rows // TENTHS
    tenths = 1 if plus else largest_tenths
    return tuple(step * tenth for tenth in range(tenths + 1)) if step else (0,)


def blocked(bits: int, plus: bool) -> str | None:
    """Why no row can change its ``bits``; None if rows can."""
    if bits >= LARGEST_WEIGHT_BITS:
        return f"no weight has more than {LARGEST_WEIGHT_BITS} bits"
    if bits <= SMALLEST_WEIGHT_BITS and not plus:
        return f"no weight has less than {SMALLEST_WEIGHT_BITS} bit"
    return None


def row_bits(order: Tensor, moved: int, bits: int, plus: bool) -> Tensor:
    """Return the bits of every row, int64 [R]: ``moved`` rows at bits + 1 and, but for ``plus``, as many at bits − 1.

    Args:
        order: from ``row_order``, [R].
        moved: at most half of the rows.
    """
    if not 0 <= 2 * moved <= len(order):
        raise ValueError(f"{moved} of {len(order)} rows cannot be promoted and as many others demoted")
    of_rows = torch.full((len(order),), bits)
    of_rows[order[:moved]] += 1
    if not plus:
        of_rows[order[len(order) - moved :]] -= 1
    return of_rows


@dataclass(frozen=True)
class Allocation:
    """The bits chosen for the rows of a layer.

    ``errors``: relative output error of every allocation considered, by the tenths of the rows that it promotes.
    """

    bits: tuple[int, ...]
    moved: int
    tenths: int
    errors: tuple[float, ...]


def allocate(
    error_of_bits: Mapping[int, Tensor], energy: float, order: Tensor, bits: int, moves: Sequence[int], plus: bool
) -> Allocation:
    """Choose the allocation with the least output error; of equal ones that which moves fewer rows.

    With ``plus`` nothing is chosen: it is the last of ``moves``.

    Args:
        error_of_bits: number of bits → squared output error of every row quantized with it, [R].
        energy: squared full-precision output in all: what errors are relative to; 0 leaves them absolute.
        order: from ``row_order``, [R].
        bits: of a row that is not moved.
        moves: from ``moved_rows``.
    """
    candidates = [row_bits(order, moved, bits, plus) for moved in moves]
    sums = []
    for candidate in candidates:
        chosen = torch.zeros(len(order), dtype=torch.float64)
        for width in candidate.unique().tolist():
            rows = candidate == width
            chosen[rows] = error_of_bits[width].double().cpu()[rows]
        sums.append(float(chosen.sum()) / (energy or 1.0))
    tenths = len(moves) - 1 if plus else min(range(len(moves)), key=lambda number: (sums[number], number))
    return Allocation(tuple(candidates[tenths].tolist()), moves[tenths], tenths, tuple(sums))
