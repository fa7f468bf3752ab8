"""What the events of a record become in wandb: rows of named numbers. Pure functions."""

import re
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from dmqbench.tracking.record import RESERVED


def key(*parts: str) -> str:
    """Name of a value in wandb, whose queries know only such letters."""
    return "/".join(re.sub(r"[^\w/-]", "_", part, flags=re.ASCII) for part in parts)


def axes_of(event: Mapping[str, Any]) -> tuple[str, str] | None:
    """(Pattern of names, name of their x-axis) of an event that has an axis."""
    if event["event"] == "curve":
        return f"{key(event['chart'])}/*", key(event["chart"], event["over"])
    if event.get("step") is not None:
        return f"{key(event['event'])}/*", key(event["event"], "step")
    return None


def points_of(event: Mapping[str, Any]) -> list[dict[str, float]]:
    """Rows of numbers that an event is in a run's history: one for each point of a curve, one or none otherwise."""
    if event["event"] == "curve":
        return _curve_points(event)
    step = event.get("step")
    values = {name: value for name, value in event.items() if name not in RESERVED and _is_number(value)}
    numbers = {key(event["event"], name): value for name, value in values.items()}
    if not numbers:
        return []
    return [numbers if step is None else {**numbers, key(event["event"], "step"): step}]


def _curve_points(event: Mapping[str, Any]) -> list[dict[str, float]]:
    chart, lines = event["chart"], event["lines"]
    rows = []
    for x, *values in zip_longest(event["at"], *(line["values"] for line in lines)):
        if not _is_number(x):
            break
        row = {key(chart, line["name"]): y for line, y in zip(lines, values, strict=True) if _is_number(y)}
        if row:
            rows.append({**row, key(chart, event["over"]): x})
    return rows


def flat(values: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> dict[str, Any]:
    """Nested values under names like ``metrics/psnr/value``; long lists are left out."""
    named: dict[str, Any] = {}
    for name, value in values.items():
        here = (*prefix, str(name))
        if isinstance(value, Mapping):
            named |= flat(value, here)
        elif value is not None and not (isinstance(value, list) and len(value) > 2):
            named[key(*here)] = value
    return named


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float))
