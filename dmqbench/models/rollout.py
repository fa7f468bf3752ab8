"""Following trajectories: the one loop over network calls that the bank, the sampler and the stages share."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dmqbench.data.bank import CalibrationBatch, Trajectories
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


Move = Callable[[float], object]
"""Is told the share of a batch that is done, after every call of the network: one of a large model takes a minute."""


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


def chunk_names(samples: int, chunk: int) -> list[str]:
    """Return the names of the chunks that hold ``samples`` images."""
    return [chunk_name(number) for number in range(chunk_count(samples, chunk))]


@dataclass(frozen=True)
class Denoising:
    """How noise becomes samples: a denoiser, the plan of its sampler, and the guidance scale (1: none).

    A trajectory is named by its stream, seed and index, which also name the noise that a stochastic sampler draws.
    """

    adapter: Adapter
    sampler: SamplerPlan
    guidance: float = 1.0

    @property
    def branches(self) -> int:
        """Samples that a network call computes for each sample asked for: two under guidance."""
        return 1 if self.guidance == 1.0 or self.adapter.calling.embeds_guidance else 2

    @property
    def device(self) -> torch.device:
        return self.adapter.device

    def predict(self, inputs: CalibrationBatch) -> Tensor:
        """Return what the network predicts at points of trajectories, guidance included, [B, C, H, W]."""
        device = self.device
        cond = {name: value.to(device) for name, value in inputs.cond.items()}
        x, timestep, step = (part.to(device) for part in (inputs.x, inputs.timestep, inputs.step))
        scales = self.sampler.input_scales
        if any(scale != 1 for scale in scales):
            x = torch.tensor(scales, dtype=x.dtype, device=device)[step].view(-1, *(1,) * (x.ndim - 1)) * x
        return self.adapter.denoise(x, timestep, cond, step, guidance=self.guidance)

    def predict_at(self, x: Tensor, call: int, cond: Mapping[str, Tensor]) -> Tensor:
        """Return the same of samples that are all before ``call``; ``x`` and ``cond`` are on the network's device."""
        step = torch.full((len(x),), call, device=x.device)
        timestep = torch.full((len(x),), self.sampler.timesteps[call], device=x.device)
        if (scale := self.sampler.input_scales[call]) != 1:
            x = scale * x
        return self.adapter.denoise(x, timestep, cond, step, guidance=self.guidance)

    @torch.no_grad()
    def rollout(
        self, *, stream: Stream, seed: int, indices: Sequence[int], perturbation: float = 0.0
    ) -> Iterator[Visit]:
        """Follow the trajectories of ``indices`` from noise, or an image that is noised, to sample, call by call.

        Args:
            perturbation: relative size of a deterministic disturbance of the first state, for the numerical floor.
        """
        adapter, device = self.adapter, self.device
        noise = initial_noise(stream, seed, indices, adapter.sample_shape)
        start = adapter.start
        x = self.sampler.from_noise(noise) if start is None else self.sampler.noised(start(stream, indices), noise)
        if perturbation:
            x = x * (1 + perturbation)
        conditions = adapter.conditioner.conditions(stream, seed, indices)
        cond = {name: value.to(device) for name, value in conditions.items()}
        state = self.sampler.initial(x.to(device))
        yield from self.rollout_from(state, 0, cond, stream=stream, seed=seed, indices=indices)

    @torch.no_grad()
    def rollout_from(
        self,
        state: State,
        first: int,
        cond: Mapping[str, Tensor],
        *,
        stream: Stream,
        seed: int,
        indices: Sequence[int],
    ) -> Iterator[Visit]:
        """Follow trajectories on from the ``state`` before call ``first``, under the conditions ``cond``."""
        for call in range(first, self.sampler.network_calls):
            output = self.predict_at(state.x, call, cond)
            after = self.step_on(state, output, call, stream=stream, seed=seed, indices=indices)
            yield Visit(call, state, output, after)
            state = after

    def step_on(
        self, state: State, output: Tensor, call: int, *, stream: Stream, seed: int, indices: Sequence[int]
    ) -> State:
        """Return the state after ``call`` predicted ``output``, a stochastic sampler's noise drawn for ``indices``."""
        noise = self.noise(call, stream=stream, seed=seed, indices=indices)
        return self.sampler.step(state, output, call, None if noise is None else noise.to(state.x))

    def noise(self, call: int, *, stream: Stream, seed: int, indices: Sequence[int]) -> Tensor | None:
        """Return what a stochastic sampler adds after ``call``; None where nothing is added."""
        if self.sampler.calls[call].sigma == 0:
            return None
        return step_noise(stream, seed, indices, call, self.adapter.sample_shape).to(self.device)

    def follow(self, *, stream: Stream, seed: int, indices: Sequence[int], move: Move | None = None) -> Trajectories:
        """Follow the trajectories of ``indices`` together, one network call per step of the plan."""
        visits = list(self._moving(self.rollout(stream=stream, seed=seed, indices=indices), move))
        states = [visits[0].before.x, *(visit.after.x for visit in visits)]
        return Trajectories(
            x=torch.stack(states, dim=1).cpu(),
            output=torch.stack([visit.output for visit in visits], dim=1).cpu(),
            cond=self.adapter.conditioner.conditions(stream, seed, indices),
            timesteps=self.sampler.timesteps,
        )

    def sample_chunk(
        self,
        number: int,
        *,
        chunk: int,
        seed: int,
        stream: Stream = "eval",
        perturbation: float = 0.0,
        move: Move | None = None,
    ) -> Chunk:
        """Draw the samples of indices number·chunk … number·chunk + chunk − 1.

        Raises:
            FloatingPointError: a sample is not finite.
        """
        indices = range(number * chunk, (number + 1) * chunk)
        visits, state = self.rollout(stream=stream, seed=seed, indices=indices, perturbation=perturbation), None
        for visit in self._moving(visits, move):
            state = visit.after.x
        assert state is not None  # a plan has at least one call
        if not torch.isfinite(state).all():
            raise FloatingPointError(f"samples {indices.start} to {indices.stop - 1} are not finite")
        return Chunk(self.adapter.decoder.decode(state).cpu(), state.float().cpu())

    def _moving(self, visits: Iterable[Visit], move: Move | None) -> Iterator[Visit]:
        """The same visits; what comes after the last, decoding or writing, counts as one more."""
        for visit in visits:
            if move is not None:
                move((visit.call + 1) / (self.sampler.network_calls + 1))
            yield visit
