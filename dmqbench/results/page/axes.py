"""Parts of plotly figures that all of the page's have in common: axes, numbers, names."""

import math
from collections.abc import Iterable
from html import escape
from typing import Any

from dmqbench.results.result import printable

Figure = dict[str, Any]


_DIGITS = 5


def plain(text: str) -> str:
    """Return a name from a store as plotly shows it letter by letter, for plotly reads a little HTML."""
    return escape(printable(text), quote=False)


def plain_axis(title: str) -> dict[str, Any]:
    return {"title": {"text": title, "standoff": 8}}


def calls_axis(count: int) -> dict[str, Any]:
    return plain_axis("network calls made") | {"dtick": math.ceil(count / 12)}


def log_axis(title: str, values: Iterable[float | None]) -> dict[str, Any]:
    """A logarithmic axis with few labels: whole powers of ten, or 1, 2 and 5 where there is no more than one of those.

    Where there are fewer than two labels by either rule, plotly chooses.
    """
    known = [value for value in values if value]
    low, high = (min(known), max(known)) if known else (1.0, 1.0)
    decades = math.log10(high / low)
    if decades >= 1.5:
        return plain_axis(title) | {"type": "log", "dtick": max(1, round(decades / 5)), "exponentformat": "power"}
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [tick for power in powers for step in (1, 2, 5) if low / 1.3 <= (tick := step * 10.0**power) <= high * 1.3]
    labels = {"tickvals": ticks, "ticktext": [f"{tick:.3g}" for tick in ticks]} if len(ticks) > 1 else {}
    return plain_axis(title) | {"type": "log"} | labels


def short_name(name: str) -> str:
    return name if len(name) <= 34 else f"…{name[-33:]}"


def positive(value: float) -> float | None:
    """Zero has no place on a logarithmic axis."""
    return rounded(value) if value > 0 else None


def rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")
