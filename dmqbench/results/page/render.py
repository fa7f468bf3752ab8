"""Figures as plotly's JSON, without colours of the page itself, which follow its light or dark theme.

``customdata`` holds job ids, so that a click on a point opens its job.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from dmqbench.results.figure import (
    Axis,
    Bars,
    Figure,
    HeatMap,
    Line,
    Mark,
    Panel,
    Values,
    legend_name,
    log_ticks,
    reaches,
    tail,
)
from dmqbench.results.result import printable

Json = dict[str, Any]
"""Plotly's."""

_SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "triangle-down", "star")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_STEPS = {"mid": "hvh", "post": "hv"}

_GAP = 0.06
"""Between panels, as a share of the figure."""
_NAME = 34
"""Letters of a layer's name."""
_FEW_POINTS = 200
"""Points up to which each one is drawn on its line."""
_DIGITS = 5


def plain(text: str) -> str:
    """Return a name from a store as plotly shows it letter by letter, for plotly reads a little HTML."""
    return escape(printable(text), quote=False)


def render(figure: Figure) -> Json:
    """Return ``data``, ``layout`` and ``note`` of a figure."""
    made = _Rendering(figure)
    for place in range(len(figure.panels)):
        made.add(place)
    return {"data": made.traces, "layout": made.layout, "note": printable(" · ".join(figure.notes))}


@dataclass
class _Rendering:
    """What has been rendered of a figure; ``shared`` are names of axes by letter, lane of panels and identity."""

    figure: Figure
    traces: list[Json] = field(default_factory=list)
    layout: Json = field(default_factory=dict)
    named: set[str] = field(default_factory=set)
    shared: dict[tuple[str, int, int], str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: {"x": 0, "y": 0})

    def __post_init__(self) -> None:
        height = _height(self.figure)
        self.layout |= {} if height is None else {"height": height}
        bars = [mark for panel in self.figure.panels for mark in panel.marks if isinstance(mark, Bars)]
        self.layout |= {"barmode": "stack"} if bars else {}

    def add(self, place: int) -> None:
        panel = self.figure.panels[place]
        row, column = divmod(place, self.figure.columns)
        x, y = self._axis("x", column, panel), self._axis("y", row, panel)
        self.layout[_key(x)] |= {"domain": _column_domain(self.figure, column)} if self.figure.columns > 1 else {}
        self.layout[_key(y)] |= {"domain": _row_domain(self.figure, row)} if _rows(self.figure) > 1 else {}
        if _rows(self.figure) > 1:
            self.layout[_key(x)]["anchor"] = y  # the last row's, as it is the last one to be added
        for mark in panel.marks:
            self.traces.append(self._trace(mark, panel) | {"xaxis": x, "yaxis": y})

    def _axis(self, letter: str, lane: int, panel: Panel) -> str:
        axis = panel.x if letter == "x" else panel.y
        known = self.shared.get((letter, lane, id(axis)))
        if known is None:
            self.counts[letter] += 1
            known = letter if self.counts[letter] == 1 else f"{letter}{self.counts[letter]}"
            self.shared[letter, lane, id(axis)] = known
            self.layout[_key(known)] = _axis_layout(axis, _values_along(self.figure, axis, letter), letter)
        return known

    def _trace(self, mark: Line | Bars | HeatMap, panel: Panel) -> Json:
        if isinstance(mark, HeatMap):
            return _heat_trace(mark, panel)
        is_first = bool(mark.name) and mark.name not in self.named
        self.named.add(mark.name)
        common = {"name": plain(legend_name(mark.name, _NAME)), "legendgroup": plain(mark.name), "showlegend": is_first}
        common |= {"text": [plain(text) for text in mark.texts]} if mark.texts else {}
        common |= {"customdata": list(mark.jobs)} if mark.jobs else {}
        return common | (_line_trace(mark, panel) if isinstance(mark, Line) else _bar_trace(mark, panel))


