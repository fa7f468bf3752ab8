"""Pictures of an anatomy: PNG files drawn from ``anatomy.json`` alone, without a display."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dmqbench.results.diagnosis_figures import layer_errors, step_errors
from dmqbench.results.figure import Axis, Figure, HeatMap, Line, Panel, tail, times_axis
from dmqbench.results.plots.low_bits import (
    activation_codes,
    features,
    layer_title,
    layers_axis,
    row_histograms,
    title_of,
    weight_rows,
)
from dmqbench.results.plots.render import save
from dmqbench.results.studies.colours import INK, MAIN, SECOND

Record = Mapping[str, Any]
"""What ``anatomy.json`` holds."""

_PANELS = 6


def draw(record: Record, folder: Path) -> list[Path]:
    """Draw every picture that ``record`` has data for into ``folder`` and return their paths."""
    figures = {name: picture(record) for name, picture in PICTURES.items()}
    return [save(figure, folder / f"{name}.png") for name, figure in figures.items() if figure is not None]


def activation_ranges(record: Record) -> Figure:
    """Heat map: largest magnitude of every layer's input at every call."""
    layers = record["layers"]
    heat = HeatMap([layer["steps"]["absmax"] for layer in layers], "largest |x| of the input", "|x|")
    calls = Axis("timestep of the call, from noise to image", names=tuple(f"{time:g}" for time in record["timesteps"]))
    title = f"{record['model']}: range of every layer's input over the steps, full precision"
    return Figure(title, (Panel((heat,), calls, layers_axis(layers)),))


def errors_of_layers(record: Record) -> Figure | None:
    """Heat map: relative output error of every quantized layer at the measured calls."""
    quantized = record["quantized"]
    if quantized is None or quantized["layers"] is None:
        return None
    figure = layer_errors(quantized["layers"], record["timesteps"])
    return replace(figure, title=f"{title_of(record)}: output error of each layer by itself")


def errors_of_steps(record: Record) -> Figure | None:
    """Curves: the error at each call by itself, and what has added up before it."""
    quantized = record["quantized"]
    if quantized is None:
        return None
    figure = step_errors(quantized["steps"], times_axis([*quantized["timesteps"], "image"]))
    title = f"{title_of(record)}: errors over the trajectory ({quantized['trajectories']} trajectories)"
    return replace(figure, title=title)


def sensitivity(record: Record) -> Figure:
    """Curves: what an equal error at each call does to the final state, and the PSNR of the image that it leaves."""
    errors = record["sensitivity"]
    x = times_axis(errors["timesteps"], "timestep of the call that was off, from noise to image")
    places = range(len(errors["timesteps"]))
    behind = {
        key: [Line("", places, values, MAIN, points=False, faint=True) for values in zip(*trajectories, strict=True)]
        for key, trajectories in errors["per_trajectory"].items()
    }
    final = Line("of the final state", places, errors["mse"], MAIN)
    after = Line("of the state right after the call", places, errors["injected"], SECOND, dash=1)
    image = Line("", places, errors["psnr"], MAIN)
    title = (
        f"{record['model']}, {record['sampler']}: an error of {100 * errors['relative_rms']:g} % of the prediction at "
        f"one call alone, full precision ({errors['trajectories']} trajectories)"
    )
    panels = (
        Panel((*behind["mse"], final, after), x, Axis("mean squared error", log=True), height=1.3),
        Panel((*behind["psnr"], image), x, Axis("PSNR of the final image (dB)"), height=1.3),
    )
    return Figure(title, panels)


def channel_absmax(record: Record) -> Figure | None:
    """Profiles: largest magnitude per input channel of the layers in which one channel stands out most."""
    panels = tuple(map(_profile, _most_extreme(record["layers"])))
    title = f"{record['model']}: layers in which one input channel stands out most, full precision"
    return Figure(title, panels, columns=min(2, len(panels))) if panels else None


