"""Pictures of calibration over several denoising steps, and of errors over a trajectory, as PNG files.

Imports no torch.
"""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from dmqbench.results.plots.canvas import FAINT, new_figure, positive, text
from dmqbench.results.studies.colours import PALETTE
from dmqbench.results.studies.error_accumulation import Line, Panel
from dmqbench.results.studies.findings import CHOSEN_ON
from dmqbench.results.studies.trajectory_ablation import FAR_APART, VARIED_TITLES, Ablation, Curve, Trial

_WRAPPED = 110
"""Letters in a line of a note."""


def ablations(found: Sequence[Ablation]) -> Any:
    """One column for each of ``found``; from the top PSNR, error of the end states, cosine and norm of the gradient."""
    figure = new_figure(5.6 * len(found), 9.6)
    columns = figure.subplots(4, len(found), squeeze=False, sharex="col", height_ratios=(1.5, 1.2, 1, 1)).T
    for panels, one in zip(columns, found, strict=True):
        _ablation(panels, one)
    figure.suptitle("Calibration over several denoising steps", fontsize=12)
    return figure


def _ablation(panels: Any, found: Ablation) -> None:
    places = {place: number for number, place in enumerate(found.places)}
    joined = found.varied == "horizon"
    for number, curve in enumerate(found.curves):
        shift = 0.0 if joined else 0.12 * (number - (len(found.curves) - 1) / 2)
        at = np.array([places[trial.place] for trial in curve.trials]) + shift
        style = {"color": PALETTE[number], "marker": "o", "markersize": 5, "linewidth": 1.4 if joined else 0}
        gains = [(x, value, found.reach(trial)) for x, trial in zip(at, curve.trials, strict=True)
                 if (value := found.gain(trial)) is not None]  # fmt: skip
        if gains:
            ends = np.array([[half or 0.0 for half in halves] for _, _, halves in gains]).T
            panels[0].errorbar([x for x, _, _ in gains], [value for _, value, _ in gains], yerr=ends,
                               capsize=2, elinewidth=1.2, label=_shown(curve.name), **style)  # fmt: skip
        for axes, name in zip(panels[1:], ("error", "cosine", "ratio"), strict=True):
            axes.plot(at, _numbers(curve, name), **style)
    labels = ("PSNR over un-tuned (dB)" if found.compared else "PSNR (dB)", "end-state error,\nafter / before",
              "gradient: cosine\nwith the exact one", "gradient: norm\nover the exact one's")  # fmt: skip
    for axes, label in zip(panels, labels, strict=True):
        axes.set_ylabel(label, fontsize=9)
        axes.grid(alpha=0.25)
    if found.compared:
        panels[0].axhline(0, color=FAINT, linewidth=1)
    for axes, name in ((panels[1], "error"), (panels[3], "ratio")):
        _spread(axes, [value for curve in found.curves for value in _numbers(curve, name) if value > 0])
        axes.axhline(1, color=FAINT, linewidth=1)
    panels[0].set_title(f"by {found.varied}", fontsize=11)
    if len(found.curves) > 1:
        panels[0].legend(frameon=False, fontsize=8)
    turned = {} if joined else {"rotation": 30, "ha": "right"}
    panels[3].set_xticks(list(places.values()), [_shown(str(place)) for place in places], fontsize=9, **turned)
    panels[3].set_xlabel(
        "\n".join([VARIED_TITLES[found.varied], "", *_wrapped(found.sentences, _WRAPPED * 3 // 4)]), fontsize=8
    )


def _spread(axes: Any, values: Sequence[float]) -> None:
    """Make the axis logarithmic, with labels 1, 2 and 5 times powers of ten, where values would lie on each other."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if not values or max(values) < FAR_APART * min(values):
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _numbers(curve: Curve, name: str) -> Any:
    def known(trial: Trial) -> float:
        value: float | None = getattr(trial, name)
        return np.nan if value is None else value

    return np.array([known(trial) for trial in curve.trials])


def accumulated(panels: Sequence[Panel]) -> Any:
    """Mean squared error of the state before each call and at the end: a panel per bit-width, a line per method."""
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(max(7.2, 5.6 * columns), 4.0 * rows + 0.8)
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    for axes, panel in zip(places, panels, strict=False):
        for line in panel.lines:
            _line(axes, line, PALETTE[names.index(line.name) % len(PALETTE)])
        axes.set_yscale("log")
        left_out = f" (without {panel.left_out} more)" if panel.left_out else ""
        axes.set_title(_shown(panel.title, 60) + left_out, fontsize=10)
        axes.set_xlabel("network calls made", fontsize=9)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel("mean squared error of the state", fontsize=9)
        axes.grid(alpha=0.25, which="both")
        axes.legend(framealpha=0.8, edgecolor="none", fontsize=8)
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    grouped = any(line.boundaries for panel in panels for line in panel.lines)
    figure.suptitle("How errors add up over a trajectory", fontsize=12)
    if grouped:
        figure.supxlabel("\n".join(_wrapped([CHOSEN_ON], _WRAPPED)), fontsize=8)
    return figure


def _line(axes: Any, line: Line, colour: str) -> None:
    for errors in line.of_seeds if len(line.of_seeds) > 1 else ():
        axes.plot(positive(errors), color=colour, linewidth=0.7, alpha=0.45)
    shown = [place for place in line.boundaries if line.errors[place] > 0]
    axes.plot(positive(line.errors), color=colour, linewidth=1.8, label=_shown(line.name),
              marker="o" if shown else None, markersize=4.5, markevery=shown or None)  # fmt: skip


def _shown(name: str, letters: int = 40) -> str:
    return text(name if len(name) <= letters else f"{name[: letters - 1]}…")


def _wrapped(sentences: Sequence[str], width: int) -> list[str]:
    return [text(part) for sentence in sentences for part in textwrap.wrap(sentence, width)]