def _line_trace(line: Line, panel: Panel) -> Json:
    hover = _hover(line.name, line.texts, panel.x, line.precision, "y", panel.y.share)
    mode = ["lines"] if line.joined else []
    mode += ["markers"] if line.points and len(line.y) <= _FEW_POINTS else []
    style = {"color": line.colour, "width": 1 if line.faint else 2, "dash": _DASHES[line.dash % len(_DASHES)]}
    trace: Json = {
        "type": "scatter",
        "mode": "+".join([*mode, *(["text"] if line.labels else [])]),
        "x": _places(line.x, panel.x),
        "y": _places(line.y, panel.y),
        "line": style | ({"shape": _STEPS[line.stepped]} if line.stepped else {}),
        "marker": {"size": _marker_size(line), "color": line.colour, "symbol": _SYMBOLS[line.symbol % len(_SYMBOLS)]},
    }
    if line.labels:
        trace |= {"text": [plain(label) for label in line.labels], "hovertext": [plain(text) for text in line.texts]}
        trace |= {"textposition": "middle right", "cliponaxis": False}
        hover = hover.replace("%{text}", "%{hovertext}")
    trace |= {"hovertemplate": hover} if line.name or line.texts else {"hoverinfo": "skip"}
    return trace | ({"error_y": _interval(line.y, line)} if line.ends else {})


def _marker_size(line: Line) -> int:
    """Points of one's own are large; those of a line, or that only mark a place, are small."""
    if not line.joined:
        return 8 if line.texts else 5
    return 6 if len(line.y) <= 40 else 4


def _bar_trace(bars: Bars, panel: Panel) -> Json:
    hover = _hover(bars.name, bars.texts, panel.y, bars.precision, "x", panel.x.share)
    trace: Json = {
        "type": "bar",
        "orientation": "h",
        "y": [plain(name) for name in panel.y.names],
        "x": [_rounded(length) for length in bars.lengths],
        "marker": {"color": bars.colours[0] if len(bars.colours) == 1 else list(bars.colours)},
        "textposition": "none",
        "hovertemplate": hover,
    }
    return trace | ({"error_x": _interval(bars.lengths, bars)} if bars.ends else {})


def _heat_trace(heat: HeatMap, panel: Panel) -> Json:
    trace: Json = {
        "type": "heatmap",
        "x": [plain(name) for name in panel.x.names],
        "y": [plain(name) for name in panel.y.names],
        "colorbar": {"title": {"text": heat.short, "side": "right"}, "thickness": 12, "outlinewidth": 0},
    }
    if heat.reach is None:
        trace["z"] = [[round(math.log10(value), 2) if value else None for value in row] for row in heat.values]
        trace["colorbar"]["title"]["text"] = f"log₁₀ {heat.short}"
        return trace | {"colorscale": "Viridis", "hovertemplate": "%{y}<br>%{x}: 10^%{z:.2f}<extra></extra>"}
    trace["z"] = [[_rounded(value) for value in row] for row in heat.values]
    trace |= {"text": [list(row) for row in heat.texts], "colorscale": "RdBu"}
    trace |= {"zmin": 1 - heat.reach, "zmax": 1 + heat.reach}
    return trace | {"hovertemplate": "%{y}<br>%{x}: %{text}, %{z:.3f}<extra></extra>"}


def _interval(values: Values, mark: Mark) -> Json:
    below, above = reaches(values, mark.ends)
    ends = {"array": [_rounded(end) for end in above], "arrayminus": [_rounded(end) for end in below]}
    return {"type": "data", "symmetric": False, **ends, "thickness": 1.2, "width": 3}


def _hover(name: str, texts: Sequence[str], along: Axis, precision: str, letter: str, share: bool) -> str:
    """What a point says: its name, where it is, and its value."""
    if texts and not precision:
        return "%{text}<extra></extra>"
    other = "y" if letter == "x" else "x"
    where = "%{text}" if texts else f"{along.word} %{{{other}}}".lstrip()
    value = f"%{{{letter}:{'.1%' if share else precision}}}"
    return "<br>".join(filter(None, (plain(name), f"{where}: {value}"))) + "<extra></extra>"


