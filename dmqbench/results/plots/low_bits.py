"""Pictures of an anatomy on what few bits meet: rows of weights with outliers, and features of few levels.

Each picture says below in numbers what it shows. Drawn from ``anatomy.json`` alone, without a display.
Imports no torch.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dmqbench.results.figure import Axis, Figure, Line, Panel, times_axis
from dmqbench.results.plots.canvas import label_rows, new_figure, positive, tall
from dmqbench.results.plots.render import render
from dmqbench.results.studies.colours import GREY, MAIN, SECOND, THIRD

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

Record = Mapping[str, Any]
"""What ``anatomy.json`` holds."""

_OF_BITS = (MAIN, SECOND, THIRD)
"""Colours of the bits that rows are rounded to."""


def weight_rows(record: Record) -> "Canvas | None":
    """Bars: the spread of the kurtosis of every layer's rows; dots: share of the rounding error of the heaviest tenth.

    None where no row of any layer has a kurtosis.
    """
    from matplotlib.ticker import PercentFormatter

    layers = record["layers"]
    tails = [_known(layer["weight"]["rows"]["kurtosis"]) for layer in layers]
    if not any(map(len, tails)):
        return None
    figure = new_figure(11.0, tall(len(layers)) + 1.0)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    _spreads(left, tails)
    shares = {bits: _shares(layers, bits, "by_kurtosis") for bits in record["rounded_to"]}
    for number, (bits, values) in enumerate(shares.items()):
        colour = _OF_BITS[number % len(_OF_BITS)]
        right.plot(values, range(len(layers)), "o", color=colour, markersize=4, label=f"{bits} bits")
    right.axvline(0.1, color=GREY, linestyle="--", linewidth=1, label="a tenth")
    right.set_xlim(0, None)
    right.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    right.set_xlabel("share of the layer's squared rounding error\nin the tenth of its rows of highest kurtosis")
    right.legend(frameon=False, fontsize=8)
    label_rows(left, [layer["name"] for layer in layers])
    left.set_ylim(len(layers) - 0.4, -0.6)
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.25)
    figure.suptitle(f"{record['model']}: rows of the weights, full precision", fontsize=11)
    said = [_said_of_tails(tails), *(_said_of_shares(layers, bits) for bits in shares)]
    figure.supxlabel("\n".join(filter(None, said)), fontsize=8)
    return figure


def _spreads(axes: "Axes", tails: Sequence[Any]) -> None:
    """Per layer the range of its rows' kurtosis, its quartiles and its median."""
    from matplotlib.ticker import LogLocator, NullFormatter

    known = [(row, np.quantile(values, (0, 0.25, 0.5, 0.75, 1))) for row, values in enumerate(tails) if len(values)]
    rows = [row for row, _ in known]
    least, low, middle, high, most = np.array([found for _, found in known]).T
    axes.hlines(rows, least, most, color=GREY, linewidth=1, label="all rows")
    axes.hlines(rows, low, high, color=MAIN, linewidth=4, label="half of the rows")
    axes.plot(middle, rows, "|", color="black", markersize=6, label="median row")
    axes.axvline(3, color=GREY, linestyle="--", linewidth=1, label="a Gaussian (3)")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("kurtosis of an output row")
    axes.legend(frameon=False, fontsize=8)


def _said_of_tails(tails: Sequence[Any]) -> str:
    rows = np.concatenate(tails)
    heavy = int((rows > 6).sum())
    return f"kurtosis of {len(rows)} rows: median {np.median(rows):.3g}, largest {rows.max():.3g}, above 6 in {heavy}"


def _said_of_shares(layers: Sequence[Record], bits: int) -> str:
    """What the heaviest tenth carries in the median layer, and what the best choice of as many rows would."""
    chosen, best = (_known(_shares(layers, bits, key)) for key in ("by_kurtosis", "by_error"))
    if not len(chosen):
        return ""
    tenths = [layer["weight"]["rows"]["tenth"] / layer["weight_shape"][0] for layer in layers]
    equal = float(np.median([tenth for tenth in tenths if tenth]))
    return (
        f"{bits} bits, median of {len(chosen)} layers: the tenth of highest kurtosis carries "
        f"{np.median(chosen):.1%} of the error ({chosen.min():.1%} to {chosen.max():.1%}), that of largest error "
        f"{np.median(best):.1%}; "
        f"{equal:.1%} if all rows erred alike"
    )


