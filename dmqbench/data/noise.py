"""Noise and labels as functions of (stream, seed, index): no global random state, no dependence on batches.

Streams keep calibration (``cal``), tuning (``val``) and evaluation (``eval``) apart: they never share a draw.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Stream = Literal["cal", "val", "eval"]


def derived_seed(*key: str | int) -> int:
    """Return 63 bits of the sha256 of the key's canonical JSON."""
    digest = hashlib.sha256(json.dumps(["dmqbench/1", *key], separators=(",", ":")).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*key: str | int) -> torch.Generator:
    """Return a CPU generator seeded from ``key``; results are the same on every machine."""
    return torch.Generator().manual_seed(derived_seed(*key))


def _normal(keys: Sequence[tuple[str | int, ...]], shape: Sequence[int]) -> Tensor:
    return torch.stack([torch.randn(tuple(shape), generator=generator(*key)) for key in keys])


def initial_noise(stream: Stream, seed: int, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Return x_T ~ N(0, I) of the given sample indices, [B, *shape]."""
    return _normal([(stream, seed, index) for index in indices], shape)


def step_noise(stream: Stream, seed: int, indices: Sequence[int], call: int, shape: Sequence[int]) -> Tensor:
    """Return the noise that a stochastic sampler adds after network call ``call``, [B, *shape]."""
    return _normal([(stream, seed, index, call) for index in indices], shape)


def draw_labels(stream: Stream, seed: int, indices: Sequence[int], classes: int, balanced: bool = True) -> Tensor:
    """Return labels 0..classes−1, int64 [B]: drawn, or for ``eval`` in turn (index mod classes) where ``balanced``."""
    if stream == "eval" and balanced:
        return torch.tensor([index % classes for index in indices])
    keys = [("label", stream, seed, index) for index in indices]
    return torch.cat([torch.randint(classes, (1,), generator=generator(*key)) for key in keys])


def draw_batch(seed: int, stage: str, unit: str, iteration: int, population: int, size: int) -> Tensor:
    """Return ``size`` indices into ``population`` without repeats (all of them if there are fewer), int64.

    A calibration batch is a function of its coordinates alone, so that a resumed stage sees the same ones.
    """
    return torch.randperm(population, generator=generator("batch", seed, stage, unit, iteration))[:size]
