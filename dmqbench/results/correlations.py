"""Do cheap errors predict sample quality? Correlations over the jobs of one table."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import stats

from dmqbench.eval.statistics import Interval
from dmqbench.results.diagnosis import sound_diagnosis
from dmqbench.results.result import Result

PROXIES = ("layer_error", "injected_error", "accumulated_error")
FEWEST = 4
"""Jobs below which nothing is said: three points lie on a line too easily."""

Verdict = Literal["rises", "falls", "cannot tell"]


class Correlation(NamedTuple):
    """Two coefficients, and Fisher's 95 % interval of Pearson's, which takes the points for independent."""

    pearson: float
    spearman: float
    ci95: Interval

    @property
    def text(self) -> str:
        return f"Pearson {self.pearson:.2f} [{self.ci95.low:.2f}, {self.ci95.high:.2f}]"

    @property
    def verdict(self) -> Verdict:
        """Whether one side rises or falls with the other; said only where the interval excludes zero."""
        if self.ci95.low <= 0 <= self.ci95.high:
            return "cannot tell"
        return "rises" if self.ci95.low > 0 else "falls"

    @property
    def direction(self) -> str:
        """The verdict in the middle of a sentence."""
        return {"rises": "rises with", "falls": "falls with", "cannot tell": "cannot be told to follow"}[self.verdict]


class ProxyPoint(NamedTuple):
    """One job: its method and bits, its proxy and its metric."""

    method: str
    bits: str
    proxy: float
    metric: float


@dataclass(frozen=True)
class ProxyCorrelation:
    """How ``metric`` goes with ``proxy`` over ``n`` jobs.

    There is no ``correlation`` below four jobs and where one side is the same for all. ``left_out`` counts jobs by
    reason.
    """

    proxy: str
    metric: str
    correlation: Correlation | None
    points: tuple[ProxyPoint, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return len(self.points)

    @property
    def sentence(self) -> str:
        """How far the proxy predicts the metric, and over which jobs."""
        left_out = "".join(f"; {count} {reason}" for reason, count in self.left_out.items())
        if self.correlation is None:
            return f"{self.n} jobs: too few, or too equal, to correlate{left_out}"
        numbers = f"{self.correlation.text}, Spearman {self.correlation.spearman:.2f}"
        return f"{numbers} over {self.n} jobs: {self.correlation.verdict}{left_out}"


def correlations(results: Iterable[Result], metric: str = "psnr") -> list[ProxyCorrelation]:
    """Correlate every proxy with ``metric`` over ``results``, which should share a table (one model and protocol).

    Jobs without a sound diagnosis or the metric are left out, and identical ones, which have neither value nor error.
    """
    diagnosed = [(result, sound_diagnosis(result.folder)) for result in results]
    return [_correlation(proxy, metric, diagnosed) for proxy in PROXIES]


def correlate(x: Iterable[float], y: Iterable[float]) -> Correlation | None:
    """Return how two sides correlate; ``None`` where they say nothing."""
    xs, ys = np.asarray(list(x), dtype=np.float64), np.asarray(list(y), dtype=np.float64)
    if len(xs) < FEWEST or np.ptp(xs) == 0 or np.ptp(ys) == 0:
        return None
    pearson: Any = stats.pearsonr(xs, ys)
    spearman: Any = stats.spearmanr(xs, ys)
    interval = Interval(*map(float, pearson.confidence_interval(0.95)))
    return Correlation(float(pearson.statistic), float(spearman.statistic), interval)


def _correlation(
    proxy: str, metric: str, diagnosed: Iterable[tuple[Result, Mapping[str, Any] | None]]
) -> ProxyCorrelation:
    points: list[ProxyPoint] = []
    left_out: Counter[str] = Counter()
    for result, diagnosis in diagnosed:
        measured = result.measurements.get(metric)
        predicted = None if diagnosis is None else diagnosis["proxies"].get(proxy)
        if measured is None:
            left_out["without the metric"] += 1
        elif measured.exact or measured.value is None:
            left_out["identical to full precision"] += 1
        elif predicted is None:
            left_out["without a diagnosis" if diagnosis is None else "without this proxy"] += 1
        else:
            points.append(ProxyPoint(result.label, result.bits, predicted, measured.value))
    correlation = correlate((point.proxy for point in points), (point.metric for point in points))
    return ProxyCorrelation(proxy, metric, correlation, tuple(points), left_out)