def _shares(layers: Sequence[Record], bits: int, key: str) -> Any:
    """Of every layer, NaN where there is none."""
    return np.array([layer["weight"]["rows"]["rounding"][str(bits)][key] for layer in layers], dtype=float)


def _known(values: Sequence[Any]) -> Any:
    numbers = np.array(values, dtype=float)
    return numbers[np.isfinite(numbers)]


def row_histograms(record: Record) -> "Canvas | None":
    """Steps: the weights of the row of highest kurtosis of all layers, and of the median row of the same layer."""
    found = record["row_histograms"]
    if found is None:
        return None
    figure = new_figure(8.0, 4.8)
    axes = figure.subplots()
    for row, name, colour in zip(found["rows"], ("highest", "median"), (SECOND, MAIN), strict=True):
        label = f"row {row['row']}, {name} kurtosis ({row['kurtosis']:.3g})"
        axes.stairs(positive(row["share"]), found["edges"], color=colour, linewidth=1.6, label=label)
    axes.set_yscale("log")
    axes.set_ylabel("share of the row's weights")
    reach = found["edges"][-1]
    axes.set_xlabel(
        "weight, in standard deviations of its row from its mean\n\n"
        f"the largest weight of these rows lies {reach:.3g} standard deviations from the mean",
        fontsize=8,
    )
    axes.set_title(f"{record['model']}: weights of two output rows, full precision\n{found['layer']}", fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9)
    return figure


def activation_codes(record: Record) -> "Canvas | None":
    """Curves: how many activation codes layers use at every call, and how many equally frequent ones those are worth.

    None where no activation has codes.
    """
    features = record["features"]
    if features is None or features["codes"] is None:
        return None
    codes, levels = features["codes"], features["codes"]["levels"]
    calls, effective = range(len(features["timesteps"])), codes["mean_effective"]
    lines = (
        Line("codes that occur", calls, codes["mean_used"], MAIN),
        Line("effective codes, 2^entropy", calls, effective, SECOND),
        Line(f"all {levels} codes", calls, [levels] * len(calls), GREY, points=False, dashed=True),
    )
    layers = np.array(codes["effective"], dtype=float).mean(axis=1)
    poorest = int(layers.argmin())
    note = (
        f"effective codes of {levels}: {effective[0]:.3g} at the first call, {effective[-1]:.3g} at the last; "
        f"fewest in {codes['names'][poorest]} ({layers[poorest]:.3g})"
    )
    y = Axis("codes, mean over layers\nweighted by their activations", from_zero=True)
    panel = Panel(lines, times_axis(features["timesteps"]), y, height=1.6)
    return render(Figure(f"{title_of(record)}: codes of the activations", (panel,), (note,)))


def features(record: Record) -> "Canvas | None":
    """Curves: the feature before the last projection against full precision, and how much it changes from call to call.

    None where nothing is quantized.
    """
    found = record["features"]
    if found is None:
        return None
    x, calls = times_axis(found["timesteps"]), range(len(found["timesteps"]))
    changes = (
        Line("full precision", calls, found["change"], MAIN),
        Line("quantized", calls, found["change_quantized"], SECOND),
    )
    panels = (
        Panel((Line("", calls, found["relative_error"], SECOND),), x, Axis("relative error", from_zero=True)),
        Panel((Line("", calls, found["cosine"], SECOND),), x, Axis("cosine with full precision")),
        Panel(changes, x, Axis("change from the call before, relative", log=True), height=1.3),
    )
    title = (
        f"{title_of(record)}: feature before the last projection\non states of full precision "
        f"({found['trajectories']} trajectories)"
    )
    return render(Figure(title, panels, tuple(filter(None, [_said_of_changes(found)]))))


def _said_of_changes(found: Record) -> str:
    exact, own = (np.array(found[key][1:], dtype=float) for key in ("change", "change_quantized"))
    if not exact.size or not (exact > 0).all():
        return ""
    ratio = own / exact
    return (
        f"the quantized feature changes {np.median(ratio):.3g} times as much as that of full precision at the median "
        f"call\n({ratio.min():.3g} to {ratio.max():.3g}), and more than it at {int((ratio > 1).sum())} of "
        f"{len(ratio)} calls"
    )


def title_of(record: Record) -> str:
    return f"{record['model']}, {record['method']} {record['bits'].upper()}"
