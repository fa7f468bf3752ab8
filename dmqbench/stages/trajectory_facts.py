"""What the training of a span of network calls has reached, as a stage keeps and reports it."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dmqbench.calibration.windows import Span


@dataclass(frozen=True)
class SpanFacts:
    """The best iteration, agreement with the exact gradient, and held-out errors of the groups of a span."""

    best_iteration: float
    cosine: float
    ratio: float
    """Of the gradient's norm over that of the exact one."""
    before: list[float]
    after: list[float]

    @classmethod
    def of(cls, values: Tensor) -> "SpanFacts":
        """Return what ``to_tensor`` wrote."""
        best, cosine, ratio, *errors = values.tolist()
        groups = len(errors) // 2
        return cls(best, cosine, ratio, errors[:groups], errors[groups:])

    def to_tensor(self) -> Tensor:
        values = [self.best_iteration, self.cosine, self.ratio, *self.before, *self.after]
        return torch.tensor(values, dtype=torch.float64)

    def to_json(self, span: Span) -> dict[str, Any]:
        return {
            "groups": [[group.start, group.stop - 1] for group in span.groups],
            "best_iteration": int(self.best_iteration),
            "gradient_cosine": self.cosine if math.isfinite(self.cosine) else None,
            "gradient_ratio": self.ratio if math.isfinite(self.ratio) else None,
            "error_before": self.before,
            "error_after": self.after,
        }
