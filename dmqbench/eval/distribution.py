"""Fréchet distances between sets of features: ``fd_<extractor>`` and ``fd2fp32_<extractor>``, never FID.

The plug-in estimate depends on n (it grows as n falls), so n is part of its protocol and its interval covers
the expectation of the estimate at this n. A naive bootstrap would not even contain the estimate.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dmqbench.eval.protocol import Measurement, MetricUnavailable, Protocol
from dmqbench.eval.statistics import Interval, jackknife
from dmqbench.images import require_images, to_signed

GROUPS = 32
_IMAGES_AT_ONCE = 64


class TooFewSamples(MetricUnavailable):
    """Fewer samples than a covariance of these features needs."""

    def __init__(self, n: int, needed: int) -> None:
        super().__init__(f"a Fréchet distance in these features needs at least {needed} samples, got {n}")
        self.n, self.needed = n, needed


@dataclass(frozen=True)
class Extractor:
    """A frozen feature network: ``features`` maps float32 images [N, C, H, W] in [-1, 1] to [N, d].

    ``hash`` is that of its weights; ``resize`` is what it does to the images first, both part of the
    protocol.
    """

    name: str
    hash: str
    features: Callable[[Tensor], Tensor]
    resize: str = "none"


class Gaussian(NamedTuple):
    """Mean [d] and covariance [d, d], float64."""

    mean: Tensor
    covariance: Tensor


def metric_name(extractor: str, against: Literal["dataset", "fp"]) -> str:
    """Return ``fd_<extractor>``, against the dataset, or ``fd2fp32_<extractor>``, against the FP samples."""
    return f"{'fd' if against == 'dataset' else 'fd2fp32'}_{extractor}"


@torch.no_grad()
def extract(extractor: Extractor, images: Tensor) -> Tensor:
    """Return the features [N, d], float64 on the CPU, of uint8 images [N, C, H, W]."""
    require_images(images)
    parts = [extractor.features(to_signed(part)).cpu().double() for part in images.split(_IMAGES_AT_ONCE)]
    return torch.cat(parts)


def fit_gaussian(features: Tensor) -> Gaussian:
    """Return the mean and the unbiased covariance of features [N, d]."""
    features = _checked(features)
    return _Moments.of(features, features.mean(dim=0)).gaussian


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Return |m_a − m_b|² + tr(A + B − 2 (A^½ B A^½)^½) (Dowson and Landau 1982), ≥ 0.

    With A = F Fᵀ and B = G Gᵀ the last trace is the sum of the singular values of Fᵀ G: symmetric in a and b,
    real whatever the rank, and exact to rounding where eigenvalues vanish, unlike the square root of a matrix
    product.
    """
    if torch.equal(a.mean, b.mean) and torch.equal(a.covariance, b.covariance):
        return 0.0  # identical sets are told from nearly identical ones, whatever the decomposition rounds to
    overlap = torch.linalg.svdvals(_factor(a.covariance).mT @ _factor(b.covariance)).sum()
    shift = (a.mean - b.mean).square().sum()
    return max(0.0, float(shift + a.covariance.trace() + b.covariance.trace() - 2 * overlap))


@dataclass(frozen=True)
class FrechetEstimate:
    """The plug-in ``value`` at this n, the interval of its expectation at this n, and ``debiased``."""

    value: float
    ci95: Interval
    debiased: float
    n: int

    def measurement(self, protocol: Protocol) -> Measurement:
        """Return the record of this estimate under ``protocol``, which must speak of as many samples."""
        if protocol.n != self.n:
            raise ValueError(f"{protocol.metric}: {self.n} samples cannot carry a protocol of n={protocol.n}")
        return Measurement(
            value=self.value,
            ci95=self.ci95,
            n=self.n,
            protocol=protocol.id,
            higher_is_better=False,
            extra={"debiased": self.debiased},
        )


def frechet_with_interval(features: Tensor, reference: Tensor, paired: bool, groups: int = GROUPS) -> FrechetEstimate:
    """Return the Fréchet distance between features [N, d] and reference [M, d] with its interval.

    ``paired``: row i of both belongs to the same seed (quantized and full-precision samples), and a group is
    deleted from both; otherwise the reference is fixed (a dataset). Where the two distributions are nearly
    equal the interval against a fixed reference is up to 1.4 times too wide, never too narrow: the distance
    is flat there. ``TooFewSamples`` below 2 d rows on either side.
    """
    features, reference = _checked(features), _checked(reference)
    if features.shape[1] != reference.shape[1]:
        raise ValueError(f"features of {features.shape[1]} and {reference.shape[1]} dimensions do not compare")
    if paired and len(features) != len(reference):
        raise ValueError(f"paired features must have the same rows, got {len(features)} and {len(reference)}")
    # Sums about a common centre lose no digits, and the sums without a group are one subtraction.
    centre = reference.mean(dim=0)
    ours, theirs = _Moments.of(features, centre), _Moments.of(reference, centre)

    def without(members: slice) -> float:
        kept = ours.minus(_Moments.of(features[members], centre))
        other = theirs.minus(_Moments.of(reference[members], centre)) if paired else theirs
        return frechet_distance(kept.gaussian, other.gaussian)

    value = frechet_distance(ours.gaussian, theirs.gaussian)
    result = jackknife(value, without, len(features), groups)
    interval = Interval(max(0.0, result.ci95.low), result.ci95.high)
    return FrechetEstimate(value, interval, result.debiased, len(features))


@dataclass(frozen=True)
class _Moments:
    """Count, sum [d] and sum of outer products [d, d] of features about a centre [d]."""

    count: int
    total: Tensor
    scatter: Tensor
    centre: Tensor

    @classmethod
    def of(cls, features: Tensor, centre: Tensor) -> "_Moments":
        shifted = features - centre
        return cls(len(features), shifted.sum(dim=0), shifted.mT @ shifted, centre)

    def minus(self, part: "_Moments") -> "_Moments":
        return _Moments(self.count - part.count, self.total - part.total, self.scatter - part.scatter, self.centre)

    @property
    def gaussian(self) -> Gaussian:
        mean = self.total / self.count
        covariance = (self.scatter - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return Gaussian(self.centre + mean, covariance)


def _factor(covariance: Tensor) -> Tensor:
    """Return F with F Fᵀ = covariance; eigenvalues that rounding made negative count as zero."""
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    return vectors * eigenvalues.clamp(min=0).sqrt()


def _checked(features: Tensor) -> Tensor:
    if features.ndim != 2:
        raise ValueError(f"features must be N×d, got shape {tuple(features.shape)}")
    if not torch.isfinite(features).all():
        raise ValueError("features hold NaN or infinity")
    n, dimension = features.shape
    if n < 2 * dimension:
        raise TooFewSamples(n, 2 * dimension)
    return features.double()
