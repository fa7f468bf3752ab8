"""Numbers and words as they stand in a cell of a table."""

from typing import Any

from dmqbench.eval.measurement import Floor, Measurement
from dmqbench.results.result import Result, printable
from dmqbench.results.seeds import Spread

DECLARED = "†"

_LOPSIDED = 0.2
"""Share of its half by which an interval may lie off its value and still be written as ±."""


def number_text(value: float, digits: int) -> str:
    """Return ``value`` with that many significant digits."""
    if value == 0:
        return "0"
    rounded = f"{value:.{digits - 1}e}"
    mantissa, exponent = rounded.split("e")
    power = int(exponent)
    if not -3 < power < digits + 3:
        return f"{mantissa}e{power}"
    return f"{float(rounded):.{max(0, digits - 1 - power)}f}"


def value_text(measurement: Measurement, compact: bool, with_interval: bool) -> str:
    """Return a value, and half of its interval, or the interval where that lies off it."""
    value, interval = measurement.value, measurement.ci95
    if value is None:
        return "identical"
    text = number_text(value, 3 if compact else 4)
    if not interval or not value or not with_interval or interval[0] == interval[1]:
        return text
    low, high = interval
    half = (high - low) / 2
    if not compact and abs(high + low - 2 * value) > _LOPSIDED * half:
        return f"{text} [{number_text(low, 3)}, {number_text(high, 3)}]"
    return f"{text}±{number_text(half, 1 if compact else 2)}"


def floor_text(floor: Floor | None, compact: bool) -> str:
    if floor is None:
        return ""
    if floor.value is None:
        return "identical"
    short = 3 if abs(floor.value) >= 1e-3 else 2
    return number_text(floor.value, short if compact else 4)


def spread_text(spread: Spread | None, compact: bool) -> str:
    if spread is None:
        return "–"
    text = number_text(spread.mean, 3 if compact else 4)
    return f"{text}±{number_text(spread.half, 1 if compact else 2)}" if spread.half else text


def size_text(mib: float | None, compact: bool) -> str:
    if mib is None:
        return "–"
    if mib >= 100:
        return f"{mib:.0f}"
    return f"{mib:.1f}" if compact and mib >= 1 else f"{mib:.2f}"


def duration_text(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{seconds / 3600:.1f} h"


def word_text(value: Any) -> str:
    return "–" if value is None else printable(value)


def bits_text(row: Result) -> str:
    """Return the bits, marked where somebody said them and nothing here has seen them."""
    return printable(row.bits) + (DECLARED if row.declared_bits else "")
