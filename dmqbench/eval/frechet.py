"""Fréchet distances between sets of features: the arithmetic of ``fid``, ``sfid``, ``fid2fp32`` and ``fd_<extractor>``.

The plug-in estimate depends on n (it grows as n falls), so n is part of its protocol and its interval covers
the expectation of the estimate at this n. A naive bootstrap would not even contain the estimate.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from dmqbench.eval.features import require_comparable, require_matrix
from dmqbench.eval.measurement import Estimate
from dmqbench.eval.protocol import MetricUnavailable
from dmqbench.eval.statistics import GROUPS, Interval, Replicated, even_groups, group_edges, jackknife

_LEAST = 8
_WIDE = 256
_GROUPS_WHERE_WIDE = 16
"""A decomposition of 2048 dimensions takes seconds, and half the groups make an interval only 4 % longer."""


class TooFewSamples(MetricUnavailable):
    """Fewer samples than a covariance of these features needs."""

    def __init__(self, n: int, needed: int) -> None:
        super().__init__(f"a Fréchet distance in these features needs at least {needed} samples, got {n}")
        self.n, self.needed = n, needed


class Gaussian(NamedTuple):
    """Mean [d] and covariance [d, d], float64."""

    mean: Tensor
    covariance: Tensor


def fit_gaussian(features: Tensor) -> Gaussian:
    """Return the mean and the unbiased covariance of features [N, d]; ``TooFewSamples`` below 2 d rows."""
    features = _checked(features)
    return _Moments.of(features, features.double().mean(dim=0)).gaussian


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Return |m_a − m_b|² + tr(A + B − 2 (A^½ B A^½)^½) (Dowson and Landau 1982), ≥ 0.

    With A = F Fᵀ and B = G Gᵀ the last trace is the sum of the singular values of Fᵀ G: symmetric in a and b,
    real whatever the rank, and exact to rounding where eigenvalues vanish, unlike the square root of a matrix
    product.
    """
    return _distance(_Factored.of(a), _Factored.of(b))


def frechet_estimate(
    features: Tensor, reference: Tensor | Gaussian, paired: bool = False, groups: int | None = None
) -> Estimate:
    """Return the Fréchet distance between features [N, d] and a reference, with its interval and replicates.

    ``reference``: features [M, d], or the Gaussian that an archive of statistics holds. ``paired``: row i of both
    belongs to the same seed (quantized and full-precision samples), and a group is deleted from both; otherwise the
    reference is fixed (a dataset), and the interval covers what other samples would give against this reference.
    ``groups`` is even; by default 32, or 16 from 256 dimensions on.

    Measured on Gaussians (2 to 64 dimensions, 2 d to 256 d samples; far from the reference, near it and equal to it;
    paired and not), the interval covers 94 to 97 %: a plain jackknife covers up to 99.5 % near the reference. The
    interval of the difference of two distances covers 94 to 97 % too.

    extra: "debiased" lacks the bias of order 1/n and may be negative; "pairs" serve the interval of a difference.
    ``TooFewSamples`` below 2 d rows on either side.
    """
    features = _checked(features)
    if groups is None:
        groups = even_groups(len(features), GROUPS if features.shape[1] < _WIDE else _GROUPS_WHERE_WIDE)
    versus = _Reference.of(reference, features, paired)
    whole = _Moments.of(features, versus.centre)
    value = versus.distance(whole)
    replicates, pairs = [], []
    for first, second in _consecutive_pairs(group_edges(len(features), groups).tolist()):
        parts = [(_Moments.of(features[rows], versus.centre), versus.part(rows)) for rows in (first, second)]
        without = [(whole.minus(part), versus.minus(counterpart)) for part, counterpart in parts]
        replicates += [rest.distance(mine) for mine, rest in without]
        mine, rest = without[0]
        pairs.append(rest.minus(parts[1][1]).distance(mine.minus(parts[1][0])))
    statistic = Replicated(value, len(features), tuple(replicates), tuple(pairs))
    result = jackknife(statistic, size=value)
    interval = Interval(max(0.0, result.ci95.low), result.ci95.high)
    return Estimate.of(statistic, interval, debiased=result.debiased)


