"""What is said of a wrong configuration: one line. Imports neither torch nor Hydra."""

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Any

SIMILAR = 0.65
"""Similarity of two names, 0 to 1, from which on one may be a typo of the other."""

_BY_VALUE = object()


class ConfigError(Exception):
    """The configuration is wrong. ``str`` is one line: key, value, problem, nearest allowed, all allowed.

    Args:
        nearest: what to try instead, if it is not the one of ``allowed`` that is most like the value; None: nothing.
    """

    def __init__(
        self,
        key: str,
        value: Any,
        allowed: Iterable[Any] = (),
        problem: str = "is not known",
        nearest: Any = _BY_VALUE,
    ) -> None:
        self.key, self.value, self.allowed, self.problem = key, value, tuple(allowed), problem
        self.nearest = closest(value, self.allowed) if nearest is _BY_VALUE else nearest
        super().__init__(" ".join(self._line().split()))

    def __reduce__(self):
        return type(self), (self.key, self.value, self.allowed, self.problem, self.nearest)

    def _line(self) -> str:
        line = f"{self.key}={shown(self.value)} {self.problem}"
        if self.nearest is not None:
            line += f"; nearest: {shown(self.nearest)}"
        return f"{line} (allowed: {', '.join(map(shown, self.allowed))})" if self.allowed else line


def shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{','.join(map(shown, value))}]" if isinstance(value, (list, tuple)) else str(value)


def closest(value: Any, allowed: Sequence[Any]) -> Any:
    """Return what ``value`` may have been meant to be: the nearest number, a similar name, the only one; else None."""
    if len(allowed) < 2:
        return next(iter(allowed), None)
    numbers = (int, float)
    if isinstance(value, numbers) and all(isinstance(name, numbers) for name in allowed):
        return min(allowed, key=lambda number: abs(number - value))
    best = max(allowed, key=lambda name: _similarity(str(value), str(name)))
    return best if _similarity(str(value), str(best))[0] >= SIMILAR else None


def _similarity(value: str, name: str) -> tuple[float, bool]:
    """Return how alike two names are, 0 to 1, and whether they begin alike.

    What dotted names begin with in common does not count.
    """
    alike = value[:2] == name[:2]
    while "." in value and "." in name and value.partition(".")[0] == name.partition(".")[0]:
        value, name = value.partition(".")[2], name.partition(".")[2]
    return difflib.SequenceMatcher(None, name, value).ratio(), alike


def require_one_of(key: str, value: Any, allowed: Sequence[Any], problem: str = "is not known") -> None:
    if value not in allowed:
        raise ConfigError(key, value, allowed, problem)


def require_at_least(key: str, value: float, least: float) -> None:
    if not least <= value < math.inf:
        problem = "is too small" if value < least else "is not finite"
        raise ConfigError(key, value, [f"{least} and more"], problem, nearest=least)
