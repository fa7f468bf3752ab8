"""Which of two methods is better over calibration seeds, or that so many cannot tell."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dmqbench.eval.statistics import (
    Interval,
    Verdict,
    student_interval,
    verdict_of,
)
from dmqbench.results.compare import Comparison, compare, measured, name_of, sentence_of
from dmqbench.results.result import Result


@dataclass(frozen=True)
class SeedComparison:
    """What the ``differences`` a − b per calibration seed say of a: their mean and its Student interval over seeds.

    ``comparisons`` are those within each of the ``seeds``; ``agree`` of them differ in the direction of the mean, or
    of the verdict where exact results have no number.
    """

    metric: str
    a: str
    b: str
    seeds: tuple[int, ...]
    comparisons: tuple[Comparison, ...]
    difference: float | None
    ci95: Interval | None
    agree: int
    verdict: Verdict
    reason: str | None = None

    @property
    def n(self) -> int:
        return min(comparison.n for comparison in self.comparisons)

    @property
    def differences(self) -> tuple[float | None, ...]:
        return tuple(comparison.difference for comparison in self.comparisons)

    @property
    def sentence(self) -> str:
        count = len(self.seeds)
        seeds = f"{count} seeds of which {self.agree} agree" if count > 1 else "1 seed"
        return sentence_of(self, seeds)


def over_seeds(a: Sequence[Result], b: Sequence[Result], metric: str) -> SeedComparison:
    """Return whether method a is better than method b over calibration seeds.

    Results pair by seed; one full-precision result pairs with every seed. The Student interval is over seeds, for the
    same evaluation noise; with one seed there is none and no verdict. ``ValueError``, one line, if either side holds
    several methods or bit widths, a seed twice, or none that the other has.
    """
    first, second = _by_seed(a, "the first"), _by_seed(b, "the second")
    seeds = tuple(sorted(_shared_seeds(first, second)))
    if not seeds:
        raise ValueError(
            f"{metric}: no calibration seed in common: {_listed(first)} against {_listed(second)}; run the same seeds"
        )
    comparisons = tuple(compare(_at(first, seed), _at(second, seed), metric) for seed in seeds)
    known = [comparison.difference for comparison in comparisons if comparison.difference is not None]
    mean = float(np.mean(known)) if len(known) == len(comparisons) else None
    verdict, interval, reason = _over_seeds(comparisons, mean, _direction(a[0], b[0], metric))
    if mean is None:
        agreeing = max(Counter(comparison.verdict for comparison in comparisons).values())
    else:
        agreeing = sum(difference * mean > 0 for difference in known)
    names = (comparisons[0].a, comparisons[0].b)
    return SeedComparison(metric, *names, seeds, comparisons, mean, interval, agreeing, verdict, reason)


def _over_seeds(
    comparisons: Sequence[Comparison], mean: float | None, higher_is_better: bool | None
) -> tuple[Verdict, Interval | None, str | None]:
    if len(comparisons) == 1:
        return "cannot tell", None, "a claim of order needs several calibration seeds"
    if mean is None:
        first, exact = comparisons[0].verdict, "some are identical to the reference, so there is no mean"
        return (first if all(comparison.verdict == first for comparison in comparisons) else "cannot tell"), None, exact
    differences = [comparison.difference for comparison in comparisons]
    if len(set(differences)) == 1:
        same = "identical" if mean == 0 else "the calibration seed changes neither: compare them over samples"
        return "cannot tell", None, same
    interval = student_interval(np.array(differences, dtype=np.float64))
    if higher_is_better is None:
        return "cannot tell", interval, "which direction is better is not recorded"
    floors = [comparison for comparison in comparisons if comparison.reason and "numerical floor" in comparison.reason]
    if len(floors) == len(comparisons):
        return "cannot tell", interval, floors[0].reason
    return verdict_of(interval, higher_is_better), interval, None


def _direction(a: Result, b: Result, metric: str) -> bool | None:
    directions = (measured(result, metric).higher_is_better for result in (a, b))
    return next((higher for higher in directions if higher is not None), None)


def _by_seed(results: Sequence[Result], which: str) -> dict[int | None, Result]:
    """Return the results by calibration seed; ``None`` stands for every seed."""
    names = sorted({name_of(result) for result in results})
    if len(names) != 1:
        raise ValueError(
            f"over_seeds: {which} results must be of one method and bits, got {', '.join(names) or 'none'}"
        )
    by_seed: dict[int | None, Result] = {}
    for result in results:
        seed = None if result.full_precision else result.seed
        if by_seed.get(seed, result) != result:
            raise ValueError(f"over_seeds: {names[0]} has calibration seed {seed} twice: choose one")
        by_seed[seed] = result
    return by_seed


def _shared_seeds(first: Mapping[int | None, Result], second: Mapping[int | None, Result]) -> set[int]:
    if None in first and None in second:
        return {0}
    of_all_seeds = None in first or None in second
    shared = first.keys() | second.keys() if of_all_seeds else first.keys() & second.keys()
    return {seed for seed in shared if seed is not None}


def _at(results: Mapping[int | None, Result], seed: int) -> Result:
    return results[seed] if seed in results else results[None]


def _listed(results: Mapping[int | None, Result]) -> str:
    return ", ".join(str(seed) for seed in sorted(seed for seed in results if seed is not None))