@dataclass(frozen=True)
class _Moments:
    """Count, sum [d] and sum of outer products [d, d] of features about a centre [d].

    Sums about a common centre lose no digits, and the sums without a group are one subtraction.
    """

    count: int
    total: Tensor
    scatter: Tensor
    centre: Tensor

    @classmethod
    def of(cls, features: Tensor, centre: Tensor) -> "_Moments":
        shifted = features.double() - centre
        return cls(len(features), shifted.sum(dim=0), shifted.mT @ shifted, centre)

    def minus(self, part: "_Moments") -> "_Moments":
        return _Moments(self.count - part.count, self.total - part.total, self.scatter - part.scatter, self.centre)

    @property
    def gaussian(self) -> Gaussian:
        mean = self.total / self.count
        covariance = (self.scatter - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return Gaussian(self.centre + mean, covariance)


@dataclass(frozen=True)
class _Factored:
    """A Gaussian and F [d, d] with F Fᵀ = its covariance: made once for a reference that does not change."""

    gaussian: Gaussian
    factor: Tensor

    @classmethod
    def of(cls, gaussian: Gaussian) -> "_Factored":
        lower, failed = torch.linalg.cholesky_ex(gaussian.covariance)
        if not failed:
            return cls(gaussian, lower)
        eigenvalues, vectors = torch.linalg.eigh(gaussian.covariance)
        # Eigenvalues that rounding made negative count as zero.
        return cls(gaussian, vectors * eigenvalues.clamp(min=0).sqrt())


@dataclass(frozen=True)
class _Reference:
    """What is compared with: one Gaussian, or features [N, d] from which rows are deleted too."""

    centre: Tensor
    fixed: _Factored | None
    features: Tensor | None = None
    moments: _Moments | None = None

    @classmethod
    def of(cls, reference: Tensor | Gaussian, features: Tensor, paired: bool) -> "_Reference":
        """What ``features`` are compared with; rows are deleted from it too if they are ``paired``."""
        if isinstance(reference, Gaussian):
            gaussian = _checked_gaussian(reference, features.shape[1])
            if paired:
                raise ValueError("a Gaussian has no rows that could pair: compare with features or set paired=False")
            return cls(gaussian.mean, _Factored.of(gaussian))
        reference = _checked(reference)
        require_comparable(features, reference, paired)
        if not paired:
            gaussian = fit_gaussian(reference)
            return cls(gaussian.mean, _Factored.of(gaussian))
        centre = reference.double().mean(dim=0)
        return cls(centre, None, reference, _Moments.of(reference, centre))

    def part(self, rows: slice) -> "_Moments | None":
        return None if self.features is None else _Moments.of(self.features[rows], self.centre)

    def minus(self, part: "_Moments | None") -> "_Reference":
        if self.moments is None or part is None:
            return self
        return _Reference(self.centre, None, self.features, self.moments.minus(part))

    def distance(self, moments: _Moments) -> float:
        if self.moments is None:
            assert self.fixed is not None
            return _distance(_Factored.of(moments.gaussian), self.fixed)
        return frechet_distance(moments.gaussian, self.moments.gaussian)


def _distance(a: _Factored, b: _Factored) -> float:
    (mean, covariance), (other_mean, other_covariance) = a.gaussian, b.gaussian
    if torch.equal(mean, other_mean) and torch.equal(covariance, other_covariance):
        return 0.0  # identical sets are told from nearly identical ones, whatever the decomposition rounds to
    overlap = torch.linalg.svdvals(a.factor.mT @ b.factor).sum()
    shift = (mean - other_mean).square().sum()
    return max(0.0, float(shift + covariance.trace() + other_covariance.trace() - 2 * overlap))


def _consecutive_pairs(edges: list[int]) -> Iterator[tuple[slice, slice]]:
    groups = [slice(low, high) for low, high in pairwise(edges)]
    if len(groups) % 2:
        raise ValueError(f"a Fréchet distance is measured with an even number of groups, got {len(groups)}")
    return zip(groups[::2], groups[1::2], strict=True)


def _checked(features: Tensor) -> Tensor:
    require_matrix(features, "features")
    n, dimension = features.shape
    needed = max(2 * dimension, _LEAST)
    if n < needed:
        raise TooFewSamples(n, needed)
    return features


def _checked_gaussian(gaussian: Gaussian, dimension: int) -> Gaussian:
    mean, covariance = gaussian.mean.double(), gaussian.covariance.double()
    if mean.shape != (dimension,) or covariance.shape != (dimension, dimension):
        raise ValueError(
            f"a reference for {dimension} dimensions needs a mean [{dimension}] and a covariance "
            f"[{dimension}, {dimension}], got {list(mean.shape)} and {list(covariance.shape)}"
        )
    if not (torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
        raise ValueError("the reference's mean or covariance holds NaN or infinity")
    if not torch.allclose(covariance, covariance.mT, rtol=1e-4, atol=1e-6 * float(covariance.abs().max())):
        raise ValueError("the reference's covariance is not symmetric")
    return Gaussian(mean, (covariance + covariance.mT) / 2)
