"""Random conditions for the networks of ``tiny``, and how those are called that no family calls yet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, PixArtTransformer2DModel
from tiny import CONTEXT, POOLED, TOKENS
from torch import Tensor

from dmqbench.models.families.family import Calling

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


@dataclass(frozen=True)
class TinyCalling(Calling):
    """How a network of ``tiny`` is called, as its pipeline does; Flux reads pixels as tokens."""

    network: Any

    def arguments(self, x: Tensor, timestep: Tensor, cond: Mapping[str, Tensor]) -> tuple[tuple[Any, ...], dict]:
        kwargs: dict[str, Any] = {**cond, "timestep": timestep, "return_dict": False}
        if "text_embeds" in cond:
            kwargs["added_cond_kwargs"] = {name: kwargs.pop(name) for name in ("text_embeds", "time_ids")}
        elif isinstance(self.network, PixArtTransformer2DModel):
            kwargs["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
        elif isinstance(self.network, FluxTransformer2DModel):
            places = torch.cartesian_prod(torch.zeros(1), *(torch.arange(float(side)) for side in x.shape[2:]))
            kwargs |= {"img_ids": places, "txt_ids": torch.zeros(TOKENS, 3), "guidance": torch.full((len(x),), 3.5)}
            return (x.flatten(2).transpose(1, 2),), kwargs | {"timestep": timestep / 1000}
        return (x,), kwargs

    def prediction(self, output: Any, x: Tensor) -> Tensor:
        out = output[0]
        return out.transpose(1, 2).reshape(x.shape) if out.ndim == 3 else out
