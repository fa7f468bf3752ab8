"""Figures of mixed precision and low-rank tuning, as plotly's JSON: rows by bits, errors, and an ablation."""

from collections.abc import Sequence
from typing import Any

from dmqbench.results.page.axes import Figure, calls_axis, log_axis, plain, plain_axis, positive, rounded, short_name
from dmqbench.results.result import printable
from dmqbench.results.studies.colours import BIT_COLOURS, GREY
from dmqbench.results.studies.dose_response import halves
from dmqbench.results.studies.findings import (
    TENTH_NAMES,
    Found,
    allocation_note,
    candidates_title,
    error_ratios,
    tuning_note,
    width_name,
    width_share,
    widths_of,
    window_centres,
)
from dmqbench.results.studies.precision_ablation import UNITS, Ablation, Bar

_AFTER = "#4477aa"
_VERDICTS = {"better": "#228833", "worse": "#ee6677", "cannot tell": GREY}


def row_bits(allocation: Found) -> Figure:
    """Plot for each layer which share of its rows has which bits, as stacked bars in the network's order."""
    layers = allocation["layers"]
    names = [plain(layer["name"]) for layer in layers]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": width_name(bits),
            "y": names,
            "x": [rounded(width_share(layer, bits)) for layer in layers],
            "marker": {"color": BIT_COLOURS[bits - 1]},
            "hovertemplate": f"%{{y}}<br>{width_name(bits)}: %{{x:.1%}} of the rows<extra></extra>",
        }
        for bits in widths_of(allocation)
    ]
    layout = {
        "barmode": "stack",
        "xaxis": plain_axis("share of the rows") | {"range": [0, 1], "tickformat": ".0%"},
        "yaxis": _layers_axis(names),
        "height": max(300, 130 + 18 * len(names)),
    }
    return {"data": traces, "layout": layout, "note": printable(allocation_note(allocation))}


def candidate_errors(allocation: Found) -> Figure | None:
    """Plot the output error of every layer for every share of promoted rows, over that of equal bits.

    None where nothing but equal bits was considered.
    """
    layers = allocation["layers"]
    tried = max(len(layer["errors"]) for layer in layers)
    if tried < 2:
        return None
    names, places = [plain(layer["name"]) for layer in layers], TENTH_NAMES[:tried]
    ratios = [[rounded(ratio) for ratio in error_ratios(layer)] for layer in layers]
    reach = max((abs(ratio - 1) for row in ratios for ratio in row if ratio is not None), default=1.0)
    reach = min(0.5, reach) or 1.0
    missing = [None] * tried
    traces = [
        {
            "type": "heatmap",
            "x": list(places),
            "y": names,
            "z": [[*row, *missing][:tried] for row in ratios],
            "text": [[*map("{:.3g}".format, layer["errors"]), *[""] * tried][:tried] for layer in layers],
            "colorscale": "RdBu",
            "zmin": 1 - reach,
            "zmax": 1 + reach,
            "colorbar": {"title": {"text": "over equal bits", "side": "right"}, "thickness": 12, "outlinewidth": 0},
            "hovertemplate": "%{y}<br>%{x} promoted: error %{text}, %{z:.3f} of that of equal bits<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "chosen",
            "x": [places[layer["tenths"]] for layer in layers],
            "y": names,
            "marker": {"color": "#222226", "size": 5},
            "hoverinfo": "skip",
        },
    ]
    layout = {
        "xaxis": plain_axis(candidates_title(allocation)) | {"type": "category"},
        "yaxis": _layers_axis(names),
        "height": max(300, 90 + 13 * len(names)),
    }
    return {"data": traces, "layout": layout, "note": "dots: what was chosen"}


def _layers_axis(names: list[str]) -> dict[str, Any]:
    return {
        "type": "category",
        "autorange": "reversed",
        "tickmode": "array",
        "tickvals": names,
        "ticktext": [short_name(name) for name in names],
        "showgrid": False,
    }


def tuning_errors(tuning: Found) -> Figure:
    """Plot the held-out error of predictions per call before and after tuning, and below it what was distilled."""
    calls = list(range(len(tuning["noise_error_before"])))
    parts: list[tuple[str, Sequence[float], str]] = [("noise", calls, "y")]
    if tuning["distilled_error_before"]:
        parts.append(("distilled", window_centres(tuning), "y2"))
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": when,
            "legendgroup": when,
            "showlegend": axis == "y",
            "x": places,
            "y": [positive(value) for value in tuning[f"{part}_error_{when}"]],
            "yaxis": axis,
            "line": {"color": colour, "width": 2},
            "marker": {"size": 5},
            "hovertemplate": f"{when}<br>call %{{x}}: %{{y:.3g}}<extra></extra>",
        }
        for part, places, axis in parts
        for when, colour in (("before", GREY), ("after", _AFTER))
    ]
    above, below = (
        [value for trace in traces if trace["yaxis"] == axis for value in trace["y"]] for axis in ("y", "y2")
    )
    layout: dict[str, Any] = {"xaxis": calls_axis(len(calls)), "yaxis": log_axis("prediction, MSE", above)}
    if below:
        title = plain(str(tuning["settings"]["distillation"]))
        layout["xaxis"] |= {"anchor": "y2"}
        layout["yaxis"] |= {"domain": [0.54, 1]}
        layout |= {"yaxis2": log_axis(title, below) | {"domain": [0, 0.46]}, "height": 420}
    return {"data": traces, "layout": layout, "note": printable(tuning_note(tuning))}


def ablation(found: Ablation) -> Figure:
    """Plot what every variant gains over the baseline, a column per metric: paired differences with their intervals."""
    names = [plain(bar.name) for bar in found.bars]
    width = 1 / len(found.metrics)
    traces, layout = [], {"yaxis": _layers_axis(names) | {"showgrid": True}, "showlegend": False}
    for number, metric in enumerate(found.metrics):
        axis = "" if number == 0 else str(number + 1)
        low, high = number * width, (number + 1) * width - (0.04 if number + 1 < len(found.metrics) else 0)
        traces.append(_bars(found.bars, names, metric) | {"xaxis": f"x{axis}"})
        layout[f"xaxis{axis}"] = plain_axis(f"{metric}, {UNITS[metric]}") | {"domain": [low, high], "zeroline": True}
    layout["height"] = 160 + 34 * len(names)
    return {"data": traces, "layout": layout, "note": printable(" · ".join(found.sentences))}


def _bars(bars: tuple[Bar, ...], names: list[str], metric: str) -> dict[str, Any]:
    compared = [bar.over_baseline[metric] for bar in bars]
    return {
        "type": "bar",
        "orientation": "h",
        "name": metric,
        "y": names,
        "x": [rounded(one.difference) for one in compared],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [rounded(halves(one)[1]) for one in compared],
            "arrayminus": [rounded(halves(one)[0]) for one in compared],
            "thickness": 1.2,
            "width": 3,
        },
        "marker": {"color": [_VERDICTS[one.verdict] for one in compared]},
        "text": [plain(one.sentence) for one in compared],
        "textposition": "none",
        "customdata": [bar.row.folder.name for bar in bars],
        "hovertemplate": "%{text}<extra></extra>",
    }
