"""Pictures of what parts of methods do, from the findings of a store's jobs, as PNG files: all of them; scaling's here.

Imports no torch.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from dmqbench.results.plots.canvas import FAINT, MAIN, SECOND, new_figure, new_panels, positive, text
from dmqbench.results.result import Result
from dmqbench.results.studies.colours import PALETTE, power_colour
from dmqbench.results.studies.dose_response import BASE, RUNG_NAMES, RUNGS, DoseCurve, halves
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

_SHORT = 40


def channel_ranges(row: Result, scaling: Found) -> Any:
    """Largest magnitude of each input channel before and after scaling: of the input, and of the weight below it."""
    layers = list(scaling["channels"].items())
    figure, panels = new_panels(2 * len(layers), height=2.2)
    figure.suptitle(f"{plot_title(row)}: channels before and after equivalent scaling", fontsize=11)
    for number, (name, channels) in enumerate(layers):
        order = falling(channels["input_before"])
        for axes, part in zip(panels[2 * number : 2 * number + 2], ("input", "weight"), strict=True):
            for when, colour in (("before", FAINT), ("after", MAIN)):
                values = [channels[f"{part}_{when}"][channel] for channel in order]
                axes.plot(positive(values), color=colour, linewidth=1.2, label=when)
            axes.set_yscale("log")
            axes.set_ylabel(f"largest |{'x' if part == 'input' else 'w'}|")
            axes.set_title(f"{_short(name)}, {part}", fontsize=9)
            axes.grid(alpha=0.25)
            axes.legend(frameon=False, fontsize=8)
    for axes in panels[2 * len(layers) - 2 : 2 * len(layers)]:
        axes.set_xlabel("input channels, by falling range")
    return figure


def step_weights(row: Result, scaling: Found) -> Any:
    """The weight of each network call at the end of learning, and its share of the running error."""
    weighting = scaling["weighting"]
    bins = np.array(weighting["bin_of_call"], dtype=int)
    figure = new_figure(7.6, 5.2)
    top, bottom = figure.subplots(2, 1, sharex=True)
    top.set_title(f"{plot_title(row)}: weighting of steps, {text(weighting['name'])}, mean over layers", fontsize=11)
    for axes, key, colour, label in ((top, "lambda", MAIN, "λ"), (bottom, "error", SECOND, "share of the error")):
        values = np.array(weighting[key], dtype=float)[bins]
        axes.plot(values, color=colour, marker="o", markersize=3, drawstyle="steps-mid")
        axes.set_ylim(0, max(1.1 * values.max(), 1e-9))
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
    bottom.set_xlabel("network call, from noise to image")
    return figure


def votes(row: Result, powers: Found) -> Any:
    """Bars: the share of each exponent in every layer; curves: how many samples agree, over the steps."""
    names, exponents = list(powers["layers"]), exponents_of(powers)
    with_steps = rows_of_steps(powers) > 1
    height = 1.6 + 0.2 * max(8, len(names))
    figure = new_figure(8.6, height + (3.2 if with_steps else 0))
    if with_steps:
        bars, curves = figure.subplots(2, 1, height_ratios=(height, 3.2))
        _agreement(curves, powers)
    else:
        bars = figure.subplots()
    bars.set_title(f"{plot_title(row)}\npowers of two, {text(selection_note(powers))}", fontsize=10)
    left = np.zeros(len(names))
    for exponent in exponents:
        shares = np.array([exponent_share(powers["layers"][name], exponent) for name in names])
        colour = power_colour(exponent)
        bars.barh(np.arange(len(names)), shares, left=left, color=colour, label=power_name(exponent))
        left += shares
    bars.set_yticks(range(len(names)), [_short(name) for name in names], fontsize=7)
    bars.set_ylim(len(names) - 0.4, -0.6)
    bars.set_xlim(0, 1)
    bars.set_xlabel("share of steps and channels")
    figure.legend(
        *bars.get_legend_handles_labels(), frameon=False, fontsize=8, ncols=len(exponents), loc="outside lower center"
    )
    return figure


def _agreement(axes: Any, powers: Found) -> None:
    shown = least_agreed(powers)[:SHOWN_LINES]
    for number, name in enumerate(shown):
        colour = PALETTE[number % len(PALETTE)]
        axes.plot(powers["layers"][name]["agreement"], color=colour, linewidth=1.2, label=_short(name))
    axes.set_xlabel("network call, from noise to image")
    axes.set_ylabel("samples that agree")
    axes.grid(alpha=0.25)
    title = f"{len(shown)} of {len(powers['layers'])} layers"
    axes.legend(frameon=False, fontsize=6, title=title, title_fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1))


def dose(curve: DoseCurve) -> Any:
    """The gain in PSNR against disparity: over Q-Diffusion, and over the part before."""
    figure = new_figure(8.4, 8.0)
    top, bottom = figure.subplots(2, 1, sharex=True)
    top.set_title(f"Gain of each part against disparity ({curve.setting})", fontsize=11)
    for number, rung in enumerate(RUNGS[1:]):
        points = curve.of(rung)
        for axes, kind in ((top, "over_base"), (bottom, "over_previous")):
            known = [(point.disparity, one) for point in points if (one := getattr(point, kind)).difference is not None]
            if known:
                ends = np.array([[half or 0.0 for half in halves(one)] for _, one in known]).T
                axes.errorbar(
                    [disparity for disparity, _ in known],
                    [one.difference for _, one in known],
                    yerr=ends,
                    color=PALETTE[number],
                    marker="o",
                    markersize=4,
                    linewidth=1.2,
                    capsize=2,
                    label=RUNG_NAMES[rung],
                )
    for axes, label in ((top, f"PSNR over {RUNG_NAMES[BASE]} (dB)"), (bottom, "PSNR over the part before (dB)")):
        axes.axhline(0, color=FAINT, linewidth=1)
        axes.set_xscale("log")
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
    top.legend(frameon=False, fontsize=8)
    models = {point.model: point.disparity for point in curve.points}
    names = [f"{_short(model)}: {value:.3g}" for model, value in models.items()]
    bottom.set_xticks(list(models.values()), names, rotation=20, ha="right", fontsize=8)
    bottom.set_xticks([], minor=True)
    notes = "\n".join(text(sentence) for sentence in curve.sentences[1:])
    bottom.set_xlabel("disparity of skip channels: largest over median" + (f"\n\n{notes}" if notes else ""), fontsize=8)
    return figure


def samples_against_votes(curves: SelectionCurves) -> Any:
    """The held-out error that exponents leave, against the samples that they were chosen from."""
    figure = new_figure(7.6, 4.8)
    axes = figure.subplots()
    axes.set_title("Error that powers of two leave, by how they were chosen", fontsize=11)
    for number, (selection, errors) in enumerate(curves.error.items()):
        values = [ratio.value for ratio in errors.values()]
        axes.plot(list(errors), values, color=PALETTE[number % len(PALETTE)], marker="o", label=text(selection))
    _label_samples(axes, {place for errors in curves.error.values() for place in errors})
    axes.set_ylabel("held-out error, with over without")
    notes = "\n".join(text(sentence) for sentence in curves.sentences)
    axes.set_xlabel(f"calibration samples per vote\n\n{notes}", fontsize=8)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _label_samples(axes: Any, places: Iterable[float]) -> None:
    ticks = sorted(places)
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)


def plot_title(row: Result) -> str:
    ranges = f", ranges {row.ranges}" if row.ranges else ""
    return text(f"{row.model}, {row.label} {row.bits.upper()}{ranges}")


def _short(name: str) -> str:
    shown = text(name)
    return shown if len(shown) <= _SHORT else f"…{shown[1 - _SHORT :]}"
