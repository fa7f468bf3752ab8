"""Which of two results is better, or that it cannot be told with this n."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dmqbench.config.names import UNKNOWN
from dmqbench.config.plugins import is_paired
from dmqbench.eval.measurement import Measurement
from dmqbench.eval.protocol import agree, differing_entries, unknown_entries
from dmqbench.eval.statistics import (
    Difference,
    Interval,
    Replicated,
    Verdict,
    paired_difference,
    replicate_difference,
)
from dmqbench.results.result import Result

if TYPE_CHECKING:
    from dmqbench.results.over_seeds import SeedComparison

UNITS = {"psnr": "dB", "psnr_truth": "dB"}


@dataclass(frozen=True)
class Comparison:
    """What the ``difference`` a − b and its 95 % interval over ``n`` samples say of a; ``reason`` says why not more.

    The interval is over samples, for these two calibrations; whether another calibration would give the same order is
    what ``over_seeds`` asks.
    """

    metric: str
    a: str
    b: str
    n: int
    difference: float | None
    ci95: Interval | None
    verdict: Verdict
    reason: str | None = None

    @property
    def sentence(self) -> str:
        samples = f"{self.n} {'pairs' if is_paired(self.metric) else 'samples'}"
        return sentence_of(self, samples)


def compare(a: Result, b: Result, metric: str) -> Comparison:
    """Return whether a is better than b in ``metric``.

    Paired metrics are compared by their values per image, statistics of whole sets by their jackknife replicates:
    both on the same evaluation seeds. ``ValueError``, one line, if either lacks the metric or the protocols differ.
    An entry that is unknown of foreign samples does not count as a difference; the reason names it.
    """
    first, second = measured(a, metric), measured(b, metric)
    unknown = _unknown_entries(a, b, metric)
    difference, reason = _judged(a, b, metric)
    if unknown:
        reason = "; ".join(filter(None, [reason, f"not all of the protocol is known ({', '.join(unknown)})"]))
    mean, ends, verdict = difference.mean, difference.ci95, difference.verdict
    return Comparison(metric, *_labels(a, b), min(first.n, second.n), mean, ends, verdict, reason)


def _judged(a: Result, b: Result, metric: str) -> tuple[Difference, str | None]:
    first, second = measured(a, metric), measured(b, metric)
    if first.exact and second.exact:
        return Difference(None, None, 0, 0, "cannot tell"), "both are identical to the reference"
    if first.exact:
        return Difference(None, None, 0, 0, "better"), "the first is identical to the reference"
    if second.exact:
        return Difference(None, None, 0, 0, "worse"), "the second is identical to the reference"
    difference, reason = _difference(a, b, metric)
    if reason is None and first.higher_is_better is None:
        reason = "which direction is better is not recorded"
    if reason is None and is_paired(metric) and _at_floor(first) and _at_floor(second):
        reason = "both at the numerical floor"
    if reason is not None:
        return replace(difference, verdict="cannot tell"), reason
    if difference.mean == 0 and difference.ci95 == (0, 0):
        return difference, "identical"
    if difference.left_out:
        return _with_identical_pairs(difference, a.per_image[metric], b.per_image[metric])
    return difference, None if difference.ci95 else "an interval needs two pairs"


def _difference(a: Result, b: Result, metric: str) -> tuple[Difference, str | None]:
    """Return the difference, with its interval where the results hold what gives one, else with the reason."""
    first, second = measured(a, metric), measured(b, metric)
    assert first.value is not None and second.value is not None  # only exact results have none
    higher = bool(first.higher_is_better)
    bare = Difference(first.value - second.value, None, first.n, 0, "cannot tell")
    values = [result.per_image.get(metric, []) for result in (a, b)]
    if all(len(own) == measurement.n for own, measurement in zip(values, (first, second), strict=True)):
        return paired_difference(*values, higher_is_better=higher), None
    sets = [_replicated(measurement) for measurement in (first, second)]
    if sets[0] is None or sets[1] is None:
        kept = "values per image" if is_paired(metric) else "values without each group of samples"
        return bare, f"the {kept} are not kept"
    if (sets[0].n, len(sets[0].replicates)) != (sets[1].n, len(sets[1].replicates)):
        return bare, "the groups of samples differ"
    return replicate_difference(sets[0], sets[1], higher_is_better=higher), None


def _replicated(measurement: Measurement) -> Replicated | None:
    extra = measurement.extra
    if "replicates" not in extra or measurement.value is None:
        return None
    return Replicated(measurement.value, measurement.n, tuple(extra["replicates"]), tuple(extra.get("pairs", ())))


def _with_identical_pairs(
    difference: Difference, first: Sequence[float | None], second: Sequence[float | None]
) -> tuple[Difference, str | None]:
    """Pairs in which one side equals the reference have no number, yet they speak for that side."""
    alone = [(x is None) - (y is None) for x, y in zip(first, second, strict=True)]
    for_first, for_second = alone.count(1), alone.count(-1)
    left_out = f"{difference.left_out} pairs left out: identical to the reference in one or both"
    favoured = {"better": for_first - for_second, "worse": for_second - for_first, "cannot tell": 0}[difference.verdict]
    if favoured < 0:
        return replace(difference, verdict="cannot tell"), f"{left_out}, which speak against the others"
    return difference, left_out


def _at_floor(measurement: Measurement) -> bool:
    """Whether the value is no worse than the floor, or within the floor's interval."""
    floor = measurement.floor
    if floor is None or floor.kind != "numerical" or floor.value is None or measurement.value is None:
        return False
    ends = floor.ci95 or (floor.value,)
    return measurement.value >= min(ends) if measurement.higher_is_better else measurement.value <= max(ends)


