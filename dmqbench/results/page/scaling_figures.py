"""Figures of what scaling does, as plotly's JSON: ranges, step weights, votes, the dose curve, votes by samples."""

from collections.abc import Sequence
from typing import Any

from dmqbench.results.compare import Comparison
from dmqbench.results.page.axes import Figure, calls_axis, log_axis, plain, plain_axis, positive, rounded, short_name
from dmqbench.results.result import printable
from dmqbench.results.studies.colours import GREY, PALETTE, power_colour
from dmqbench.results.studies.dose_response import BASE, RUNG_NAMES, RUNGS, DoseCurve, DosePoint, halves
from dmqbench.results.studies.findings import (
    SHOWN_LINES,
    Found,
    exponent_share,
    exponents_of,
    falling,
    least_agreed,
    power_name,
    rows_of_steps,
    selection_note,
)
from dmqbench.results.studies.vote_selection import SelectionCurves

_BEFORE, _AFTER, _SECOND = GREY, "#4477aa", "#ee6677"


def channel_ranges(channels: Found) -> Figure:
    """Plot the largest magnitude of each input channel before and after scaling: of the input above, the weight below.

    ``channels`` is one layer's of the findings. Channels are in falling order of the unscaled input.
    """
    order = falling(channels["input_before"])
    ranks = list(range(len(order)))
    hover = [f"channel {channel}, scale {channels['scale'][channel]:.3g}" for channel in order]
    lines = (
        ("before", "input_before", _BEFORE, "y", True),
        ("after", "input_after", _AFTER, "y", True),
        ("before", "weight_before", _BEFORE, "y2", False),
        ("after", "weight_after", _AFTER, "y2", False),
    )
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers" if len(order) <= 200 else "lines",
            "name": name,
            "legendgroup": name,
            "showlegend": in_legend,
            "x": ranks,
            "y": [positive(channels[key][channel]) for channel in order],
            "yaxis": axis,
            "text": hover,
            "line": {"color": colour, "width": 1.4},
            "marker": {"size": 4},
            "hovertemplate": f"%{{text}}<br>{key.replace('_', ' ')}: %{{y:.3g}}<extra></extra>",
        }
        for name, key, colour, axis, in_legend in lines
    ]
    values = [[value for trace in part for value in trace["y"]] for part in (traces[:2], traces[2:])]
    layout = {
        "xaxis": plain_axis("input channels, by falling range of the unscaled input") | {"anchor": "y2"},
        "yaxis": log_axis("input", values[0]) | {"domain": [0.54, 1]},
        "yaxis2": log_axis("weight", values[1]) | {"domain": [0, 0.46]},
        "height": 470,
    }
    return {"data": traces, "layout": layout, "note": ""}


def step_weights(weighting: Found) -> Figure:
    """Plot the weight λ of each network call at the end of learning, and the share of the running error that set it."""
    bins = weighting["bin_of_call"]
    lines = (("λ", "lambda", _AFTER, "y"), ("share of the error", "error", _SECOND, "y2"))
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": list(range(len(bins))),
            "y": [rounded(weighting[key][place]) for place in bins],
            "yaxis": axis,
            "line": {"color": colour, "width": 2, "shape": "hvh"},
            "marker": {"size": 5},
            "hovertemplate": f"{name}<br>call %{{x}}: %{{y:.3g}}<extra></extra>",
        }
        for name, key, colour, axis in lines
    ]
    layout = {
        "xaxis": calls_axis(len(bins)) | {"anchor": "y2"},
        "yaxis": plain_axis("λ") | {"domain": [0.54, 1], "rangemode": "tozero"},
        "yaxis2": plain_axis("share of error") | {"domain": [0, 0.46], "rangemode": "tozero"},
        "height": 420,
    }
    return {
        "data": traces,
        "layout": layout,
        "note": printable(f"weighting: {weighting['name']}; means over the layers"),
    }


def exponent_shares(powers: Found) -> Figure:
    """Plot for each layer which share of its (step, channel) pairs has which exponent, as stacked bars."""
    names = list(powers["layers"])
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": power_name(exponent),
            "y": [plain(name) for name in names],
            "x": [rounded(exponent_share(powers["layers"][name], exponent)) for name in names],
            "marker": {"color": power_colour(exponent)},
            "hovertemplate": f"%{{y}}<br>{power_name(exponent)}: %{{x:.1%}}<extra></extra>",
        }
        for exponent in exponents_of(powers)
    ]
    layout = {
        "barmode": "stack",
        "xaxis": plain_axis("share of steps and channels") | {"range": [0, 1], "tickformat": ".0%"},
        "yaxis": {
            "type": "category",
            "autorange": "reversed",
            "tickmode": "array",
            "tickvals": [plain(name) for name in names],
            "ticktext": [short_name(plain(name)) for name in names],
            "showgrid": False,
        },
        "height": max(300, 130 + 18 * len(names)),
    }
    return {"data": traces, "layout": layout, "note": printable(selection_note(powers))}


