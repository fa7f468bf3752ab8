"""What pictures drawn with matplotlib have in common: figures without a display, labels. Imports no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dmqbench.results.result import printable
from dmqbench.store.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 110
_MAX_ROWS = 160
"""Layers up to which every one has its label; beyond, rows get thinner and labels fewer."""


def text(name: str) -> str:
    """Return a name from a store as matplotlib shows it letter by letter, for it reads mathematics between dollars."""
    return printable(name).replace("$", r"\$")


def save(figure: "Figure", path: Path) -> Path:
    """Write ``figure`` to the PNG file ``path``, whole or not at all, and return it."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI)
    return path


def new_figure(width: float, height: float) -> "Figure":
    """A figure that belongs to no window and no global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def tall(rows: int) -> float:
    """Height in inches at which the labels of ``rows`` can be read."""
    return 1.4 + 0.155 * min(max(rows, 8), _MAX_ROWS)


def label_rows(axes: "Axes", names: Sequence[str]) -> None:
    stride = -(-len(names) // _MAX_ROWS)
    axes.set_yticks(range(0, len(names), stride), names[::stride], fontsize=7)