def _profile(layer: Record) -> Panel:
    values = layer["channels"]["absmax"]
    most, median = max(values), float(np.median(values))
    ends = (-0.5, len(values) - 0.5)
    marks = [
        Line("", range(len(values)), values, MAIN, points=False, stepped="mid"),
        Line(f"median; largest is {most / median:.1f}×", ends, (median, median), SECOND, points=False),
    ]
    for cut in layer["boundaries"]:
        marks.append(Line("skip begins", (cut - 0.5, cut - 0.5), (0.0, most), INK, points=False, dash=2))
    y = Axis("largest |x|", ends=(0.0, 1.3 * most))
    return Panel(tuple(marks), Axis("input channel", ends=ends), y, layer_title(layer), height=1.1)


def kurtosis(record: Record) -> Figure:
    """Dots: kurtosis of every layer's input and weight; heavy tails waste codes."""
    layers = record["layers"]
    dots = tuple(
        Line(key, [layer[key]["kurtosis"] for layer in layers], range(len(layers)), colour, joined=False, symbol=symbol)
        for symbol, (key, colour) in enumerate((("input", MAIN), ("weight", SECOND)))
    )
    x = Axis("kurtosis (grey: 3, that of a Gaussian)", log=True, reference=3.0)
    title = f"{record['model']}: tails of inputs and weights, full precision"
    return Figure(title, (Panel(dots, x, layers_axis(layers)),))


def skip_halves(record: Record) -> Figure | None:
    """Curves: standard deviation and range of the parts of concatenated inputs over the steps."""
    skips = [layer for layer in record["layers"] if layer["skip"] is not None]
    skips.sort(key=lambda layer: -max(layer["skip"]["range_ratio"]))
    panels = tuple(_halves(layer, record["timesteps"]) for layer in skips[:_PANELS])
    counts = f"({len(panels)} of {len(skips)} layers)"
    title = f"{record['model']}: parts of concatenated inputs, full precision {counts}"
    return Figure(title, panels, columns=min(2, len(panels))) if panels else None


def _halves(layer: Record, times: Sequence[int]) -> Panel:
    marks = []
    for number, part in enumerate(layer["skip"]["parts"]):
        name, colour = ("main", MAIN) if number == 0 else ("skip", SECOND)
        mean, std = np.array(part["mean"], dtype=float), np.array(part["std"], dtype=float)
        spread = (mean + std).tolist(), (mean - std).tolist()
        for legend, both in ((f"{name}: mean ± std", spread), (f"{name}: range", (part["max"], part["min"]))):
            for values in both:
                line = Line(legend, range(len(std)), values, colour, points=False, faint=legend.endswith("range"))
                marks.append(line)
    title = f"{tail(layer['name'], 36)}  (ranges up to {max(layer['skip']['range_ratio']):.1f} : 1)"
    parts = layer["skip"]["parts"]
    low, high = min(min(part["min"]) for part in parts), max(max(part["max"]) for part in parts)
    span = high - low or 1.0
    y = Axis("x", ends=(low - 0.05 * span, high + 0.5 * span))  # with room for the legend
    return Panel(tuple(marks), times_axis(times, "timestep of the call"), y, title, height=1.2)


PICTURES: Mapping[str, Callable[[Record], Figure | None]] = {
    "activation_ranges": activation_ranges,
    "channel_absmax": channel_absmax,
    "kurtosis": kurtosis,
    "skip_halves": skip_halves,
    "sensitivity": sensitivity,
    "layer_errors": errors_of_layers,
    "step_errors": errors_of_steps,
    "weight_rows": weight_rows,
    "row_histograms": row_histograms,
    "activation_codes": activation_codes,
    "features": features,
}
"""File name → what draws it: a record to a figure, or None where there is nothing to draw."""


def _most_extreme(layers: Sequence[Record]) -> list[Record]:
    """The layers whose largest channel exceeds the median channel most; one with a median of 0 has no measure."""

    def ratio(layer: Record) -> float:
        values = np.array(layer["channels"]["absmax"], dtype=float)
        median = float(np.median(values))
        return float(values.max()) / median if median > 0 and len(values) > 1 else 0.0

    ranked = sorted(layers, key=ratio, reverse=True)
    return [layer for layer in ranked[:_PANELS] if ratio(layer) > 0]
