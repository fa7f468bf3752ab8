"""What a figure shows, said once: panels of marks on axes, and notes. The page and the PNG files render it.

Texts are names as a store has them, letter by letter; who renders a figure makes them harmless.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

Values: TypeAlias = Sequence[float | None]

FAR_APART = 5
"""A ratio of the largest to the smallest value from which an axis of ratios is logarithmic."""


@dataclass(frozen=True)
class Axis:
    """One axis of a panel.

    Attributes:
        short: the title where there is little room.
        whole: whether all places are whole numbers, as those of network calls are.
        names: names of the places 0, 1, …; along y they are read downwards.
        ticks: places with their labels; without, whoever renders the axis chooses.
        share: whether values are shares, in percent.
        reference: a place that is marked by a line, such as that of no gain.
        word: what a place is called before its number.
    """

    title: str
    short: str = ""
    log: bool = False
    whole: bool = False
    names: tuple[str, ...] = ()
    ticks: tuple[tuple[float, str], ...] = ()
    share: bool = False
    from_zero: bool = False
    ends: tuple[float, float] | None = None
    reference: float | None = None
    word: str = ""

    @property
    def brief(self) -> str:
        return self.short or self.title


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Values with or without intervals.

    Attributes:
        ends: the interval of each value, None for none; empty without intervals.
        texts: what is said of each value; without ``precision`` it says the value too.
        jobs: the job of each value.
    """

    ends: Sequence[tuple[float, float] | None] = ()
    texts: Sequence[str] = ()
    precision: str = ".3g"
    jobs: Sequence[str] = ()


@dataclass(frozen=True)
class Line(Mark):
    """Points (x, y), joined or not; None is a gap.

    Attributes:
        name: its entry in the legend, the same in every panel; "" for none.
        dash: its style, by number; 0 is solid.
        stepped: whether each value holds around its place, or until the next one.
        faint: whether it stands behind a line that sums it up.
        labels: words beside each point.
    """

    name: str
    x: Values
    y: Values
    colour: str
    joined: bool = True
    points: bool = True
    dash: int = 0
    stepped: Literal["", "mid", "post"] = ""
    faint: bool = False
    symbol: int = 0
    labels: Sequence[str] = ()

    @property
    def size(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Bars(Mark):
    """One bar along x for each name of the panel's y axis; bars of several marks follow each other."""

    name: str
    lengths: Values
    colours: tuple[str, ...]
    """One for all, or one for each."""

    @property
    def size(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class HeatMap:
    """A value for each name of y (outer) and x (inner), on a logarithmic scale of colours or ``reach`` around 1."""

    values: Sequence[Values]
    title: str
    short: str
    reach: float | None = None
    texts: Sequence[Sequence[str]] = ()

    @property
    def size(self) -> int:
        return sum(map(len, self.values))


@dataclass(frozen=True)
class Panel:
    """Marks on two axes; ``height`` is relative to that of other panels."""

    marks: tuple[Line | Bars | HeatMap, ...]
    x: Axis
    y: Axis
    title: str = ""
    height: float = 1.0


@dataclass(frozen=True)
class Figure:
    """Panels in rows of ``columns``; those of a column or row that hold the same ``Axis`` share it.

    Attributes:
        description: what is seen, for who cannot see it.
        narrow: whether half the width of the page is enough.
    """

    title: str
    panels: tuple[Panel, ...]
    notes: tuple[str, ...] = ()
    columns: int = 1
    description: str = ""
    narrow: bool = False

    @property
    def size(self) -> int:
        """How many numbers its marks hold."""
        return sum(mark.size for panel in self.panels for mark in panel.marks)


def joined(figures: Iterable[Figure], columns: int = 1) -> Figure:
    """Return one figure with the panels and notes of all, which has the first one's title."""
    first, *others = figures
    panels = tuple(panel for figure in (first, *others) for panel in figure.panels)
    notes = tuple(note for figure in (first, *others) for note in figure.notes)
    return replace(first, panels=panels, notes=notes, columns=columns)


def reaches(values: Values, ends: Sequence[tuple[float, float] | None]) -> tuple[Values, Values]:
    """Return how far each interval reaches below and above its value; None where there is none."""
    both = [
        (None, None) if value is None or interval is None else (value - interval[0], interval[1] - value)
        for value, interval in zip(values, ends, strict=True)
    ]
    return [below for below, _ in both], [above for _, above in both]


def segments(
    ends: Iterable[tuple[float, float]], values: Values, name: str, colour: str, texts: Sequence[str] = ()
) -> Line:
    """A value over the stretch of x between each pair of ``ends``, with gaps between them."""
    places = [
        (place, value)
        for pair, value in zip(ends, values, strict=True)
        for place, value in (*((end, value) for end in pair), (None, None))
    ]
    return Line(
        name, [x for x, _ in places], [y for _, y in places], colour, texts=[text for text in texts for _ in range(3)]
    )


def calls_axis() -> Axis:
    return Axis("network calls made", whole=True, word="call")


def times_axis(times: Sequence[float | str], title: str = "timestep of the call, from noise to image") -> Axis:
    """An axis of network calls that is labelled with their timesteps."""
    return Axis(title, ticks=thinned([time if isinstance(time, str) else f"{time:g}" for time in times]))


def thinned(labels: Sequence[str], at_most: int = 12) -> tuple[tuple[float, str], ...]:
    """Return places with their labels; the last one has a label, whatever the stride."""
    stride = max(1, -(-len(labels) // at_most))
    return tuple((at, labels[at]) for at in range((len(labels) - 1) % stride, len(labels), stride))


def ratio_axis(title: str, short: str, values: Iterable[float | None]) -> Axis:
    """An axis of ratios with a line at 1, logarithmic where values would otherwise lie on each other."""
    known = [value for value in values if value]
    return Axis(title, short, log=bool(known) and max(known) > FAR_APART * min(known), reference=1.0)


def log_ticks(values: Iterable[float | None]) -> tuple[tuple[float, str], ...]:
    """Return places with labels for a logarithmic axis that spans less than one and a half powers of ten.

    They are 1, 2 and 5 times powers of ten, or whole steps where there are not two of those; none for a longer axis.
    """
    known = [value for value in values if value and value > 0]
    low, high = min(known, default=1.0), max(known, default=1.0)
    if not known or high > 10**1.5 * low:
        return ()
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [tick for power in powers for step in (1, 2, 5) if low <= (tick := step * 10.0**power) <= high]
    if len(ticks) < 2:
        step = 10.0 ** math.floor(math.log10(high - low or low))
        ticks = [step * place for place in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return tuple((tick, f"{tick:.5g}") for tick in ticks)


def tail(name: str, letters: int = 40) -> str:
    """Return the last letters of a layer's name, which tell it from its neighbours."""
    return name if len(name) <= letters else f"…{name[1 - letters :]}"


def legend_name(name: str, letters: int) -> str:
    """Return the name of a mark as a legend has room for it; what is said in words keeps its beginning."""
    return tail(name, letters) if " " not in name else head(name, letters + 10)


def head(name: str, letters: int = 44) -> str:
    return name if len(name) <= letters else f"{name[: letters - 1]}…"
