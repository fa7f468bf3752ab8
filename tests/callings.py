"""Random conditions for the networks of ``tiny``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tiny import CONTEXT, POOLED, TOKENS
from torch import Tensor

STREAMS = ("cal", "val", "eval")
TEXT = {"encoder_hidden_states": (TOKENS, CONTEXT)}
JOINT = TEXT | {"pooled_projections": (POOLED,)}
SDXL = TEXT | {"text_embeds": (POOLED,), "time_ids": (6,)}
"""Conditions of a sample, and their shapes."""


@dataclass(frozen=True)
class RandomConditions:
    """Tensors of given shapes that depend on stream and index alone; of masks the shape is one number."""

    shapes: Mapping[str, tuple[int, ...]]

    def conditions(self, stream: str, seed: int, indices: Sequence[int]) -> dict[str, Tensor]:
        samples = [self._sample(1000 * STREAMS.index(stream) + index) for index in indices]
        return {name: torch.stack([sample[name] for sample in samples]) for name in self.shapes}

    def _sample(self, number: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(number)
        return {
            name: (torch.arange(TOKENS) <= number % TOKENS).float()
            if name.endswith("mask")
            else torch.randn(shape, generator=generator)
            for name, shape in self.shapes.items()
        }

    def null(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.ones_like(value) for name, value in cond.items()}

    def example(self, batch: int, device: Any) -> dict[str, Tensor]:
        return self.null(self.conditions("cal", 0, range(batch)))
