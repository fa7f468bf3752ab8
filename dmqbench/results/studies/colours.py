"""Colours of methods, exponents, bits and verdicts, the same in every figure."""

PALETTE = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#44bb99", "#997700", "#7f7fff")
GREY = "#8a8a92"
INK = "#222226"

MAIN, SECOND, THIRD, LIGHT = PALETTE[0], PALETTE[1], PALETTE[2], PALETTE[4]

WHEN = {"before": GREY, "after": MAIN}
"""Of what was so before and after calibration."""

VERDICTS = {"better": PALETTE[2], "worse": PALETTE[1], "cannot tell": GREY}

POWER_COLOURS = ("#c9cbd3", "#99c1e8", "#4477aa", "#1f3b66", "#0b1a33")
"""Of the exponents 0, −1, …; darker is finer."""


def power_colour(exponent: int) -> str:
    return POWER_COLOURS[min(-exponent, len(POWER_COLOURS) - 1)]


BIT_COLOURS = ("#ee8866", "#d5d8e0", "#7fa9d4", "#4477aa", "#2f66a3", "#1f4a80", "#14325b", "#0b1d38")
"""Of rows of 1, 2, … 8 bits."""
