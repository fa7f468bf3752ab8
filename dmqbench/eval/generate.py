"""Sampling in canonical chunks.

A quantized network amplifies a last-bit difference, and a batch of another size rounds differently. So samples are
always computed in chunks of the same indices, padded to full size: bit-identical whatever the order, shard, worker or
number asked for.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dmqbench.data.noise import Stream
from dmqbench.models.adapter import Adapter
from dmqbench.models.rollout import rollout
from dmqbench.samplers.plan import SamplerPlan


@dataclass(frozen=True)
class Chunk:
    """Samples of consecutive indices."""

    images: Tensor
    """uint8 [B, C, H, W]."""
    state: Tensor
    """Final sampler state before decoding, float32 [B, C, H, W]."""

    def to_tensors(self) -> dict[str, Tensor]:
        return {"images": self.images.contiguous(), "state": self.state.contiguous()}


def chunk_count(samples: int, chunk: int) -> int:
    """Number of chunks that hold ``samples`` images."""
    return -(-samples // chunk)


def chunk_name(number: int) -> str:
    return f"chunk_{number:05d}.safetensors"


def sample_chunk(
    adapter: Adapter,
    plan: SamplerPlan,
    number: int,
    *,
    chunk: int,
    seed: int,
    guidance: float,
    stream: Stream = "eval",
    perturbation: float = 0.0,
) -> Chunk:
    """Draw the samples of indices number·chunk … number·chunk + chunk − 1.

    Raises:
        FloatingPointError: a sample is not finite.
    """
    indices = range(number * chunk, (number + 1) * chunk)
    state = None
    for visit in rollout(
        adapter,
        plan,
        stream=stream,
        seed=seed,
        indices=indices,
        guidance=guidance,
        perturbation=perturbation,
    ):
        state = visit.after.x
    assert state is not None  # a plan has at least one call
    if not torch.isfinite(state).all():
        raise FloatingPointError(f"samples {indices.start} to {indices.stop - 1} are not finite")
    return Chunk(adapter.decoder.decode(state).cpu(), state.float().cpu())
