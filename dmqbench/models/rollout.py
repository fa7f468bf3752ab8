"""Following trajectories: the one loop over network calls that the bank and the sampler share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dmqbench.data.bank import Trajectories
from dmqbench.data.noise import Stream, initial_noise, step_noise
from dmqbench.models.adapter import Adapter
from dmqbench.samplers.plan import SamplerPlan, State


class Visit(NamedTuple):
    """One network call of a rollout."""

    call: int
    before: State
    output: Tensor
    """What the network predicted, guidance included, [B, C, H, W]."""
    after: State


@torch.no_grad()
def rollout(
    adapter: Adapter,
    plan: SamplerPlan,
    *,
    stream: Stream,
    seed: int,
    indices: Sequence[int],
    guidance: float,
    perturbation: float = 0.0,
) -> Iterator[Visit]:
    """Follow the trajectories of ``indices`` from noise, or an image that is noised, to sample, call by call.

    Args:
        perturbation: relative size of a deterministic disturbance of the first state, for the numerical floor.
    """
    device = next(adapter.network.parameters()).device
    x = initial_noise(stream, seed, indices, adapter.sample_shape)
    if adapter.start is not None:
        x = plan.noised(adapter.start(stream, indices), x)
    if perturbation:
        x = x * (1 + perturbation)
    cond = {name: value.to(device) for name, value in adapter.conditioner.conditions(stream, seed, indices).items()}
    state = plan.initial(x.to(device))
    yield from rollout_from(adapter, plan, state, 0, cond, stream=stream, seed=seed, indices=indices, guidance=guidance)


@torch.no_grad()
def rollout_from(
    adapter: Adapter,
    plan: SamplerPlan,
    state: State,
    first: int,
    cond: dict[str, Tensor],
    *,
    stream: Stream,
    seed: int,
    indices: Sequence[int],
    guidance: float,
) -> Iterator[Visit]:
    """Follow trajectories on from the ``state`` before call ``first``, under the conditions ``cond``."""
    device = state.x.device
    for call in range(first, plan.network_calls):
        step = torch.full((len(indices),), call, device=device)
        output = adapter.denoise(state.x, torch.full_like(step, plan.timesteps[call]), cond, step, guidance=guidance)
        after = step_on(adapter, plan, state, output, call, stream=stream, seed=seed, indices=indices)
        yield Visit(call, state, output, after)
        state = after


def step_on(
    adapter: Adapter,
    plan: SamplerPlan,
    state: State,
    output: Tensor,
    call: int,
    *,
    stream: Stream,
    seed: int,
    indices: Sequence[int],
) -> State:
    """The state after ``call`` predicted ``output``, with the noise of a stochastic sampler drawn for ``indices``."""
    noise = None
    if plan.calls[call].sigma > 0:
        noise = step_noise(stream, seed, indices, call, adapter.sample_shape).to(state.x)
    return plan.step(state, output, call, noise)


def follow(
    adapter: Adapter,
    plan: SamplerPlan,
    *,
    stream: Stream,
    seed: int,
    indices: Sequence[int],
    guidance: float,
) -> Trajectories:
    """Follow the trajectories of ``indices`` together, one network call per step of the plan."""
    visits = list(rollout(adapter, plan, stream=stream, seed=seed, indices=indices, guidance=guidance))
    states = [visits[0].before.x, *(visit.after.x for visit in visits)]
    return Trajectories(
        x=torch.stack(states, dim=1).cpu(),
        output=torch.stack([visit.output for visit in visits], dim=1).cpu(),
        cond=adapter.conditioner.conditions(stream, seed, indices),
        timesteps=plan.timesteps,
    )


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
