"""Where a quantized model goes wrong: its error at every step by itself, and how errors add up over a trajectory.

Measured on the bank's validation trajectories, whose full-precision states and outputs are already recorded, so only
the quantized network runs: once on every recorded state, and once along its own trajectory.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from dmqbench.anatomy.layer_errors import LayerErrors, layer_errors, relative_error
from dmqbench.anatomy.recorded import batches, predict, require_same_plan
from dmqbench.config.names import DIAGNOSIS_VERSION
from dmqbench.data.bank import Trajectories
from dmqbench.data.noise import Stream
from dmqbench.models.rollout import Denoising

STREAM: Stream = "val"


@dataclass(frozen=True)
class StepErrors:
    """Errors at T network calls and of the T+1 states around them, each ≥ 0.

    Attributes:
        local: relative squared error Σ‖δε‖² / Σ‖ε‖² of the network's output on full-precision states, [T].
        injected: mean squared error that this adds to the next state, gain² · mean δε², [T]; where the sampler clips,
            as if nothing were clipped.
        accumulated: mean squared difference of the quantized trajectory's states from the full-precision ones of the
            same noise, before each call and at the end, [T+1].
        shift: the part of ``accumulated`` that is one shift of brightness per image: the squared mean of the
            difference over the image, averaged over images, [T+1].
    """

    local: tuple[float, ...]
    injected: tuple[float, ...]
    accumulated: tuple[float, ...]
    shift: tuple[float, ...]


@dataclass(frozen=True)
class Diagnosis:
    """The content of ``diagnosis.json``."""

    timesteps: tuple[float, ...]
    trajectories: int
    steps: StepErrors
    layers: LayerErrors | None

    @property
    def proxies(self) -> dict[str, float | None]:
        """Single numbers that may predict sample quality, lower is better; None where there is no error at all."""
        return {
            "layer_error": None if self.layers is None else self.layers.mean_log10,
            "injected_error": _log10(sum(self.steps.injected)),
            "accumulated_error": _log10(self.steps.accumulated[-1]),
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "version": DIAGNOSIS_VERSION,
            "stream": STREAM,
            "trajectories": self.trajectories,
            "timesteps": list(self.timesteps),
            "steps": asdict(self.steps),
            "layers": None if self.layers is None else self.layers.to_json(),
            "proxies": self.proxies,
        }


def diagnose(denoising: Denoising, trajectories: Trajectories, *, seed: int, chunk: int) -> Diagnosis:
    """Diagnose a network that is ready to sample: frozen and lowered, or quantized by another program.

    Args:
        trajectories: full-precision ones of the stream ``val``, indices 0..N−1, made in batches of ``chunk``.
        seed: with which they were made.

    The network is left as it was found: samples drawn afterwards have the same bits.

    Raises:
        ValueError: the trajectories follow another plan.
        FloatingPointError: an output, a state or a layer's output of the quantized network is not finite.
    """
    steps = step_errors(denoising, trajectories, seed=seed, chunk=chunk)
    layers = layer_errors(denoising, trajectories, chunk=chunk)
    return Diagnosis(trajectories.timesteps, len(trajectories), steps, layers)


@torch.no_grad()
def step_errors(denoising: Denoising, trajectories: Trajectories, *, seed: int, chunk: int) -> StepErrors:
    """Run the quantized network 2·N·T times (samples × calls) and compare; see ``diagnose``."""
    require_same_plan(denoising, trajectories)
    local: list[Tensor] = []
    own: list[Tensor] = []
    for batch in batches(len(trajectories), chunk):
        outputs = [predict(denoising, trajectories, batch, call).cpu() for call in range(trajectories.calls)]
        local.append(torch.stack(outputs, dim=1))
        own.append(denoising.follow(stream=STREAM, seed=seed, indices=batch).x)
    return compare(trajectories, torch.cat(local), torch.cat(own), denoising.sampler.gains)


def compare(trajectories: Trajectories, outputs: Tensor, states: Tensor, gains: Sequence[float]) -> StepErrors:
    """Return the errors of ``outputs`` on the full-precision states, and of the quantized trajectory's ``states``.

    Args:
        outputs: what the quantized network predicts at ``trajectories.x[:, :-1]``, [N, T, C, H, W].
        states: the quantized trajectory from the same noise, [N, T+1, C, H, W].
        gains: ``SamplerPlan.gains``, [T].

    Raises:
        FloatingPointError: an error is not finite.
    """
    local, injected = [], []
    for call, gain in enumerate(gains):
        reference = trajectories.output[:, call].double()
        error = (outputs[:, call].double() - reference).square()
        local.append(float(relative_error(error.sum(), reference.square().sum())))
        injected.append(gain**2 * float(error.mean()))
    accumulated, shift = [], []
    for place in range(trajectories.calls + 1):
        difference = (states[:, place].double() - trajectories.x[:, place].double()).flatten(1)
        accumulated.append(float(difference.square().mean()))
        shift.append(float(difference.mean(dim=1).square().mean()))
    errors = StepErrors(tuple(local), tuple(injected), tuple(accumulated), tuple(shift))
    _check_finite(errors)
    return errors


def _check_finite(errors: StepErrors) -> None:
    for what, values in (("output", errors.local), ("trajectory", errors.accumulated)):
        for call, value in enumerate(values):
            if not math.isfinite(value):
                raise FloatingPointError(f"the quantized network's {what} is not finite at call {call}")


def _log10(value: float) -> float | None:
    return math.log10(value) if value > 0 else None
