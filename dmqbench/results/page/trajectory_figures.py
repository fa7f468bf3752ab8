"""Figures of calibration over several denoising steps, as plotly's JSON: one job's groups, and ablations."""

from collections.abc import Sequence
from typing import Any

from dmqbench.results.page.axes import Figure, calls_axis, log_axis, plain, plain_axis, positive, rounded
from dmqbench.results.result import printable
from dmqbench.results.studies.colours import GREY, PALETTE
from dmqbench.results.studies.findings import Found, agreements, end_errors, groups_of
from dmqbench.results.studies.trajectory_ablation import FAR_APART, VARIED_TITLES, Ablation, Curve, Trial

_AFTER, _SECOND = "#4477aa", "#ee6677"
_SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up")
"""Of the ``MAX_CURVES`` curves of an ablation."""


def group_errors(trajectory: Found) -> Figure:
    """Plot each group's error at its end before and after calibration, as a line over the group's calls."""
    groups = groups_of(trajectory)
    traces = [
        _over_calls(groups, end_errors(trajectory, when), when, colour)
        for when, colour in (("before", GREY), ("after", _AFTER))
    ]
    values = [value for trace in traces for value in trace["y"]]
    layout = {"xaxis": calls_axis(groups[-1].stop), "yaxis": log_axis("end state, MSE", values)}
    settings = trajectory["settings"]
    note = (
        f"over {settings['horizon']} calls each, gradient {settings['gradient']}; on the validation trajectories, by "
        "which the best state was chosen"
    )
    return {"data": traces, "layout": layout, "note": printable(note)}


def gradient_agreement(trajectory: Found) -> Figure:
    """Plot, for each set of groups that are trained together, how its first gradient agrees with the exact one."""
    found = list(agreements(trajectory))
    groups = [calls for calls, _, _ in found]
    traces = [
        _over_calls(groups, [cosine for _, cosine, _ in found], "cosine", _AFTER),
        _over_calls(groups, [ratio for _, _, ratio in found], "ratio of norms", _SECOND) | {"yaxis": "y2"},
    ]
    layout = {
        "xaxis": calls_axis(groups[-1].stop) | {"anchor": "y2"},
        "yaxis": plain_axis("cosine") | {"domain": [0.54, 1]},
        "yaxis2": _ratio_axis("ratio of norms", traces[1]["y"]) | {"domain": [0, 0.46]},
        "height": 420,
    }
    note = f"gradient {trajectory['settings']['gradient']} against the exact one, before training, on one batch"
    return {"data": traces, "layout": layout, "note": printable(note)}


def _over_calls(groups: Sequence[range], values: Sequence[float | None], name: str, colour: str) -> dict[str, Any]:
    """A value per group, drawn from the state before its first call to that after its last."""
    ends = [(x, value) for group, value in zip(groups, values, strict=True)
            for x, value in ((group.start, value), (group.stop, value), (None, None))]  # fmt: skip
    hover = [f"calls {group.start} to {group.stop - 1}" for group in groups for _ in range(3)]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": [x for x, _ in ends],
        "y": [rounded(value) if name == "cosine" else positive(value or 0.0) for _, value in ends],
        "text": hover,
        "line": {"color": colour, "width": 2.4},
        "marker": {"size": 5},
        "hovertemplate": f"{name}<br>%{{text}}: %{{y:.3g}}<extra></extra>",
    }


def ablation(found: Ablation) -> Figure:
    """Plot against the horizon or gradient, from the top: PSNR, end-state error, cosine and norm of the gradient."""
    gains = "dB over un-tuned" if found.compared else "PSNR (dB)"
    domains = ([0.72, 1], [0.48, 0.68], [0.24, 0.44], [0, 0.2])
    axes = ("y", "y2", "y3", "y4")
    traces = [
        _trace(found, curve, number, axis)
        for number, curve in enumerate(found.curves)
        for axis in axes
    ]  # fmt: skip
    ratios, norms = ([value for trace in traces if trace["yaxis"] == axis for value in trace["y"]]
                     for axis in ("y2", "y4"))  # fmt: skip
    places = [plain(str(place)) for place in found.places]
    layout = {
        "xaxis": plain_axis(VARIED_TITLES[found.varied])
        | {"type": "category", "categoryorder": "array", "categoryarray": places, "anchor": "y4"},
        "yaxis": plain_axis(gains) | {"zeroline": found.compared, "zerolinewidth": 2},
        "yaxis2": _ratio_axis("error, after / before", ratios),
        "yaxis3": plain_axis("cosine"),
        "yaxis4": _ratio_axis("ratio of norms", norms),
        "height": 760,
    }
    for axis, domain in zip(axes, domains, strict=True):
        layout[f"yaxis{axis[1:]}"] |= {"domain": domain}
    return {"data": traces, "layout": layout, "note": printable(" · ".join(found.sentences))}


def _trace(found: Ablation, curve: Curve, number: int, axis: str) -> dict[str, Any]:
    values = [_values(found, trial)[axis] for trial in curve.trials]
    trace = {
        "type": "scatter",
        "mode": "lines+markers" if found.varied == "horizon" else "markers",
        "name": plain(curve.name or found.curves[0].trials[0].row.label),
        "legendgroup": str(number),
        "showlegend": axis == "y" and len(found.curves) > 1,
        "x": [plain(str(trial.place)) for trial in curve.trials],
        "y": [rounded(value) for value in values],
        "yaxis": axis,
        "text": [plain(_sentence(trial)) for trial in curve.trials],
        "customdata": [trial.row.folder.name for trial in curve.trials],
        "line": {"color": PALETTE[number], "width": 1.8},
        "marker": {"size": 8, "color": PALETTE[number], "symbol": _SYMBOLS[number]},
        "hovertemplate": "%{text}<br>%{y:.4g}<extra></extra>",
    }
    if axis == "y":
        ends = [found.reach(trial) for trial in curve.trials]
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [rounded(above) for _, above in ends],
            "arrayminus": [rounded(below) for below, _ in ends],
            "thickness": 1.2,
            "width": 3,
        }
    return trace


def _values(found: Ablation, trial: Trial) -> dict[str, float | None]:
    return {"y": found.gain(trial), "y2": trial.error, "y3": trial.cosine, "y4": trial.ratio}


def _ratio_axis(title: str, values: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in values if value]
    return log_axis(title, known) if known and max(known) > FAR_APART * min(known) else plain_axis(title)


def _sentence(trial: Trial) -> str:
    return trial.over_untuned.sentence if trial.over_untuned else f"{trial.row.label} {trial.row.bits}"
