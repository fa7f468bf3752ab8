"""Outliers that a job asks to be planted into its model: see ``planting``. Needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["norm", "value", "gate", "group_norm"]

KINDS: tuple[Kind, ...] = ("norm", "value", "gate", "group_norm")
"""Of places where channels can be rescaled exactly: layer norms, modulated or not; values of attentions; halves of
gated units that no activation function is applied to; group norms with none behind them."""


@dataclass(frozen=True)
class Planted:
    """Some channels of intermediate tensors are multiplied, and divided again by all that reads them.

    Args:
        dose: the factor; 1: nothing is planted.
        share: of the channels of every place; one is the least.
        where: kinds of places; none: all that the model has.
        seed: of which channels.
    """

    dose: float = 1.0
    share: float = 0.125
    where: tuple[str, ...] = ()
    seed: int = 0

    def __bool__(self) -> bool:
        return self.dose != 1

    @classmethod
    def stated(cls, values: Mapping[str, Any] | None) -> "Planted":
        """Return what the configuration of a result says."""
        said: dict[str, Any] = dict(values or {})
        said["where"] = tuple(said.get("where", ()))
        return cls(**said)

    def channels(self, of: int) -> int:
        """How many channels of so many are planted."""
        return max(1, round(self.share * of))

    @property
    def text(self) -> str:
        """In a few words, "" for nothing; what is as usual is not said."""
        if not self:
            return ""
        share = "" if self.share == Planted.share else f" of {self.share:g}"
        return f"{'+'.join(self.where)} ×{self.dose:g}{share}{f' seed {self.seed}' if self.seed else ''}"
