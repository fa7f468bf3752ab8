"""What an error made at one network call does to the final image: equal errors at every call, one call at a time.

A property of the full-precision model and its sampler: no quantizer takes part. Measured on the bank's validation
trajectories, whose states and outputs are recorded, so only the calls after the error are computed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from dmqbench.anatomy.recorded import batches, require_same_plan, spread_calls
from dmqbench.data.bank import Trajectories
from dmqbench.data.noise import Stream, generator
from dmqbench.eval.paired import psnr
from dmqbench.models.rollout import Denoising
from dmqbench.samplers.plan import SamplerPlan, State

STREAM: Stream = "val"
RELATIVE_RMS = 0.1
"""Of the error to the prediction: about what four bits do to a network, and still small."""

Values = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Sensitivity:
    """The final state's error after an error of the network at one call, for K calls and N trajectories.

    Attributes:
        relative_rms: RMS of the error over the RMS of the prediction that it was added to.
        calls: at which calls it was added, [K]; ``timesteps`` are theirs.
        injected: mean squared error of the state right after the call, [K][N]: the sampler's gain squared times the
            error's power, except where the sampler clips.
        mse: mean squared error of the final state, [K][N].
        psnr: in dB of the decoded uint8 images, [K][N]; None where identical.
    """

    relative_rms: float
    calls: tuple[int, ...]
    timesteps: tuple[float, ...]
    injected: Values
    mse: Values
    psnr: tuple[tuple[float | None, ...], ...]

    @property
    def trajectories(self) -> int:
        return len(self.mse[0])

    def to_json(self) -> dict[str, Any]:
        """Means over the trajectories by name, the PSNR's over those that differ, and every trajectory's values."""
        return {
            "stream": STREAM,
            "relative_rms": self.relative_rms,
            "trajectories": self.trajectories,
            "calls": list(self.calls),
            "timesteps": list(self.timesteps),
            "injected": [fmean(row) for row in self.injected],
            "mse": [fmean(row) for row in self.mse],
            "psnr": [_mean(row) for row in self.psnr],
            "per_trajectory": {"mse": [list(row) for row in self.mse], "psnr": [list(row) for row in self.psnr]},
        }


@torch.no_grad()
def sensitivity(
    denoising: Denoising,
    trajectories: Trajectories,
    *,
    seed: int,
    chunk: int,
    members: int | None = None,
    calls: Sequence[int] | None = None,
    relative_rms: float = RELATIVE_RMS,
    advance: Callable[[], None] = lambda: None,
) -> Sensitivity:
    """Add Gaussian noise to the prediction at one call, follow the sampler to the end, and compare; for each call.

    The noise of a trajectory has the same direction at every call, so that calls differ in nothing but their place;
    its RMS is exactly ``relative_rms`` times that of the prediction. It costs one network call per later call: with
    all T calls, T (T − 1) / 2 of them per batch.

    Args:
        denoising: of the full-precision network, or one whose quantizers are off.
        trajectories: its recorded ones of the stream ``val``, indices 0..N−1, made with ``seed`` in batches of
            ``chunk``; ``members`` says how many of them are followed, all by default.
        calls: in rising order; by default all, or 20 spread evenly.
        relative_rms: > 0; ``advance`` is called after each batch and call.

    Raises:
        ValueError: the trajectories follow another plan, or a call is not in it.
        FloatingPointError: a final state is not finite.
    """
    plan = denoising.sampler
    calls = spread_calls(plan.network_calls) if calls is None else tuple(calls)
    require_same_plan(denoising, trajectories)
    _check(plan, calls, relative_rms)
    count = len(trajectories) if members is None else min(members, len(trajectories))
    effects: dict[int, list[tuple[float, float, float | None]]] = {call: [] for call in calls}
    for batch in batches(count, chunk):
        run = _Batch(denoising, trajectories, batch, seed)
        for call, state in run.states_before(calls):
            effects[call] += run.effects(state, call, relative_rms)
            advance()
    by_kind: Any = zip(*(zip(*of_call, strict=True) for of_call in effects.values()), strict=True)
    return Sensitivity(relative_rms, calls, tuple(plan.timesteps[call] for call in calls), *by_kind)


def _check(plan: SamplerPlan, calls: Sequence[int], relative_rms: float) -> None:
    if not calls or any(low >= high for low, high in pairwise((-1, *calls, plan.network_calls))):
        raise ValueError(f"calls {list(calls)}: allowed are 0 to {plan.network_calls - 1}, rising")
    if not relative_rms > 0:
        raise ValueError(f"relative_rms={relative_rms}: allowed are positive numbers")


class _Batch:
    """Trajectories that are followed together, on the network's device."""

    def __init__(self, denoising: Denoising, trajectories: Trajectories, members: Sequence[int], seed: int) -> None:
        rows, device = torch.tensor(members), denoising.device
        self.denoising, self.members, self.seed = denoising, members, seed
        self.x, self.output = (values[rows].to(device) for values in (trajectories.x, trajectories.output))
        self.cond = {name: value[rows].to(device) for name, value in trajectories.cond.items()}
        self.image = denoising.adapter.decoder.decode(self.x[:, -1]).cpu()
        shape = self.x.shape[2:]
        keys = [("sensitivity", STREAM, seed, index) for index in members]
        noise = torch.stack([torch.randn(shape, generator=generator(*key)) for key in keys]).to(self.x)
        self.direction = noise / _rms(noise)

    def states_before(self, calls: Sequence[int]) -> Iterator[tuple[int, State]]:
        """The full-precision states before ``calls``, with their histories, from the recorded outputs."""
        state = self.denoising.sampler.initial(self.x[:, 0])
        for call in range(calls[-1] + 1):
            if call in calls:
                yield call, state
            state = self._step(state, self.output[:, call], call)

    def effects(self, state: State, call: int, relative_rms: float) -> Iterator[tuple[float, float, float | None]]:
        """Of an error at ``call`` on every trajectory: on the next state, on the final one, and the images' PSNR."""
        after = self.disturbed(state, call, relative_rms)
        last = self.finished(after, call + 1)
        images = self.denoising.adapter.decoder.decode(last.x).cpu()
        final = self.errors(last, self.denoising.sampler.network_calls)
        return zip(self.errors(after, call + 1), final, psnr(images, self.image), strict=True)

    def disturbed(self, state: State, call: int, relative_rms: float) -> State:
        """The state after ``call``, whose recorded output is off by ``relative_rms`` of its own RMS."""
        output = self.output[:, call]
        return self._step(state, output + relative_rms * _rms(output) * self.direction, call)

    def finished(self, state: State, first: int) -> State:
        """The final state, with the network at calls ``first`` and later."""
        for visit in self.denoising.rollout_from(state, first, self.cond, **self._source):
            state = visit.after
        if not torch.isfinite(state.x).all():
            raise FloatingPointError(f"an error at call {first - 1} made a final state that is not finite")
        return state

    def errors(self, state: State, place: int) -> list[float]:
        """Mean squared difference of each trajectory from the recorded state ``place``."""
        return (state.x.double() - self.x[:, place].double()).square().flatten(1).mean(dim=1).tolist()

    def _step(self, state: State, output: Tensor, call: int) -> State:
        return self.denoising.step_on(state, output, call, **self._source)

    @property
    def _source(self) -> dict[str, Any]:
        """Whose noise a stochastic sampler draws."""
        return {"stream": STREAM, "seed": self.seed, "indices": self.members}


def _rms(values: Tensor) -> Tensor:
    """Of each sample, in the shape of the samples for broadcasting."""
    return values.flatten(1).square().mean(dim=1).sqrt().view(-1, *[1] * (values.dim() - 1))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
