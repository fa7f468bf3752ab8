"""Figures drawn with matplotlib, for PNG files."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dmqbench.results.figure import (
    Axis,
    Bars,
    Figure,
    HeatMap,
    Line,
    Panel,
    Values,
    head,
    legend_name,
    log_ticks,
    reaches,
    tail,
    thinned,
)
from dmqbench.results.result import printable
from dmqbench.results.studies.colours import GREY
from dmqbench.store.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_DPI = 110
_MAX_ROWS = 160
"""Layers up to which every one has its label; beyond, rows get thinner and labels fewer."""
_LETTERS = 13
"""In an inch of a note."""
_FEW_POINTS = 32
"""Points up to which each one is drawn on its line."""
_MANY_NAMES = 6
"""Entries beyond which a legend stands beside its panel."""
_SYMBOLS = ("o", "s", "D", "P", "X", "^", "v", "*")
_DASHES = ("-", "--", ":", "-.", (0, (8, 2)), (0, (8, 2, 1, 2)))
_SHIFT = 0.12
"""Between points that would lie on each other at one name."""


def _text(name: str) -> str:
    """Return a name from a store as matplotlib shows it letter by letter, for it reads mathematics between dollars."""
    return printable(name).replace("$", r"\$")


def save(figure: Figure, path: Path) -> Path:
    """Draw ``figure`` to the PNG file ``path``, whole or not at all, and return it."""
    with replacing(path) as temporary:
        render(figure).savefig(temporary, format="png", dpi=_DPI)
    return path


def render(figure: Figure) -> "Canvas":
    """Return the drawing of ``figure``, which belongs to no window and no global state."""
    from matplotlib.figure import Figure as Canvas

    rows = math.ceil(len(figure.panels) / figure.columns)
    heights = [max(map(_height, _row(figure, row))) for row in range(rows)]
    width = _width(figure)
    title = _wrapped([figure.title], width * 0.75)
    notes = _wrapped(figure.notes, width)
    canvas = Canvas(figsize=(width, sum(heights) + 0.25 * len(title) + 0.14 * len(notes) + 0.3), layout="constrained")
    grid = canvas.subplots(rows, figure.columns, squeeze=False, height_ratios=heights)
    named: set[str] = set()
    for place, (axes, panel) in enumerate(zip(grid.flat[: len(figure.panels)], figure.panels, strict=True)):
        _draw(canvas, axes, panel, named)
        _share(figure, place, axes, grid)
    for spare in grid.flat[len(figure.panels) :]:
        spare.set_visible(False)
    canvas.suptitle("\n".join(title), fontsize=11)
    if notes:
        canvas.supxlabel("\n".join(notes), fontsize=8)
    return canvas


def _draw(canvas: "Canvas", axes: "Axes", panel: Panel, named: set[str]) -> None:
    _scales(axes, panel)
    if panel.title:  # it stands for itself
        named.clear()
    start = np.zeros(len(panel.y.names))
    apart = [mark for mark in panel.marks if isinstance(mark, Line) and not mark.joined and panel.x.names]
    for mark in panel.marks:
        if isinstance(mark, HeatMap):
            _heat(canvas, axes, mark)
            continue
        label = "" if mark.name in named else _text(legend_name(mark.name, 40))
        named.add(mark.name)
        if isinstance(mark, Bars):
            _bars(axes, mark, start, label)
            start = start + _numbers(mark.lengths)
        else:
            shift = _SHIFT * (apart.index(mark) - (len(apart) - 1) / 2) if mark in apart else 0.0
            _line(axes, mark, panel, shift, label)
    _legend(axes, panel)
    if panel.title:
        axes.set_title(_text(head(panel.title, 60)), fontsize=9)


def _line(axes: "Axes", line: Line, panel: Panel, shift: float, label: str) -> None:
    has_points = line.points and (not line.joined or len(line.y) <= _FEW_POINTS)
    x, y = _numbers(line.x) + shift, _numbers(line.y)
    if panel.y.log:
        y = np.where(y > 0, y, np.nan)
    thickness = 0.7 if line.faint else 1.4
    axes.plot(
        x,
        y,
        color=line.colour,
        alpha=0.45 if line.faint else 1.0,
        linewidth=thickness if line.joined else 0,
        linestyle=_DASHES[line.dash % len(_DASHES)],
        drawstyle=f"steps-{line.stepped}" if line.stepped else "default",
        marker=_SYMBOLS[line.symbol % len(_SYMBOLS)] if has_points else "",
        markersize=3.5 if line.joined else 4.5,
        label=label,
    )
    if line.ends:
        reach = _numbers(reaches(line.y, line.ends))
        axes.errorbar(x, y, yerr=reach, fmt="none", ecolor=line.colour, elinewidth=1.2, capsize=2)
    for place, value, words in zip(x, y, line.labels or [""] * len(x), strict=True):
        axes.annotate(_text(words), (place, value), (5, 0), textcoords="offset points", va="center", fontsize=8)


def _bars(axes: "Axes", bars: Bars, start: NDArray[np.float64], label: str) -> None:
    reach = _numbers(reaches(bars.lengths, bars.ends)) if bars.ends else None
    colours = bars.colours * (len(bars.lengths) if len(bars.colours) == 1 else 1)
    axes.barh(
        np.arange(len(start)),
        _numbers(bars.lengths),
        left=start,
        color=colours,
        label=label,
        xerr=reach,
        error_kw={"elinewidth": 1.2, "capsize": 2},
    )


def _heat(canvas: "Canvas", axes: "Axes", heat: HeatMap) -> None:
    from matplotlib.colors import LogNorm, Normalize

    values = np.array([_numbers(row) for row in heat.values])
    known = values[np.isfinite(values) & (values > 0)]
    norm: Normalize | None = None
    if heat.reach is not None:
        norm = Normalize(1 - heat.reach, 1 + heat.reach)
    elif known.size and np.ptp(known) > 0:
        norm = LogNorm(known.min(), known.max())
    visible = np.ma.masked_where(~(values > 0), values)
    colours = "viridis" if heat.reach is None else "RdBu_r"
    image = axes.imshow(visible, aspect="auto", cmap=colours, norm=norm, interpolation="none")
    shrink = min(1.0, 5.0 / _tall(len(values)))
    canvas.colorbar(image, ax=axes, label=heat.title, shrink=shrink, anchor=(0.0, 1.0))


def _scales(axes: "Axes", panel: Panel) -> None:
    for axis, letter in ((panel.x, "x"), (panel.y, "y")):
        getattr(axes, f"set_{letter}label")(
            "\n".join(_wrapped([axis.title], 5.0 if letter == "x" else 0.8 * _height(panel))), fontsize=9
        )
        if axis.reference is not None:
            (axes.axvline if letter == "x" else axes.axhline)(axis.reference, color=GREY, linewidth=1)
        _scale(axes, axis, letter, _places(panel, letter))
    if panel.y.names:
        if _is_short(panel):
            axes.set_yticks(
                range(len(panel.y.names)), ["\n".join(_wrapped([name], 3.4)) for name in panel.y.names], fontsize=8
            )
        else:
            _label_rows(axes, [_text(tail(name)) for name in panel.y.names])
        axes.set_ylim(len(panel.y.names) - 0.4, -0.6)
    axes.grid(axis="x" if panel.y.names else "both", alpha=0 if _is_map(panel) else 0.25)


def _scale(axes: "Axes", axis: Axis, letter: str, values: Values) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    along = axes.xaxis if letter == "x" else axes.yaxis
    ticks = axis.ticks or (thinned(axis.names) if letter == "x" else ())
    if axis.log:
        (axes.set_xscale if letter == "x" else axes.set_yscale)("log")
        ticks = ticks or log_ticks(values)
    elif axis.whole:
        along.set_major_locator(MaxNLocator(integer=True))
    if ticks:
        labels = [_text(label) for _, label in ticks]
        turned = {"rotation": 20, "ha": "right"} if letter == "x" and any(len(label) > 8 for label in labels) else {}
        along.set_ticks([tick for tick, _ in ticks], labels, fontsize=8, **turned)
        along.set_ticks([], minor=True)
    if axis.share:
        along.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if axis.ends or axis.from_zero:
        known = [value for value in values if value is not None]
        ends = axis.ends or (0.0, max(1.1 * max(known, default=0.0), 1e-9))
        (axes.set_xlim if letter == "x" else axes.set_ylim)(*ends)


def _share(figure: Figure, place: int, axes: "Axes", grid: NDArray[np.object_]) -> None:
    """Label an axis that panels share once: below the lowest, and left of the first."""
    row, column = divmod(place, figure.columns)
    panel, below = figure.panels[place], figure.panels[place + figure.columns : place + figure.columns + 1]
    if row and panel.x is figure.panels[place - figure.columns].x:
        axes.sharex(grid[row - 1, column])
    if any(other.x is panel.x for other in below):
        axes.tick_params(labelbottom=False)
        axes.set_xlabel("")
    if column and panel.y is figure.panels[place - 1].y:
        axes.tick_params(labelleft=False)
        axes.set_ylabel("")
        axes.set_ylim(grid[row, column - 1].get_ylim())


def _legend(axes: "Axes", panel: Panel) -> None:
    """What has a label: above bars, beside many lines, otherwise among them."""
    names = axes.get_legend_handles_labels()[1]
    if not names or names == [panel.y.title]:
        return
    if any(isinstance(mark, Bars) for mark in panel.marks):
        axes.legend(frameon=False, fontsize=8, ncols=8, loc="lower left", bbox_to_anchor=(0, 1))
    elif len(names) > _MANY_NAMES:
        axes.legend(frameon=False, fontsize=6, loc="upper left", bbox_to_anchor=(1.01, 1))
    else:
        axes.legend(framealpha=0.8, edgecolor="none", fontsize=8)


def _places(panel: Panel, letter: str) -> list[float | None]:
    lines = [mark.x if letter == "x" else mark.y for mark in panel.marks if isinstance(mark, Line)]
    return [value for values in lines for value in values]


def _tall(rows: int) -> float:
    """Height in inches at which the labels of ``rows`` can be read."""
    return 1.4 + 0.155 * min(max(rows, 8), _MAX_ROWS)


def _label_rows(axes: "Axes", names: Sequence[str]) -> None:
    stride = -(-len(names) // _MAX_ROWS)
    axes.set_yticks(range(0, len(names), stride), names[::stride], fontsize=7)


def _row(figure: Figure, row: int) -> tuple[Panel, ...]:
    return figure.panels[row * figure.columns : (row + 1) * figure.columns]


def _width(figure: Figure) -> float:
    return 8.6 if figure.columns == 1 else 5.5 * figure.columns


def _height(panel: Panel) -> float:
    """Inches."""
    count = len(panel.y.names)
    if not count:
        return 2.3 * panel.height
    return 0.9 + 0.34 * count if _is_short(panel) else _tall(count)


def _is_short(panel: Panel) -> bool:
    """Whether its bars may be thick: those of intervals and names in words."""
    return any(isinstance(mark, Bars) and mark.ends for mark in panel.marks)


def _is_map(panel: Panel) -> bool:
    return any(isinstance(mark, HeatMap) for mark in panel.marks)


def _numbers(values: Values | Sequence[Values]) -> NDArray[np.float64]:
    return np.array(values, dtype=float)


def _wrapped(sentences: Sequence[str], inches: float) -> list[str]:
    return [
        _text(part)
        for sentence in sentences
        for line in sentence.split("\n")
        for part in textwrap.wrap(line, round(_LETTERS * inches))
    ]
