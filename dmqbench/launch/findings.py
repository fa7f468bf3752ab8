"""What a look at this machine found: one thing each, for people and for programs. Imports no torch."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["ok", "absent", "broken"]
OK, ABSENT, BROKEN = "ok", "absent", "broken"
"""``absent`` is something that can be done without; ``broken`` something that nothing runs without."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    ``advice``: what to do about it; ``facts``: what programs may want to know; ``brief``: what the table says instead
    of ``detail`` and ``advice``, in one line for all things of a group of which it is the same.
    """

    group: str
    name: str
    status: Status
    detail: str
    advice: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    brief: str = ""

    @property
    def text(self) -> str:
        return self.brief or self.detail + (f" → {self.advice}" if self.advice else "")


Check = Callable[[], Iterator[Finding]]
