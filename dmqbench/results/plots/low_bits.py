"""Pictures of an anatomy on what few bits meet: rows of weights with outliers, and features of few levels.

Each picture says below in numbers what it shows. Drawn from ``anatomy.json`` alone, without a display.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from dmqbench.results.figure import Axis, Figure, Line, Panel, segments, times_axis
from dmqbench.results.studies.colours import GREY, INK, MAIN, SECOND, THIRD

Record = Mapping[str, Any]
"""What ``anatomy.json`` holds."""

_OF_BITS = (MAIN, SECOND, THIRD)
"""Colours of the bits that rows are rounded to."""


def weight_rows(record: Record) -> Figure | None:
    """Bars: the spread of the kurtosis of every layer's rows; dots: share of the rounding error of the heaviest tenth.

    None where no row of any layer has a kurtosis.
    """
    layers = record["layers"]
    tails = [_known(layer["weight"]["rows"]["kurtosis"]) for layer in layers]
    if not any(map(len, tails)):
        return None
    shares = {bits: _shares(layers, bits, "by_kurtosis") for bits in record["rounded_to"]}
    dots = tuple(
        Line(f"{bits} bits", values, range(len(layers)), _OF_BITS[number % len(_OF_BITS)], joined=False)
        for number, (bits, values) in enumerate(shares.items())
    )
    names = layers_axis(layers)
    kurtosis = Axis("kurtosis of an output row (grey: 3, that of a Gaussian)", log=True, reference=3.0)
    title = "share of the layer's squared rounding error in the tenth of its rows of highest kurtosis (grey: a tenth)"
    share = Axis(title, share=True, from_zero=True, reference=0.1)
    notes = [_tails_sentence(tails), *(_shares_sentence(layers, bits) for bits in shares)]
    return Figure(
        f"{record['model']}: rows of the weights, full precision",
        (Panel(_spreads(tails), kurtosis, names), Panel(dots, share, names)),
        tuple(filter(None, notes)),
        columns=2,
    )


def layer_title(layer: Record) -> str:
    """A layer's name, and whose tokens it works on where that is not the image alone."""
    return " · ".join(filter(None, (layer["name"], layer.get("tokens"))))


def layers_axis(layers: Sequence[Record]) -> Axis:
    """An axis of layers by their titles."""
    return Axis("", names=tuple(map(layer_title, layers)))


def _spreads(tails: Sequence[Any]) -> tuple[Line, ...]:
    """Per layer the range of its rows' kurtosis, its quartiles and its median."""
    known = [(row, np.quantile(values, (0, 0.25, 0.5, 0.75, 1))) for row, values in enumerate(tails) if len(values)]
    rows = [row for row, _ in known]
    least, low, middle, high, most = np.array([quantiles for _, quantiles in known]).T
    ranges = segments(zip(least, most, strict=True), rows, "all rows", GREY)
    quartiles = segments(zip(low, high, strict=True), rows, "half of the rows", MAIN)
    lines = replace(ranges, points=False), replace(quartiles, points=False)
    return (*lines, Line("median row", middle, rows, INK, joined=False))


def _tails_sentence(tails: Sequence[Any]) -> str:
    rows = np.concatenate(tails)
    heavy = int((rows > 6).sum())
    return f"kurtosis of {len(rows)} rows: median {np.median(rows):.3g}, largest {rows.max():.3g}, above 6 in {heavy}"


def _shares_sentence(layers: Sequence[Record], bits: int) -> str:
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


def row_histograms(record: Record) -> Figure | None:
    """Steps: the weights of the row of highest kurtosis of all layers, and of the median row of the same layer."""
    histograms = record["row_histograms"]
    if histograms is None:
        return None
    middles = [(low + high) / 2 for low, high in pairwise(histograms["edges"])]
    lines = tuple(
        Line(
            f"row {row['row']}, {name} kurtosis ({row['kurtosis']:.3g})",
            middles,
            row["share"],
            colour,
            points=False,
            stepped="mid",
        )
        for row, name, colour in zip(histograms["rows"], ("highest", "median"), (SECOND, MAIN), strict=True)
    )
    x = Axis("weight, in standard deviations of its row from its mean")
    note = f"the largest weight of these rows lies {histograms['edges'][-1]:.3g} standard deviations from the mean"
    title = f"{record['model']}: weights of two output rows, full precision\n{histograms['layer']}"
    return Figure(title, (Panel(lines, x, Axis("share of the row's weights", log=True), height=1.8),), (note,))


def activation_codes(record: Record) -> Figure | None:
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
        Line(f"all {levels} codes", calls, [levels] * len(calls), GREY, points=False, dash=1),
    )
    layers = np.array(codes["effective"], dtype=float).mean(axis=1)
    poorest = int(layers.argmin())
    note = (
        f"effective codes of {levels}: {effective[0]:.3g} at the first call, {effective[-1]:.3g} at the last; "
        f"fewest in {codes['names'][poorest]} ({layers[poorest]:.3g})"
    )
    y = Axis("codes, mean over layers\nweighted by their activations", from_zero=True)
    panel = Panel(lines, times_axis(features["timesteps"]), y, height=1.6)
    return Figure(f"{title_of(record)}: codes of the activations", (panel,), (note,))


def features(record: Record) -> Figure | None:
    """Curves: the feature before the last projection against full precision, and how much it changes from call to call.

    None where nothing is quantized.
    """
    measured = record["features"]
    if measured is None:
        return None
    x, calls = times_axis(measured["timesteps"]), range(len(measured["timesteps"]))
    changes = (
        Line("full precision", calls, measured["change"], MAIN),
        Line("quantized", calls, measured["change_quantized"], SECOND),
    )
    panels = (
        Panel((Line("", calls, measured["relative_error"], SECOND),), x, Axis("relative error", from_zero=True)),
        Panel((Line("", calls, measured["cosine"], SECOND),), x, Axis("cosine with full precision")),
        Panel(changes, x, Axis("change from the call before, relative", log=True), height=1.3),
    )
    title = (
        f"{title_of(record)}: feature before the last projection\non states of full precision "
        f"({measured['trajectories']} trajectories)"
    )
    return Figure(title, panels, tuple(filter(None, [_changes_sentence(measured)])))


def _changes_sentence(measured: Record) -> str:
    exact, own = (np.array(measured[key][1:], dtype=float) for key in ("change", "change_quantized"))
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
