"""A sampler as a table of coefficients and a pure step."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dmqbench.samplers.calls import Call
from dmqbench.samplers.ddim import ddim_calls
from dmqbench.samplers.ddpm import ddpm_calls
from dmqbench.samplers.dpmpp import dpmpp_calls
from dmqbench.samplers.pndm import pndm_calls
from dmqbench.samplers.schedule import NoiseSchedule
from dmqbench.samplers.spec import SamplerSpec
from dmqbench.samplers.timesteps import plan_timesteps

CallBuilder = Callable[[SamplerSpec, Sequence[int], Sequence[float]], tuple[Call, ...]]
BUILDERS: dict[str, CallBuilder] = {
    "ddim": ddim_calls,
    "ddpm": ddpm_calls,
    "dpmpp": dpmpp_calls,
    "pndm": pndm_calls,
}


class State(NamedTuple):
    """All that a sampler remembers between two network calls.

    Attributes:
        x: what the next call of the network sees, [B, ...].
        anchor: the state that the previous update started from; a Runge-Kutta stage starts from it again.
        history: outputs of earlier calls that are still needed, newest first.
    """

    x: Tensor
    anchor: Tensor
    history: tuple[Tensor, ...]

    @classmethod
    def joined(cls, states: Sequence["State"]) -> "State":
        """Return the states of all samples as one."""
        return cls(
            torch.cat([state.x for state in states]),
            torch.cat([state.anchor for state in states]),
            tuple(torch.cat(outputs) for outputs in zip(*(state.history for state in states), strict=True)),
        )

    def chosen(self, index: Tensor, device: torch.device) -> "State":
        """Return the state of the samples ``index``, on the device."""

        def pick(tensor: Tensor) -> Tensor:
            return tensor[index.to(tensor.device)].to(device)

        return State(pick(self.x), pick(self.anchor), tuple(pick(output) for output in self.history))


@dataclass(frozen=True)
class SamplerPlan:
    """A sampler's table: one ``Call`` per network call, in order."""

    spec: SamplerSpec
    schedule: NoiseSchedule
    calls: tuple[Call, ...]

    @property
    def timesteps(self) -> tuple[int, ...]:
        """The timestep of every network call."""
        return tuple(call.timestep for call in self.calls)

    @property
    def network_calls(self) -> int:
        """How often the network is called for one sample (once per call also with guidance)."""
        return len(self.calls)

    @property
    def gains(self) -> tuple[float, ...]:
        """Per call, ∂x_next/∂(its network output): what an error of the network does to the next state."""
        return tuple(call.gain for call in self.calls)

    def initial(self, x: Tensor) -> State:
        """Return the state before the first call, from noise x ~ N(0, I), [B, ...]."""
        return State(x, x, ())

    def noised(self, clean: Tensor, noise: Tensor) -> Tensor:
        """Return √ᾱ x0 + √(1-ᾱ) z at the timestep of the first call: where the editing of x0 = ``clean`` starts.

        Args:
            clean: x0, [B, ...].
            noise: z ~ N(0, I) of the same shape.
        """
        alpha = self.schedule.alphas_cumprod()[self.timesteps[0]].item()
        return math.sqrt(alpha) * clean + math.sqrt(1 - alpha) * noise

    def step(self, state: State, model_output: Tensor, index: int, noise: Tensor | None = None) -> State:
        """Return the state after network call ``index`` gave ``model_output``.

        Pure: the result depends on the arguments alone and none of them is changed. So a group of calls can
        be run, replayed or differentiated from any state that stood before its first call, and two models can
        start from the same one. That state can also be had without the network, by stepping through the
        recorded outputs of the calls before. Differentiable in all tensors, on any device and dtype.

        Args:
            state: the state before call ``index``.
            model_output: the network's output at (state.x, timesteps[index]), the shape of state.x.
            index: 0 .. network_calls - 1.
            noise: z ~ N(0, I) in the shape of state.x; needed where ``calls[index].sigma > 0``, else unused.

        Raises:
            IndexError: there is no such call.
            ValueError: the state stood before another call, the output has another shape, or noise is
                missing.
        """
        call = self._fitting_call(state, model_output, index, noise)
        base = state.x if call.base == "current" else state.anchor
        outputs = (call.output.of(state.x, model_output), *state.history)
        x = call.a * base
        for weight, output in zip(call.b, outputs, strict=True):
            if weight != 0:
                x = x + weight * output
        if call.clip is not None:
            clean = call.clip.clean.of(state.x, model_output)
            x = x + call.clip.weight * clean.clamp(-call.clip.limit, call.clip.limit)
        if noise is not None and call.sigma > 0:
            x = x + call.sigma * noise
        return State(x, base, tuple(outputs[position] for position in call.keep))

    def _fitting_call(self, state: State, model_output: Tensor, index: int, noise: Tensor | None) -> Call:
        """Return call ``index``, or raise where the other arguments do not belong to it."""
        if not 0 <= index < len(self.calls):
            raise IndexError(f"call {index}: allowed are 0 to {len(self.calls) - 1}")
        call = self.calls[index]
        arrived, needed = len(state.history), len(call.b) - 1
        if arrived != needed:
            raise ValueError(
                f"call {index} needs a history of {needed} outputs, this state has {arrived}: "
                "it stood before another call"
            )
        if model_output.shape != state.x.shape:
            got, allowed = list(model_output.shape), list(state.x.shape)
            raise ValueError(f"call {index} got an output of shape {got}: allowed is the state's, {allowed}")
        if call.sigma > 0 and noise is None:
            raise ValueError(f"call {index} of {self.spec.kind} adds noise: pass it in the shape of the state")
        return call


def build_plan(spec: SamplerSpec, schedule: NoiseSchedule) -> SamplerPlan:
    """Return the table of ``spec`` for a model trained with ``schedule``, computed in float64.

    Raises:
        ValueError: the sampler does not fit the schedule, for example more steps than training timesteps.
    """
    placed = (spec.kind, spec.steps, spec.spacing, spec.steps_offset)
    timesteps = plan_timesteps(*placed, schedule.num_train_timesteps, spec.skip_prk, spec.strength)
    alphas = schedule.alphas_cumprod().tolist()
    return SamplerPlan(spec, schedule, BUILDERS[spec.kind](spec, timesteps, alphas))
