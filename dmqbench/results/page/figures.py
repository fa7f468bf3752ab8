"""Figures of a whole table: what quality costs, how errors add up, and what cheap proxies say of it."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from dmqbench.eval.measurement import Measurement
from dmqbench.results.cells import bits_text
from dmqbench.results.correlations import ProxyCorrelation
from dmqbench.results.figure import Axis, Figure, Line, Panel, calls_axis
from dmqbench.results.result import Result
from dmqbench.results.studies import CHOSEN_ON
from dmqbench.results.studies.colours import GREY, PALETTE
from dmqbench.results.tables import Table

MAX_LINES = 24
"""Trajectories drawn over each other in one plot."""

_UNITS = {
    **{"psnr": "PSNR (dB)", "psnr_truth": "PSNR to the truth (dB)", "ssim": "SSIM"},
    **{"mse": "MSE of the final state", "lpips": "LPIPS"},
}
_ARROWS = {None: "", True: " · higher is better", False: " · lower is better"}


class Cost(NamedTuple):
    """What a plot may have along x: ``of`` a result is None where it is not known."""

    key: str
    title: str
    unit: str
    log: bool
    of: Callable[[Result], float | None]


COSTS = (
    Cost("size", "size (MiB)", "MiB", False, lambda row: row.size_mib),
    Cost("bops", "BOPs per image and call (10⁹)", "·10⁹ BOPs", True, lambda row: row.cost.bops and row.cost.bops / 1e9),
)

Point = tuple[Result, float, Measurement, float]
"""A result, its cost, what was measured, and its value."""


def colours(tables: Iterable[Table]) -> dict[str, str]:
    """Give each method one colour on the whole page; full precision is grey."""
    labels = dict.fromkeys(row.label for table in tables for row in table.rows if not row.full_precision)
    return {label: PALETTE[number % len(PALETTE)] for number, label in enumerate(labels)}


def frontier(points: Iterable[tuple[float, float]], higher_is_better: bool) -> list[tuple[float, float]]:
    """Return the points (cost, quality) that no other point beats in one and equals or beats in the other, by cost."""
    sign = -1 if higher_is_better else 1
    best: list[tuple[float, float]] = []
    for x, y in sorted(set(points), key=lambda point: (point[0], sign * point[1])):
        if not best or sign * y < sign * best[-1][1]:
            best.append((x, y))
    return best


def trade_off(table: Table, metric: str, cost: Cost, palette: Mapping[str, str]) -> Figure:
    """Plot ``metric`` against a cost: points per method with intervals, and the line of the best at each cost."""
    measured = [(row, row.measurements[metric]) for row in table.rows if metric in row.measurements]
    known = [
        (row, spent, measurement, measurement.value)
        for row, measurement in measured
        if measurement.value is not None and (spent := cost.of(row)) is not None
    ]
    log = _is_error([value for *_, value in known])
    points = [point for point in known if not log or point[-1] > 0]
    named = _named_points(points)
    labels = dict.fromkeys(row.label for row, *_ in points)
    lines = [
        _method(label, [point for point in points if point[0].label == label], cost, palette, named) for label in labels
    ]
    higher = next((measurement.higher_is_better for _, _, measurement, _ in known), None)
    if higher is not None and len(points) > 1:
        best = frontier([(spent, value) for _, spent, _, value in points], higher)
        places, values = zip(*best, strict=True)
        lines.insert(0, Line("frontier", places, values, GREY, points=False, dash=2, stepped="post"))
    left_out = len(measured) - len(points)
    notes = (f"{left_out} without a point: identical to full precision, or of unknown cost",) if left_out else ()
    y = Axis(f"{_UNITS.get(metric, metric)}{_ARROWS[higher]}", log=log)
    return Figure("Quality against cost", (Panel(tuple(lines), Axis(cost.title, log=cost.log), y),), notes)


def _method(label: str, points: Sequence[Point], cost: Cost, palette: Mapping[str, str], named: Iterable[str]) -> Line:
    """Its symbol, as colours alone do not tell methods apart for everybody, nor on paper."""
    return Line(
        label,
        [spent for _, spent, _, _ in points],
        [value for *_, value in points],
        palette.get(label, GREY),
        joined=False,
        symbol=list(palette).index(label) if label in palette else len(palette),
        labels=[bits_text(row) if _job(row) in named else "" for row, *_ in points],
        ends=[measurement.ci95 for _, _, measurement, _ in points],
        texts=[f"{bits_text(row)}, {spent:.4g} {cost.unit}" for row, spent, *_ in points],
        precision=".4g",
        jobs=[_job(row) for row, *_ in points],
    )


def _named_points(points: Sequence[Point]) -> set[str]:
    """Return the jobs whose points carry their bits: the topmost of each, for more would cover each other."""
    top: dict[str, tuple[float, str]] = {}
    for row, *_, value in points:
        top[row.bits] = max(top.get(row.bits, (-math.inf, "")), (value, _job(row)))
    return {job for _, job in top.values()}


def _is_error(values: Iterable[float]) -> bool:
    """Whether values span so many orders, as errors and distances do, that a linear axis would hide most."""
    positive = [value for value in values if value > 0]
    return len(positive) > 1 and max(positive) > 30 * min(positive)


def trajectories(
    jobs: Sequence[tuple[Result, Mapping[str, Any]]],
    palette: Mapping[str, str],
    boundaries: Mapping[str, Sequence[int]],
) -> Figure:
    """Plot how far each job's trajectory has left that of full precision, before each call and at the end.

    Colours are methods, line styles are bits. ``boundaries`` are, by job, the states between groups of calls over which
    it was calibrated; they are marked by dots.
    """
    drawn = jobs[:MAX_LINES]
    dashes = {bits: number for number, bits in enumerate(dict.fromkeys(row.bits for row, _ in drawn))}
    lines = []
    for row, diagnosis in drawn:
        errors, colour = diagnosis["steps"]["accumulated"], palette.get(row.label, GREY)
        seed = f" seed {row.seed}" if row.seed else ""
        texts = [f"{row.bits}{seed}, before call {call}" for call in range(len(errors))]
        line = Line(row.label, range(len(errors)), errors, colour, points=False, dash=dashes[row.bits], texts=texts)
        lines.append(replace(line, jobs=[_job(row)] * len(errors)))
        states = boundaries.get(_job(row), ())
        own = {"x": states, "y": [errors[state] for state in states], "texts": [texts[state] for state in states]}
        dots = replace(line, **own, joined=False, points=True, jobs=[_job(row)] * len(states))
        lines += [dots] if states else []
    # lines without points, whose entries in the legend say which style means which bits
    lines += [Line(bits, [None], [None], GREY, points=False, dash=dash) for bits, dash in dashes.items()]
    notes = [f"the first {MAX_LINES} of {len(jobs)} jobs"] if len(jobs) > MAX_LINES else []
    notes += [CHOSEN_ON] if any(_job(row) in boundaries for row, _ in drawn) else []
    panel = Panel(tuple(lines), calls_axis(), Axis("mean squared difference", log=True))
    return Figure("How errors add up over the trajectory", (panel,), tuple(notes))


def proxy_scatter(correlation: ProxyCorrelation, palette: Mapping[str, str]) -> Figure:
    """Plot the metric of every job against its proxy."""
    labels = dict.fromkeys(point.method for point in correlation.points)
    groups = {label: [point for point in correlation.points if point.method == label] for label in labels}
    lines = tuple(
        Line(
            label,
            [point.proxy for point in points],
            [point.metric for point in points],
            palette.get(label, GREY),
            joined=False,
            texts=[f"{point.bits}, {point.proxy:.3f}" for point in points],
            precision=".4g",
        )
        for label, points in groups.items()
    )
    x = Axis(f"log₁₀ {correlation.proxy.replace('_', ' ')}")
    panel = Panel(lines, x, Axis(_UNITS.get(correlation.metric, correlation.metric)))
    return Figure("Do cheap proxies predict PSNR?", (panel,), (correlation.sentence,))


def _job(row: Result) -> str:
    return row.folder.name
