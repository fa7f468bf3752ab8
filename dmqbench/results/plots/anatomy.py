"""Pictures of an anatomy: PNG files drawn from ``anatomy.json`` alone, without a display. Imports no torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dmqbench.results.figure import Axis, Figure, HeatMap, Line, Panel, times_axis
from dmqbench.results.plots.canvas import label_times, new_panels, save
from dmqbench.results.plots.low_bits import activation_codes, features, row_histograms, title_of, weight_rows
from dmqbench.results.plots.render import render
from dmqbench.results.studies.colours import MAIN, SECOND
from dmqbench.results.studies.error_accumulation import layer_errors, step_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

Record = Mapping[str, Any]
"""What ``anatomy.json`` holds."""

_PANELS = 6


def draw(record: Record, folder: Path) -> list[Path]:
    """Draw every picture that ``record`` has data for into ``folder`` and return their paths."""
    drawn = []
    for name, picture in PICTURES.items():
        figure = picture(record)
        if figure is not None:
            path = folder / f"{name}.png"
            drawn.append(save(figure, path))
    return drawn


def activation_ranges(record: Record) -> "Canvas":
    """Heat map: largest magnitude of every layer's input at every call."""
    layers = record["layers"]
    heat = HeatMap([layer["steps"]["absmax"] for layer in layers], "largest |x| of the input", "|x|")
    calls = Axis("timestep of the call, from noise to image", names=tuple(map(str, record["timesteps"])))
    title = f"{record['model']}: range of every layer's input over the steps, full precision"
    return render(Figure(title, (Panel((heat,), calls, Axis("", names=tuple(layer["name"] for layer in layers))),)))


def errors_of_layers(record: Record) -> "Canvas | None":
    """Heat map: relative output error of every quantized layer at the measured calls."""
    quantized = record["quantized"]
    if quantized is None or quantized["layers"] is None:
        return None
    figure = layer_errors(quantized["layers"], record["timesteps"])
    return render(replace(figure, title=f"{title_of(record)}: output error of each layer by itself"))


def errors_of_steps(record: Record) -> "Canvas | None":
    """Curves: the error at each call by itself, and what has added up before it."""
    quantized = record["quantized"]
    if quantized is None:
        return None
    figure = step_errors(quantized["steps"], times_axis([*quantized["timesteps"], "image"]))
    title = f"{title_of(record)}: errors over the trajectory ({quantized['trajectories']} trajectories)"
    return render(replace(figure, title=title))


def sensitivity(record: Record) -> "Canvas":
    """Curves: what an equal error at each call does to the final state, and the PSNR of the image that it leaves."""
    found = record["sensitivity"]
    x = times_axis(found["timesteps"], "timestep of the call that was off, from noise to image")
    places, each = range(len(found["timesteps"])), found["per_trajectory"]
    behind = {
        key: [Line("", places, values, MAIN, points=False, faint=True) for values in zip(*each[key], strict=True)]
        for key in ("mse", "psnr")
    }
    final = Line("of the final state", places, found["mse"], MAIN)
    after = Line("of the state right after the call", places, found["injected"], SECOND, dashed=True)
    image = Line("", places, found["psnr"], MAIN)
    title = (
        f"{record['model']}, {record['sampler']}: an error of {100 * found['relative_rms']:g} % of the prediction at "
        f"one call alone, full precision ({found['trajectories']} trajectories)"
    )
    panels = (
        Panel((*behind["mse"], final, after), x, Axis("mean squared error", log=True), height=1.3),
        Panel((*behind["psnr"], image), x, Axis("PSNR of the final image (dB)"), height=1.3),
    )
    return render(Figure(title, panels))


def channel_absmax(record: Record) -> "Canvas | None":
    """Profiles: largest magnitude per input channel of the layers in which one channel stands out most."""
    chosen = _most_extreme(record["layers"])
    if not chosen:
        return None
    figure, panels = new_panels(len(chosen), height=2.6)
    figure.suptitle(
        f"{record['model']}: layers in which one input channel stands out most, full precision", fontsize=11
    )
    for axes, layer in zip(panels, chosen, strict=False):
        values = np.array(layer["channels"]["absmax"], dtype=float)
        axes.bar(np.arange(len(values)), values, width=1.0, color=MAIN)
        median = float(np.median(values))
        axes.axhline(median, color=SECOND, linewidth=1, label=f"median; largest is {values.max() / median:.1f}×")
        for cut in layer["boundaries"]:
            axes.axvline(cut - 0.5, color="black", linewidth=1, linestyle=":", label="skip begins")
        axes.set_title(layer["name"], fontsize=9)
        axes.set_xlabel("input channel")
        axes.set_ylabel("largest |x|")
        axes.set_ylim(0, values.max() * 1.3)
        axes.legend(frameon=False, fontsize=8, loc="upper right")
    return figure


def kurtosis(record: Record) -> "Canvas":
    """Dots: kurtosis of every layer's input and weight; heavy tails waste codes."""
    layers = record["layers"]
    dots = tuple(
        Line(key, [layer[key]["kurtosis"] for layer in layers], range(len(layers)), colour, joined=False, symbol=symbol)
        for symbol, (key, colour) in enumerate((("input", MAIN), ("weight", SECOND)))
    )
    x = Axis("kurtosis (grey: 3, that of a Gaussian)", log=True, reference=3.0)
    title = f"{record['model']}: tails of inputs and weights, full precision"
    return render(Figure(title, (Panel(dots, x, Axis("", names=tuple(layer["name"] for layer in layers))),)))


def skip_halves(record: Record) -> "Canvas | None":
    """Curves: standard deviation and range of the parts of concatenated inputs over the steps."""
    skips = [layer for layer in record["layers"] if layer["skip"] is not None]
    if not skips:
        return None
    skips.sort(key=lambda layer: -max(layer["skip"]["range_ratio"]))
    chosen = skips[:_PANELS]
    figure, panels = new_panels(len(chosen), height=2.8)
    figure.suptitle(
        f"{record['model']}: parts of concatenated inputs, full precision ({len(chosen)} of {len(skips)} layers)",
        fontsize=11,
    )
    for axes, layer in zip(panels, chosen, strict=False):
        for number, part in enumerate(layer["skip"]["parts"]):
            label, colour = ("main", MAIN) if number == 0 else ("skip", SECOND)
            calls = np.arange(len(part["std"]))
            low, high = np.array(part["min"], dtype=float), np.array(part["max"], dtype=float)
            axes.fill_between(calls, low, high, color=colour, alpha=0.18, label=f"{label}: range")
            mean, std = np.array(part["mean"], dtype=float), np.array(part["std"], dtype=float)
            axes.plot(calls, mean + std, color=colour, linewidth=1.2, label=f"{label}: mean ± std")
            axes.plot(calls, mean - std, color=colour, linewidth=1.2)
        axes.set_title(f"{layer['name']}  (ranges up to {max(layer['skip']['range_ratio']):.1f} : 1)", fontsize=9)
        axes.set_xlabel("timestep of the call")
        axes.set_ylabel("x")
        label_times(axes, record["timesteps"], at_most=6)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    return figure


PICTURES: Mapping[str, Callable[[Record], "Canvas | None"]] = {
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
