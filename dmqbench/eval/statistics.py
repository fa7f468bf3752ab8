"""Intervals and comparisons. NumPy only: reports use it without torch.

A mean over images gets a bootstrap interval; two methods are compared by the interval of their *paired
difference*; a statistic of a whole set (a Fréchet distance) gets a jackknife, because resampling with repeats
biases it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

RESAMPLES = 2000
_DRAWS_AT_ONCE = 1 << 22


class Interval(NamedTuple):
    """A 95 % interval, low ≤ high."""

    low: float
    high: float


Verdict = Literal["better", "worse", "cannot tell"]


@dataclass(frozen=True)
class Difference:
    """The mean of a − b over the ``n`` pairs where both are numbers, its interval and what follows for a.

    ``left_out`` pairs had no number on one side (identical images have no PSNR).
    """

    mean: float | None
    ci95: Interval | None
    n: int
    left_out: int
    verdict: Verdict


def bootstrap_mean(values: ArrayLike, seed: int = 0, resamples: int = RESAMPLES) -> Interval | None:
    """Return the 95 % BCa bootstrap interval of the mean of ``values`` [N]; ``None`` below two values.

    BCa corrects the percentile interval for bias and skewness (Efron 1987, "Better bootstrap confidence
    intervals"), which errors of images have. It is a function of (values, seed): the same on every machine.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or not np.isfinite(data).all():
        raise ValueError(f"bootstrap_mean: expected finite numbers [N], got shape {data.shape}")
    if len(data) < 2:
        return None
    if np.ptp(data) == 0:
        return Interval(float(data[0]), float(data[0]))
    means = _resampled_means(data, seed, resamples)
    low, high = np.quantile(means, _bca_levels(data, means))
    return Interval(float(low), float(high))


def paired_difference(
    a: Sequence[float | None], b: Sequence[float | None], higher_is_better: bool, seed: int = 0
) -> Difference:
    """Compare method a with method b by their values for the same images, in index order.

    "better" or "worse" is said of a, and only where the interval of the mean difference excludes zero.
    """
    if len(a) != len(b):
        raise ValueError(f"paired_difference: {len(a)} values against {len(b)}: they do not pair by index")
    differences = [x - y for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    left_out = len(a) - len(differences)
    if not differences:
        return Difference(None, None, 0, left_out, "cannot tell")
    interval = bootstrap_mean(differences, seed)
    mean = float(np.mean(differences))
    return Difference(mean, interval, len(differences), left_out, _verdict(interval, higher_is_better))


@dataclass(frozen=True)
class Jackknife:
    """``ci95`` covers the expectation of the estimate at this n; ``debiased`` lacks its bias of order 1/n."""

    estimate: float
    ci95: Interval
    debiased: float


def jackknife(estimate: float, without: Callable[[slice], float], n: int, groups: int = 32) -> Jackknife:
    """Return the delete-a-group jackknife of a statistic of ``n`` samples.

    ``without(members)`` is the statistic without those samples. Groups are consecutive samples, nearly equal
    in size; unequal sizes are weighted (Busing, Meijer and van der Leeden 1999, "Delete-m jackknife for
    unequal m"), and the interval is Student's with groups − 1 degrees of freedom.
    """
    if not 2 <= groups <= n:
        raise ValueError(f"jackknife: groups must be between 2 and the {n} samples, got {groups}")
    edges = np.linspace(0, n, groups + 1).round().astype(int)
    replicates = np.array([without(slice(low, high)) for low, high in pairwise(edges)])
    inflation = n / np.diff(edges)
    debiased = groups * estimate - np.sum((1 - 1 / inflation) * replicates)
    pseudo = inflation * estimate - (inflation - 1) * replicates
    variance = np.mean((pseudo - debiased) ** 2 / (inflation - 1))
    half = float(stdtrit(groups - 1, 0.975) * np.sqrt(variance))
    return Jackknife(estimate, Interval(estimate - half, estimate + half), float(debiased))


def _resampled_means(data: NDArray[np.float64], seed: int, resamples: int) -> NDArray[np.float64]:
    """Draw a bounded number of indices at once: 50,000 images take no more memory than 256."""
    generator = np.random.Generator(np.random.PCG64(seed))
    rows = max(1, _DRAWS_AT_ONCE // len(data))
    parts = []
    for start in range(0, resamples, rows):
        drawn = generator.integers(0, len(data), (min(rows, resamples - start), len(data)))
        parts.append(data[drawn].mean(axis=1))
    return np.concatenate(parts)


def _bca_levels(data: NDArray[np.float64], means: NDArray[np.float64]) -> list[float]:
    """Return the two quantile levels of the bootstrap distribution between which BCa puts 95 %."""
    normal = NormalDist()
    centre = data.mean()
    below = np.mean(means < centre) + np.mean(means == centre) / 2
    bias = normal.inv_cdf(float(np.clip(below, 1 / len(means), 1 - 1 / len(means))))
    deviations = data - centre
    acceleration = np.sum(deviations**3) / (6 * np.sum(deviations**2) ** 1.5)
    shifted = [bias + normal.inv_cdf(level) for level in (0.025, 0.975)]
    return [normal.cdf(float(bias + z / (1 - acceleration * z))) for z in shifted]


def _verdict(interval: Interval | None, higher_is_better: bool) -> Verdict:
    if interval is None or interval.low <= 0 <= interval.high:
        return "cannot tell"
    return "better" if (interval.low > 0) == higher_is_better else "worse"
