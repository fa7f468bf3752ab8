"""A sampler as a table of coefficients and a pure step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmqbench.samplers.calls import Call, alpha_at
from dmqbench.samplers.consistency import consistency_calls
from dmqbench.samplers.ddim import ddim_calls
from dmqbench.samplers.ddpm import ddpm_calls
from dmqbench.samplers.dpmpp import dpmpp_calls
from dmqbench.samplers.edm import edm_calls
from dmqbench.samplers.flow import flow_calls
from dmqbench.samplers.levels import Level
from dmqbench.samplers.pndm import pndm_calls
from dmqbench.samplers.processes import Process, call_sigmas, step_sigmas
from dmqbench.samplers.schedule import NoiseSchedule, Schedule
from dmqbench.samplers.scheduler_config import require_fit
from dmqbench.samplers.spec import SamplerSpec
from dmqbench.samplers.timesteps import plan_timesteps

CallBuilder = Callable[[SamplerSpec, Sequence[int], Sequence[float]], tuple[Call, ...]]
BUILDERS: dict[str, CallBuilder] = {
    "ddim": ddim_calls,
    "ddpm": ddpm_calls,
    "dpmpp": dpmpp_calls,
    "pndm": pndm_calls,
}
OVER_SIGMAS: Mapping[str, Callable[[SamplerSpec, Any, Sequence[float]], tuple[Call, ...]]] = {
    "flow": flow_calls,
    "edm": edm_calls,
    "consistency": consistency_calls,
}
"""Each takes the process of its kind, and σ before every step and at the end."""


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
    """A sampler's table: one ``Call`` per network call, in order; ``levels`` are of the states before them and after.

    Attributes:
        noise_scale: standard deviation of the first state of generation.
    """

    spec: SamplerSpec
    schedule: Schedule
    calls: tuple[Call, ...]
    levels: tuple[Level, ...]
    noise_scale: float = 1.0

    @property
    def timesteps(self) -> tuple[float, ...]:
        """The timestep of every network call, whole over a schedule of betas."""
        return tuple(call.timestep for call in self.calls)

    @property
    def network_calls(self) -> int:
        """How often the network is called for one sample (once per call also with guidance)."""
        return len(self.calls)

    @property
    def gains(self) -> tuple[float, ...]:
        """Per call, ∂x_next/∂(its network output): what an error of the network does to the next state."""
        return tuple(call.gain for call in self.calls)

    @property
    def input_scales(self) -> tuple[float, ...]:
        """What the state is multiplied by for every network call."""
        return tuple(call.input_scale for call in self.calls)

    def initial(self, x: Tensor) -> State:
        """Return the state before the first call, whose x is given, [B, ...]."""
        return State(x, x, ())

    def from_noise(self, noise: Tensor) -> Tensor:
        """Return where generation starts, from noise z ~ N(0, I), [B, ...]."""
        return noise if self.noise_scale == 1 else self.noise_scale * noise

    def noised(self, clean: Tensor, noise: Tensor) -> Tensor:
        """Return x0 and z mixed as before the first call, √ᾱ x0 + √(1-ᾱ) z: where the editing of x0 = ``clean`` starts.

        Args:
            clean: x0, [B, ...].
            noise: z ~ N(0, I) of the same shape.
        """
        first = self.levels[0]
        return first.signal * clean + first.noise * noise

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


def build_plan(spec: SamplerSpec, schedule: Schedule) -> SamplerPlan:
    """Return the table of ``spec`` for a model trained with ``schedule``, computed in float64.

    Raises:
        ValueError: the sampler does not fit the schedule, for example more steps than training timesteps.
    """
    if not isinstance(schedule, NoiseSchedule):
        require_fit(spec.kind, spec.prediction, type(schedule))
        return _plan_over_sigmas(spec, schedule)
    require_fit(spec.kind, spec.prediction, None, schedule.rescale_betas_zero_snr)
    placed = (spec.kind, spec.steps, spec.spacing, spec.steps_offset)
    timesteps = plan_timesteps(*placed, schedule.num_train_timesteps, spec.skip_prk, spec.strength)
    alphas = schedule.alphas_cumprod().tolist()
    of_states = (*(alphas[t] for t in timesteps), alpha_at(alphas, -1, spec.final_alpha_one))
    return SamplerPlan(spec, schedule, BUILDERS[spec.kind](spec, timesteps, alphas), tuple(map(Level, of_states)))


def _plan_over_sigmas(spec: SamplerSpec, process: Process) -> SamplerPlan:
    calls = OVER_SIGMAS[spec.kind](spec, process, step_sigmas(spec, process))
    levels = tuple(map(process.level, (*call_sigmas(spec, process), process.last())))
    return SamplerPlan(spec, process, calls, levels, process.noise_scale)