def _places(values: Values, axis: Axis) -> list[float | str | None]:
    if axis.names:
        return [None if value is None else plain(axis.names[int(value)]) for value in values]
    return [_rounded(value) if not axis.log or (value or 0) > 0 else None for value in values]


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")


def _axis_layout(axis: Axis, values: list[float | None], letter: str) -> Json:
    layout: Json = {"title": {"text": plain(axis.brief), "standoff": 8}}
    if axis.names:
        return layout | _named_axis(axis, letter)
    layout |= {"type": "log"} if axis.log else {}
    ticks = axis.ticks or (log_ticks(values) if axis.log else ())
    if ticks:
        layout |= {"tickvals": [tick for tick, _ in ticks], "ticktext": [plain(label) for _, label in ticks]}
    elif axis.log:
        layout |= _powers_of_ten([value for value in values if value and value > 0])
    elif axis.whole:
        most = math.ceil(max((value for value in values if value is not None), default=1.0))
        layout["dtick"] = math.ceil(most / 12)
    layout |= {"tickformat": ".0%"} if axis.share else {}
    layout |= {"range": list(axis.ends)} if axis.ends else {}
    layout |= {"rangemode": "tozero"} if axis.from_zero else {}
    return layout | ({"zeroline": True, "zerolinewidth": 2} if axis.reference == 0 else {})


def _powers_of_ten(values: Sequence[float]) -> Json:
    """Few labels, at whole powers of ten; plotly chooses where there is no more than one."""
    decades = math.log10(max(values) / min(values)) if values else 0.0
    return {"dtick": max(1, round(decades / 5)), "exponentformat": "power"} if decades >= 1.5 else {}


def _named_axis(axis: Axis, letter: str) -> Json:
    names = [plain(name) for name in axis.names]
    layout: Json = {"type": "category", "categoryorder": "array", "categoryarray": names}
    if letter == "x":
        return layout
    short = [plain(tail(name, _NAME)) for name in axis.names]
    layout |= {"autorange": "reversed", "tickmode": "array", "tickvals": names, "ticktext": short}
    return layout | {"showgrid": False}


def _values_along(figure: Figure, axis: Axis, letter: str) -> list[float | None]:
    """All places of a figure's lines along one axis."""
    lines = [
        mark.x if letter == "x" else mark.y
        for panel in figure.panels
        if (panel.x if letter == "x" else panel.y) is axis
        for mark in panel.marks
        if isinstance(mark, Line)
    ]
    return [value for values in lines for value in values]


def _height(figure: Figure) -> int | None:
    """Pixels; None for the height that the page gives to one panel."""
    named = [panel for panel in figure.panels if panel.y.names]
    if not named:
        heights = [panel.height for panel in figure.panels[:: figure.columns]]
        return None if len(heights) == 1 else round(100 + 165 * sum(heights))
    count = max(len(panel.y.names) for panel in named)
    marks = [mark for panel in named for mark in panel.marks]
    if any(isinstance(mark, HeatMap) for mark in marks):
        return max(300, 90 + 13 * count)
    if any(isinstance(mark, Bars) and mark.ends for mark in marks):
        return 160 + 34 * count
    return max(300, 130 + 18 * count)


def _rows(figure: Figure) -> int:
    return math.ceil(len(figure.panels) / figure.columns)


def _row_domain(figure: Figure, row: int) -> list[float]:
    """From the top."""
    return [round(1 - end, 4) for end in _span([panel.height for panel in figure.panels[:: figure.columns]], row)][::-1]


def _column_domain(figure: Figure, column: int) -> list[float]:
    return [round(end, 4) for end in _span([1.0] * figure.columns, column)]


def _span(sizes: Sequence[float], place: int) -> tuple[float, float]:
    room = 1 - _GAP * (len(sizes) - 1)
    start = room * sum(sizes[:place]) / sum(sizes) + _GAP * place
    return start, start + room * sizes[place] / sum(sizes)


def _key(axis: str) -> str:
    """The layout's name of an axis: of "y2" it is "yaxis2"."""
    return f"{axis[0]}axis{axis[1:]}"
