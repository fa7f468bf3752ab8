"""Do cheap errors predict sample quality? Correlations over the jobs of one table. Imports no torch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import stats

from dmqbench.eval.measurement import Measurement
from dmqbench.eval.statistics import Interval
from dmqbench.results.diagnosis import sound_diagnosis
from dmqbench.results.result import Result

PROXIES = ("layer_error", "injected_error", "accumulated_error")
FEWEST = 4
"""Jobs below which nothing is said: three points lie on a line too easily."""

Verdict = Literal["rises", "falls", "cannot tell"]


class ProxyPoint(NamedTuple):
    """One job: how its row is called, its proxy and its metric."""

    label: str
    proxy: float
    metric: float


@dataclass(frozen=True)
class ProxyCorrelation:
    """How ``metric`` goes with ``proxy`` over ``n`` jobs.

    ``ci95`` is Fisher's interval of the Pearson correlation, which takes the jobs for independent. All three numbers
    are ``None`` below four jobs and where one side is the same for all. ``left_out`` counts jobs by reason.
    """

    proxy: str
    metric: str
    pearson: float | None
    spearman: float | None
    ci95: Interval | None
    points: tuple[ProxyPoint, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return len(self.points)

    @property
    def verdict(self) -> Verdict:
        """Whether the metric rises or falls with the proxy; said only where the interval excludes zero."""
        if self.ci95 is None or self.ci95.low <= 0 <= self.ci95.high:
            return "cannot tell"
        return "rises" if self.ci95.low > 0 else "falls"


def direction(ends: Interval) -> str:
    """Return in words whether something goes with another, by the interval of their correlation."""
    if ends.low > 0:
        return "rises with"
    return "falls with" if ends.high < 0 else "cannot be told to follow"


def correlations(results: Iterable[Result], metric: str = "psnr") -> list[ProxyCorrelation]:
    """Correlate every proxy with ``metric`` over ``results``, which should share a table (one model and protocol).

    Jobs without a sound diagnosis or the metric are left out, and identical ones, which have neither value nor error.
    """
    found = [(result, sound_diagnosis(result.folder)) for result in results]
    return [_correlation(proxy, metric, found) for proxy in PROXIES]


def correlate(x: Iterable[float], y: Iterable[float]) -> tuple[float, float, Interval] | None:
    """Return (Pearson, Spearman, Fisher's 95 % interval of the former), or ``None`` where they say nothing."""
    xs, ys = np.asarray(list(x), dtype=np.float64), np.asarray(list(y), dtype=np.float64)
    if len(xs) < FEWEST or np.ptp(xs) == 0 or np.ptp(ys) == 0:
        return None
    pearson: Any = stats.pearsonr(xs, ys)
    spearman: Any = stats.spearmanr(xs, ys)
    interval = pearson.confidence_interval(0.95)
    return float(pearson.statistic), float(spearman.statistic), Interval(float(interval.low), float(interval.high))


def _correlation(proxy: str, metric: str, found: list[tuple[Result, dict[str, Any] | None]]) -> ProxyCorrelation:
    points: list[ProxyPoint] = []
    left_out: dict[str, int] = {}
    for result, diagnosis in found:
        measured = result.measurements.get(metric)
        value = None if diagnosis is None else diagnosis["proxies"].get(proxy)
        reason = _reason(measured, diagnosis, value)
        if reason is not None:
            left_out[reason] = left_out.get(reason, 0) + 1
        elif measured is not None and measured.value is not None and value is not None:
            points.append(ProxyPoint(_label(result), value, measured.value))
    numbers = correlate((point.proxy for point in points), (point.metric for point in points))
    pearson, spearman, ci95 = (None, None, None) if numbers is None else numbers
    return ProxyCorrelation(proxy, metric, pearson, spearman, ci95, tuple(points), left_out)


def _reason(measured: Measurement | None, diagnosis: Mapping[str, Any] | None, value: float | None) -> str | None:
    """Why a job has no point, or ``None`` if it has one."""
    if measured is None:
        return "without the metric"
    if measured.exact or measured.value is None:
        return "identical to full precision"
    if diagnosis is None:
        return "without a diagnosis"
    return "without this proxy" if value is None else None


def _label(result: Result) -> str:
    return f"{result.label} {result.bits}"