def agreement(powers: Found) -> Figure | None:
    """Plot the mean share of samples behind the winning exponent over the steps; None where steps share a vote."""
    if rows_of_steps(powers) < 2:
        return None
    shown = least_agreed(powers)[:SHOWN_LINES]
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": plain(short_name(name)),
            "x": list(range(rows_of_steps(powers))),
            "y": [rounded(share) for share in powers["layers"][name]["agreement"]],
            "line": {"color": PALETTE[number % len(PALETTE)], "width": 1.8},
            "text": [plain(name)] * rows_of_steps(powers),
            "hovertemplate": "%{text}<br>step %{x}: %{y:.1%}<extra></extra>",
        }
        for number, name in enumerate(shown)
    ]
    layout = {
        "xaxis": calls_axis(rows_of_steps(powers)),
        "yaxis": plain_axis("samples that agree") | {"tickformat": ".0%"},
    }
    count = len(powers["layers"])
    note = f"the {len(shown)} of {count} layers that agree least" if count > len(shown) else ""
    return {"data": traces, "layout": layout, "note": note}


def dose(curve: DoseCurve) -> Figure:
    """Plot the gain in PSNR against disparity: over Q-Diffusion above, over the rung before below."""
    traces: list[dict[str, Any]] = []
    for number, rung in enumerate(RUNGS[1:]):
        points = curve.of(rung)
        if points:
            traces += [
                _dose_trace(points, PALETTE[number], "y", [point.over_base for point in points]),
                _dose_trace(points, PALETTE[number], "y2", [point.over_previous for point in points]),
            ]
    models = {point.model: point.disparity for point in curve.points}
    names = [plain(f"{short_name(model)}: {value:.3g}") for model, value in models.items()]
    ticks = {"type": "log", "tickvals": [rounded(value) for value in models.values()], "ticktext": names}
    layout = {
        "xaxis": plain_axis("disparity of skip channels: largest over median") | ticks | {"anchor": "y2"},
        "yaxis": plain_axis(f"dB over {BASE}") | {"domain": [0.54, 1], "zeroline": True, "zerolinewidth": 2},
        "yaxis2": plain_axis("dB over the part before") | {"domain": [0, 0.46], "zeroline": True, "zerolinewidth": 2},
        "height": 560,
    }
    return {"data": traces, "layout": layout, "note": printable(" · ".join(curve.sentences))}


def _dose_trace(points: Sequence[DosePoint], colour: str, axis: str, found: Sequence[Comparison]) -> dict[str, Any]:
    rung = points[0].rung
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": RUNG_NAMES[rung],
        "legendgroup": rung,
        "showlegend": axis == "y",
        "x": [rounded(point.disparity) for point in points],
        "y": [rounded(comparison.difference) for comparison in found],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [rounded(halves(comparison)[1]) for comparison in found],
            "arrayminus": [rounded(halves(comparison)[0]) for comparison in found],
            "thickness": 1.2,
            "width": 3,
        },
        "yaxis": axis,
        "text": [
            plain(f"{point.model}, {comparison.sentence}") for point, comparison in zip(points, found, strict=True)
        ],
        "customdata": [point.row.folder.name for point in points],
        "line": {"color": colour, "width": 1.8},
        "marker": {"size": 8},
        "hovertemplate": "%{text}<extra></extra>",
    }


def samples_against_votes(curves: SelectionCurves) -> Figure:
    """Plot the held-out error that exponents leave against the samples they were chosen from, for each selection."""
    traces = []
    for number, (selection, errors) in enumerate(curves.error.items()):
        ids = curves.jobs[selection]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plain(selection),
                "x": list(errors),
                "y": [rounded(ratio.value) for ratio in errors.values()],
                "customdata": [ids[samples] for samples in errors],
                "line": {"color": PALETTE[number % len(PALETTE)], "width": 2},
                "marker": {"size": 8},
                "hovertemplate": "%{fullData.name}<br>%{x} samples: %{y:.4g}<extra></extra>",
            }
        )
    samples = sorted({place for errors in curves.error.values() for place in errors})
    ticks = {"type": "log", "tickvals": samples, "ticktext": [f"{place:g}" for place in samples]}
    layout = {
        "xaxis": plain_axis("calibration samples per vote") | ticks,
        "yaxis": plain_axis("held-out error, with over without"),
    }
    return {"data": traces, "layout": layout, "note": printable(" · ".join(curves.sentences))}
