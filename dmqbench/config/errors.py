"""What is said of a wrong configuration: one line. Imports neither torch nor Hydra."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


class ConfigError(Exception):
    """The configuration is wrong. ``str`` is one line: key, value, problem, nearest allowed, all allowed.

    Args:
        nearest: what to try instead, if it is not the one of ``allowed`` that is most like the value.
    """

    def __init__(
        self,
        key: str,
        value: Any,
        allowed: Iterable[Any] = (),
        problem: str = "is not known",
        nearest: Any = None,
    ) -> None:
        self.key, self.value, self.allowed, self.problem = key, value, tuple(allowed), problem
        self.nearest = closest(value, self.allowed) if nearest is None else nearest
        super().__init__(" ".join(self._line().split()))

    def __reduce__(self):
        return type(self), (self.key, self.value, self.allowed, self.problem, self.nearest)

    def _line(self) -> str:
        line = f"{self.key}={_shown(self.value)} {self.problem}"
        if self.nearest is not None:
            line += f"; nearest: {_shown(self.nearest)}"
        return f"{line} (allowed: {', '.join(map(_shown, self.allowed))})" if self.allowed else line


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{','.join(map(_shown, value))}]" if isinstance(value, (list, tuple)) else str(value)


def closest(value: Any, allowed: Sequence[Any]) -> Any:
    """The one of ``allowed`` that is most like ``value``: the nearest number, or the most similar name."""
    if not allowed:
        return None
    numbers = (int, float)
    if isinstance(value, numbers) and all(isinstance(name, numbers) for name in allowed):
        return min(allowed, key=lambda number: abs(number - value))
    by_name = {str(name): name for name in allowed}
    return by_name[difflib.get_close_matches(str(value), by_name, n=1, cutoff=0.0)[0]]


def require_one_of(
    key: str, value: Any, allowed: Sequence[Any], to_come: Sequence[Any] = (), problem: str = "is not known"
) -> None:
    if value not in allowed:
        raise ConfigError(key, value, allowed, "is not built yet" if value in to_come else problem)


def require_at_least(key: str, value: float, least: float) -> None:
    if not value >= least:
        raise ConfigError(key, value, [f"{least} and more"], "is too small", nearest=least)
