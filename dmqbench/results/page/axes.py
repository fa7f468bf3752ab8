"""Parts of plotly figures that all of the page's have in common: axes, numbers, names."""

import math
from collections.abc import Iterable
from html import escape
from typing import Any

from dmqbench.results.figure import round_ticks
from dmqbench.results.result import printable

Json = dict[str, Any]
"""Plotly's."""

_DIGITS = 5


def plain(text: str) -> str:
    """Return a name from a store as plotly shows it letter by letter, for plotly reads a little HTML."""
    return escape(printable(text), quote=False)


def plain_axis(title: str) -> Json:
    return {"title": {"text": title, "standoff": 8}}


def calls_axis(count: int) -> Json:
    return plain_axis("network calls made") | {"dtick": math.ceil(count / 12)}


def log_axis(title: str, values: Iterable[float | None]) -> Json:
    """A logarithmic axis with few labels: whole powers of ten, or 1, 2 and 5 where there is no more than one of those.

    Where there are fewer than two labels by either rule, plotly chooses.
    """
    values = list(values)
    known = [value for value in values if value]
    ticks = round_ticks(known)
    if known and not ticks and (decades := math.log10(max(known) / min(known))) >= 1.5:
        return plain_axis(title) | {"type": "log", "dtick": max(1, round(decades / 5)), "exponentformat": "power"}
    labels = {"tickvals": ticks, "ticktext": [f"{tick:.3g}" for tick in ticks]} if ticks else {}
    return plain_axis(title) | {"type": "log"} | labels


def positive(value: float) -> float | None:
    """Zero has no place on a logarithmic axis."""
    return rounded(value) if value > 0 else None


def rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")
