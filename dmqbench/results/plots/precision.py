"""Pictures of mixed precision and low-rank tuning, from the findings of a store's jobs, as PNG files.

Imports no torch.
"""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from dmqbench.results.plots.canvas import FAINT, MAIN, label_rows, new_figure, positive, tall, text
from dmqbench.results.studies.colours import BIT_COLOURS
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
from dmqbench.results.studies.precision_ablation import BASELINE, UNITS, Ablation

_VERDICTS = {"better": "#228833", "worse": "#ee6677", "cannot tell": FAINT}
_WRAPPED = 100


def row_bits(title: str, allocation: Found) -> Any:
    """Bars: which share of every layer's rows has which bits; beside them the error of every allocation tried."""
    layers = allocation["layers"]
    names = [text(layer["name"]) for layer in layers]
    figure = new_figure(11.0, tall(len(layers)) + 1.0)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    start = np.zeros(len(layers))
    for bits in widths_of(allocation):
        shares = np.array([width_share(layer, bits) for layer in layers])
        left.barh(np.arange(len(layers)), shares, left=start, color=BIT_COLOURS[bits - 1], label=width_name(bits))
        start += shares
    left.set_xlim(0, 1)
    left.set_xlabel("share of the layer's rows")
    label_rows(left, names)
    left.set_ylim(len(layers) - 0.4, -0.6)
    _candidates(figure, right, layers)
    right.set_xlabel(f"{candidates_title(allocation)}\n(dots: what was chosen)")
    figure.legend(*left.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside upper left", ncols=8)
    figure.suptitle(f"{title}: bits of the rows of every layer", fontsize=11)
    figure.supxlabel(_wrapped(allocation_note(allocation)), fontsize=8)
    return figure


def _candidates(figure: Any, axes: Any, layers: list[Found]) -> None:
    """Heat map: output error over that of equal bits; dots: what was chosen."""
    tried = max(len(layer["errors"]) for layer in layers)
    ratios = np.full((len(layers), tried), np.nan)
    for row, layer in enumerate(layers):
        found = error_ratios(layer)
        ratios[row, : len(found)] = np.array(found, dtype=float)
    known = ratios[np.isfinite(ratios)]
    reach = min(0.5, float(abs(known - 1).max())) if known.size and (known != 1).any() else 0.5
    image = axes.imshow(ratios, aspect="auto", cmap="RdBu_r", vmin=1 - reach, vmax=1 + reach, interpolation="none")
    chosen = [layer["tenths"] for layer in layers]
    axes.plot(chosen, range(len(layers)), ".", color="black", markersize=4)
    axes.set_xticks(range(tried), TENTH_NAMES[:tried], fontsize=8)
    shrink = min(1.0, 5.0 / tall(len(layers)))
    figure.colorbar(image, ax=axes, label="output error over that of equal bits", shrink=shrink, anchor=(0.0, 1.0))


def tuning_errors(title: str, tuning: Found) -> Any:
    """Curves: the held-out error of predictions at every call before and after tuning; below, of what was distilled."""
    distilled = tuning["distilled_error_before"] is not None
    figure = new_figure(8.0, 6.4 if distilled else 4.4)
    panels = list(figure.subplots(2 if distilled else 1, 1, sharex=True, squeeze=False).flat)
    calls = list(range(len(tuning["noise_error_before"])))
    parts: list[tuple[str, Sequence[float], str]] = [("noise", calls, "prediction,\nmean squared error")]
    parts += [("distilled", window_centres(tuning), text(tuning["settings"]["distillation"]))] if distilled else []
    for axes, (part, places, label) in zip(panels, parts, strict=True):
        for when, colour in (("before", FAINT), ("after", MAIN)):
            values = positive(tuning[f"{part}_error_{when}"])
            axes.plot(places, values, color=colour, marker="o", markersize=3, label=when)
        axes.set_yscale("log")
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
    panels[0].legend(frameon=False, fontsize=9)
    panels[0].set_title(f"{title}: held-out errors before and after low-rank tuning", fontsize=11)
    note = _wrapped(tuning_note(tuning))
    panels[-1].set_xlabel(f"network call, from noise to image\n\n{note}", fontsize=8)
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    return figure


def ablation(found: Ablation) -> Any:
    """Bars: what every variant gains over the baseline, a panel per metric, with the interval of the difference."""
    figure = new_figure(3.2 + 3.2 * len(found.metrics), 1.8 + 0.34 * len(found.bars))
    panels = list(figure.subplots(1, len(found.metrics), sharey=True, squeeze=False).flat)
    places = np.arange(len(found.bars))
    for axes, metric in zip(panels, found.metrics, strict=True):
        compared = [bar.over_baseline[metric] for bar in found.bars]
        values = np.array([one.difference for one in compared], dtype=float)
        ends = np.array([[half or 0.0 for half in halves(one)] for one in compared]).T
        colours = [_VERDICTS[one.verdict] for one in compared]
        axes.barh(places, values, color=colours, xerr=ends, error_kw={"elinewidth": 1.2, "capsize": 2})
        axes.axvline(0, color="black", linewidth=1)
        axes.set_xlabel(f"{metric} over {BASELINE}\n{UNITS[metric]}", fontsize=9)
        axes.grid(axis="x", alpha=0.25)
    panels[0].set_yticks(places, ["\n".join(textwrap.wrap(text(bar.name), 44)) for bar in found.bars], fontsize=8)
    panels[0].set_ylim(len(found.bars) - 0.4, -0.6)
    figure.suptitle("What the parts of MPQ-DM do", fontsize=12)
    said = [_wrapped(sentence) for sentence in found.sentences]
    figure.supxlabel("\n".join([*said, "green: better, red: worse, grey: cannot tell"]), fontsize=8)
    return figure


def _wrapped(sentence: str) -> str:
    return "\n".join(text(line) for line in textwrap.wrap(sentence, _WRAPPED))