def measured(result: Result, metric: str) -> Measurement:
    if metric not in result.measurements:
        raise ValueError(f"{name_of(result)} has no {metric}; it has {', '.join(result.measurements) or 'none'}")
    return result.measurements[metric]


def _unknown_entries(a: Result, b: Result, metric: str) -> tuple[str, ...]:
    """Return the entries that not both protocols know; ``ValueError`` names those in which the protocols differ.

    Nothing is quantized in full precision, so it has neither scope nor engine.
    """
    if a.model != b.model:
        raise ValueError(f"{metric}: results of different models do not compare (model: {a.model} | {b.model})")
    first, second = (measured(result, metric).protocol for result in (a, b))
    absent = ("scope", "engine") if a.full_precision or b.full_precision else ()
    unknown = tuple(dict.fromkeys((*unknown_entries(first), *unknown_entries(second))))
    if agree(first, second, absent):
        return unknown
    differing = differing_entries((first, second)).items()
    entries = "; ".join(f"{key}: {' | '.join(seen)}" for key, seen in differing if key not in (*absent, *unknown))
    part = entries or "in a part that only the hash shows"
    raise ValueError(f"{metric}: values of different protocols do not compare ({part})")


def name_of(result: Result) -> str:
    return result.label if result.bits == UNKNOWN else f"{result.label} {result.bits}"


def _labels(a: Result, b: Result) -> tuple[str, str]:
    """Name both by label and bits, and by what else tells them apart."""
    names = [name_of(result) for result in (a, b)]
    for entry in ("ranges", "seed"):
        values = [getattr(result, entry) for result in (a, b)]
        if names[0] == names[1] and values[0] != values[1]:
            names = [f"{name} {entry} {value}" for name, value in zip(names, values, strict=True)]
    return names[0], names[1]


def sentence_of(comparison: "Comparison | SeedComparison", over: str) -> str:
    if comparison.verdict == "cannot tell":
        claim = f"cannot tell {comparison.a} from {comparison.b} in {comparison.metric} with {over}"
    else:
        claim = f"{comparison.a} {comparison.verdict} than {comparison.b} in {comparison.metric}"
    value, unit = comparison.difference, UNITS.get(comparison.metric)
    number = None if value is None else _number(value, comparison.ci95, unit)
    told = over if comparison.verdict != "cannot tell" else None
    return f"{claim}: {', '.join(part for part in (number, told, comparison.reason) if part)}"


def _number(value: float, interval: Interval | None, unit: str | None) -> str:
    """Show as many decimals as the interval has meaning, and enough to tell its ends from zero."""
    ends = interval or Interval(value, value)
    scales = [abs(number) for number in ((ends.high - ends.low) / 2, *ends, value) if number]
    decimals = max(0, -math.floor(math.log10(min(scales)))) if scales else 0
    texts = [f"{number:.{min(decimals, 12)}f}" for number in (value, *ends)]
    sign = "+" if value > 0 else ""
    bracket = f" [{texts[1]}, {texts[2]}]" if interval else ""
    return f"{sign}{texts[0]}{f' {unit}' if unit else ''}{bracket}"
