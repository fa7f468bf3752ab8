"""Output rows of weights: how heavy their tails are, and which rows carry the error of rounding.

The claim behind mixed precision inside a layer (MPQ-DM) is that a few rows with outliers, found by their kurtosis,
carry the error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dmqbench.anatomy.statistics import Moments, short
from dmqbench.quant.functional import affine_parameters, fake_quantize
from dmqbench.quant.observers import Observer

BINS = 61
"""Of a histogram, an odd number, so that one lies around the mean."""


@dataclass(frozen=True)
class RoundingShares:
    """Shares, 0..1, of a layer's squared rounding error at some bits that a tenth of its rows carries.

    ``by_kurtosis`` is that of the rows of highest kurtosis; ``by_error`` that of the rows of largest error, which no
    other choice of as many rows exceeds. Where all rows erred alike, both would be the share of the rows. None for
    fewer than ten rows, and without any error.
    """

    by_kurtosis: float | None
    by_error: float | None

    def to_json(self) -> dict[str, float | None]:
        return {"by_kurtosis": short(self.by_kurtosis), "by_error": short(self.by_error)}


@dataclass(frozen=True)
class RowStatistics:
    """Of one layer's R output rows: kurtosis (3 for a Gaussian, NaN for a constant row), [R]; the number of rows in a
    tenth of them, 0 for fewer than ten; and by weight bits who carries the error of rounding to nearest."""

    kurtosis: Tensor
    tenth: int
    rounding: Mapping[int, RoundingShares]

    def to_json(self) -> dict[str, Any]:
        rounding = {str(bits): shares.to_json() for bits, shares in self.rounding.items()}
        return {"kurtosis": short(self.kurtosis.tolist()), "tenth": self.tenth, "rounding": rounding}


def row_statistics(weight: Tensor, bits: Sequence[int]) -> RowStatistics:
    """Return the statistics of the rows of a weight [R, C, …], rounded to each of ``bits`` (1 to 8).

    Every row has a range of its own, the one of least error, as in the stage ``weight_range``.
    """
    rows = weight.detach().flatten(1)
    kurtosis, tenth = Moments.of(rows).kurtosis, len(rows) // 10
    return RowStatistics(kurtosis.cpu(), tenth, {width: _shares(rows, kurtosis, tenth, width) for width in bits})


def rounding_errors(rows: Tensor, bits: int) -> Tensor:
    """Return the squared error of rounding each of ``rows`` [R, K] to 2^bits levels, float64 [R]."""
    levels = torch.tensor(2**bits, device=rows.device)
    scale, zero_point = affine_parameters(*Observer("mse")(rows, levels), levels)
    rounded = fake_quantize(rows, scale[:, None], zero_point[:, None], levels)
    return (rounded.double() - rows.double()).square().sum(dim=1)


def _shares(rows: Tensor, kurtosis: Tensor, tenth: int, bits: int) -> RoundingShares:
    errors = rounding_errors(rows, bits)
    total = float(errors.sum())
    if tenth == 0 or total == 0:
        return RoundingShares(None, None)
    heaviest = kurtosis.nan_to_num(-1.0).argsort(descending=True, stable=True)[:tenth]
    return RoundingShares(float(errors[heaviest].sum()) / total, float(errors.topk(tenth).values.sum()) / total)


def row_histograms(weight: Tensor) -> dict[str, Any]:
    """Return histograms of the rows of highest and of median kurtosis of a weight [R, C, …], as JSON.

    Values are in standard deviations of their row from its mean; ``edges`` [BINS + 1] are the same for both rows, and
    ``share`` [BINS] sums to 1. Constant rows do not count.

    Raises:
        ValueError: every row is constant.
    """
    rows = weight.detach().flatten(1).double().cpu()
    moments = Moments.of(rows)
    order = [row for row in moments.kurtosis.argsort(stable=True).tolist() if moments.kurtosis[row].isfinite()]
    if not order:
        raise ValueError("every row is constant")
    chosen = (order[-1], order[(len(order) - 1) // 2])
    values = [(rows[row] - moments.mean[row]) / moments.std[row] for row in chosen]
    reach = max(float(value.abs().max()) for value in values)
    edges = torch.linspace(-reach, reach, BINS + 1, dtype=torch.float64)
    shares = [torch.histogram(value.clamp(-reach, reach), edges).hist / rows.shape[1] for value in values]
    return {
        "edges": short(edges.tolist()),
        "rows": [
            {"row": row, "kurtosis": short(float(moments.kurtosis[row])), "share": short(share.tolist())}
            for row, share in zip(chosen, shares, strict=True)
        ],
    }
