"""What a value in a model's configuration may be."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """What a value may be: for people, and as a question."""

    allowed: tuple[Any, ...]
    fits: Callable[[Any], Any]


def words(*names: Any) -> Kind:
    return Kind(names, lambda value: any(type(value) is type(name) and value == name for name in names))


def whole(least: int) -> Kind:
    return Kind((f"a whole number from {least}",), lambda value: type(value) is int and value >= least)


def number(least: float = -math.inf, most: float = math.inf) -> Kind:
    said = "a number" if math.isinf(least) else f"a number from {least:g}"
    return Kind(
        (said if math.isinf(most) else f"{said} to {most:g}",),
        lambda value: type(value) in (int, float) and math.isfinite(value) and least <= value <= most,
    )


def list_of(kind: Kind) -> Kind:
    said = ", ".join(map(str, kind.allowed))
    return Kind((f"a list of: {said}",), lambda value: isinstance(value, list) and value and all(map(kind.fits, value)))


def either(kind: Kind, other: Kind) -> Kind:
    return Kind((*kind.allowed, *other.allowed), lambda value: kind.fits(value) or other.fits(value))


NULL, FLAG, COUNT = words(None), words(False, True), whole(1)

SIDES = either(COUNT, Kind(("two of them",), lambda size: list_of(COUNT).fits(size) and len(size) == 2))
"""Height and width, or the one of a square."""
