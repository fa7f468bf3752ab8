"""Figures of the page as plotly's JSON, without colours of the page itself, which follow its light or dark theme.

Every trace's ``meta`` says what it is; ``customdata`` holds job ids, so that a click on a point opens its job.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from dmqbench.eval.measurement import Measurement
from dmqbench.results.cells import bits_text
from dmqbench.results.correlations import ProxyCorrelation
from dmqbench.results.page.axes import Json, calls_axis, log_axis, plain, plain_axis, positive, rounded
from dmqbench.results.page.render import SYMBOLS
from dmqbench.results.result import Result
from dmqbench.results.studies.colours import GREY, PALETTE
from dmqbench.results.studies.error_accumulation import CHOSEN_ON
from dmqbench.results.tables import Table

MAX_LINES = 24
"""Trajectories drawn over each other in one plot."""

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_UNITS = {
    **{"psnr": "PSNR (dB)", "psnr_truth": "PSNR to the truth (dB)", "ssim": "SSIM"},
    **{"mse": "MSE of the final state", "lpips": "LPIPS"},
}


class Axis(NamedTuple):
    """What a plot may have along x: ``value`` of a result is None where it is not known."""

    key: str
    title: str
    logarithmic: bool


AXES = (Axis("size", "size (MiB)", False), Axis("bops", "BOPs per image and call (10⁹)", True))


def cost(row: Result, axis: str) -> float | None:
    """Return the size in MiB, or 10⁹ bit operations of one network call on one image."""
    if axis == "size":
        return row.size_mib
    return None if row.cost.bops is None else row.cost.bops / 1e9


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


def trade_off(table: Table, metric: str, axis: Axis, palette: Mapping[str, str]) -> Json:
    """Plot ``metric`` against a cost: a trace per method with intervals, and the line of the best at each cost."""
    measured = [(row, row.measurements[metric]) for row in table.rows if metric in row.measurements]
    costly = [(row, found) for row, found in measured if cost(row, axis.key) is not None]
    known = [(row, found, found.value) for row, found in costly if found.value is not None]
    higher = next((found.higher_is_better for _, found, _ in known), None)
    logarithmic = _is_error(known)
    shown = [(row, found, value) for row, found, value in known if not logarithmic or value > 0]
    named = _named_points(shown)
    points = {label: [pair for pair in shown if pair[0].label == label] for label in (row.label for row, _, _ in shown)}
    traces = [_methods_trace(label, own, axis, palette, named) for label, own in points.items()]
    if higher is not None and len(shown) > 1:
        line = frontier([(cost(row, axis.key) or 0.0, value) for row, _, value in shown], higher)
        traces.insert(0, _frontier_trace(line))
    arrow = {None: "", True: " · higher is better", False: " · lower is better"}[higher]
    left_out = len(measured) - len(shown)
    y_title = f"{_UNITS.get(metric, plain(metric))}{arrow}"
    y_axis = log_axis(y_title, [value for _, _, value in shown]) if logarithmic else plain_axis(y_title)
    x_axis = plain_axis(axis.title)
    if axis.logarithmic:
        x_axis = log_axis(axis.title, [cost(row, axis.key) for row, _, _ in shown])
    note = f"{left_out} without a point: identical to full precision, or of unknown cost" if left_out else ""
    return {"data": traces, "layout": {"xaxis": x_axis, "yaxis": y_axis}, "note": note}


def trajectories(
    jobs: Sequence[tuple[Result, Mapping[str, Any]]],
    palette: Mapping[str, str],
    boundaries: Mapping[str, Sequence[int]],
) -> Json:
    """Plot how far each job's trajectory has left that of full precision, before each call and at the end.

    Colours are methods, line styles are bits. ``boundaries`` are, by job, the states between groups of calls over which
    it was calibrated; they are marked by dots.
    """
    shown = jobs[:MAX_LINES]
    dashes = {bits: _DASHES[n % len(_DASHES)] for n, bits in enumerate(dict.fromkeys(row.bits for row, _ in shown))}
    traces, named = [], set()
    for row, diagnosis in shown:
        accumulated, marked = diagnosis["steps"]["accumulated"], boundaries.get(_job(row), ())
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if marked else "lines",
                "marker": {"size": [7 * (place in marked) for place in range(len(accumulated))]},
                "name": plain(row.label),
                "legendgroup": plain(row.label),
                "showlegend": row.label not in named,
                "x": list(range(len(accumulated))),
                "y": [positive(value) for value in accumulated],
                "line": {"color": palette.get(row.label, GREY), "dash": dashes[row.bits], "width": 2},
                "customdata": [_job(row)] * len(accumulated),
                "text": [_name(row)] * len(accumulated),
                "hovertemplate": "%{text}<br>before call %{x}: %{y:.3g}<extra></extra>",
            }
        )
        named.add(row.label)
    values = [value for trace in traces for value in trace["y"]]
    notes = [f"the first {MAX_LINES} of {len(jobs)} jobs"] if len(jobs) > MAX_LINES else []
    notes += [CHOSEN_ON] if any(_job(row) in boundaries for row, _ in shown) else []
    calls = max(len(trace["x"]) for trace in traces)
    layout = {"xaxis": calls_axis(calls), "yaxis": log_axis("mean squared difference", values)}
    return {"data": [*traces, *_dash_legend(dashes)], "layout": layout, "note": "; ".join(notes)}


def _dash_legend(dashes: Mapping[str, str]) -> list[Json]:
    """Traces without points, whose entries in the legend say which line style means which bits."""
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": plain(bits),
            "x": [None],
            "y": [None],
            "line": {"color": GREY, "dash": dash, "width": 2},
        }
        for bits, dash in dashes.items()
    ]


def proxy_scatter(found: ProxyCorrelation, palette: Mapping[str, str]) -> Json:
    """Plot the metric of every job against its proxy."""
    by_label: dict[str, list[Any]] = {}
    for point in found.points:
        by_label.setdefault(point.label.rpartition(" ")[0], []).append(point)
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": plain(label),
            "x": [rounded(point.proxy) for point in points],
            "y": [rounded(point.metric) for point in points],
            "text": [plain(point.label) for point in points],
            "marker": {"size": 10, "color": palette.get(label, GREY)},
            "hovertemplate": "%{text}<br>%{x:.3f} → %{y:.4g}<extra></extra>",
        }
        for label, points in by_label.items()
    ]
    return {
        "data": traces,
        "layout": {
            "xaxis": plain_axis(f"log₁₀ {found.proxy.replace('_', ' ')}"),
            "yaxis": plain_axis(_UNITS.get(found.metric, plain(found.metric))),
        },
        "note": correlation_text(found),
    }


def correlation_text(found: ProxyCorrelation) -> str:
    """Say how far the proxy predicts the metric, with the interval and the number of jobs."""
    left_out = "".join(f"; {count} {reason}" for reason, count in found.left_out.items())
    if found.pearson is None or found.spearman is None or found.ci95 is None:
        return f"{found.n} jobs: too few, or too equal, to correlate{left_out}"
    interval = f"[{found.ci95.low:.2f}, {found.ci95.high:.2f}]"
    numbers = f"Pearson {found.pearson:.2f} {interval}, Spearman {found.spearman:.2f}"
    return f"{numbers} over {found.n} jobs: {found.verdict}{left_out}"


Point = tuple[Result, Measurement, float]
"""A result, what was measured, and its value."""


def _named_points(points: Sequence[Point]) -> set[str]:
    """Return the jobs whose points carry their bits: the topmost of each, for more would cover each other."""
    top: dict[str, tuple[float, str]] = {}
    for row, _, value in points:
        top[row.bits] = max(top.get(row.bits, (-math.inf, "")), (value, _job(row)))
    return {job for _, job in top.values()}


def _methods_trace(
    label: str, points: Sequence[Point], axis: Axis, palette: Mapping[str, str], named: set[str]
) -> Json:
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": plain(label),
        "x": [rounded(cost(row, axis.key)) for row, _, _ in points],
        "y": [rounded(value) for _, _, value in points],
        "error_y": {"type": "data", "array": [_half(found) for _, found, _ in points], "thickness": 1.2, "width": 3},
        "text": [plain(bits_text(row)) if _job(row) in named else "" for row, _, _ in points],
        "hovertext": [plain(bits_text(row)) for row, _, _ in points],
        "textposition": "middle right",
        "cliponaxis": False,
        "marker": {"size": 10, "color": palette.get(label, GREY), "symbol": _symbol(label, palette)},
        "customdata": [_job(row) for row, _, _ in points],
        "hovertemplate": "%{fullData.name} %{hovertext}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
    }


def _frontier_trace(line: Sequence[tuple[float, float]]) -> Json:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "frontier",
        "x": [rounded(x) for x, _ in line],
        "y": [rounded(y) for _, y in line],
        "line": {"color": GREY, "dash": "dot", "width": 1.5, "shape": "hv"},
        "hoverinfo": "skip",
        "meta": "frontier",
    }


def _is_error(known: Sequence[Point]) -> bool:
    """Whether values span so many orders, as errors and distances do, that a linear axis would hide most."""
    values = [value for _, _, value in known if value > 0]
    return len(values) > 1 and max(values) > 30 * min(values)


def _symbol(label: str, palette: Mapping[str, str]) -> str:
    """Colours alone do not tell methods apart for everybody, nor on paper."""
    return SYMBOLS[list(palette).index(label) % len(SYMBOLS)] if label in palette else "circle-open"


def _half(found: Measurement) -> float | None:
    return None if found.ci95 is None else rounded((found.ci95[1] - found.ci95[0]) / 2)


def _name(row: Result) -> str:
    return plain(f"{row.label} {row.bits}") + (f" seed {row.seed}" if row.seed else "")


def _job(row: Result) -> str:
    return row.folder.name
