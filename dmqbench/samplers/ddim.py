"""DDIM: Song, Meng and Ermon, "Denoising Diffusion Implicit Models" (2021)."""

import math
from collections.abc import Sequence

from dmqbench.samplers.calls import Call, alpha_at, predictions, single_step
from dmqbench.samplers.spec import SamplerSpec


def ddim_calls(spec: SamplerSpec, timesteps: Sequence[int], alphas: Sequence[float]) -> tuple[Call, ...]:
    """Return eq. 12 of the paper, with σ of eq. 16, as a table.

    The target of a step lies T // steps below its timestep, which is not always the next timestep (with
    "linspace", or steps that do not divide T): diffusers does so, and published numbers depend on it. A
    clipped clean sample does not change the noise direction, as by diffusers' default.
    """
    stride = len(alphas) // spec.steps
    return tuple(
        _call(spec, timestep, alphas[timestep], alpha_at(alphas, timestep - stride, spec.final_alpha_one))
        for timestep in timesteps
    )


def _call(spec: SamplerSpec, timestep: int, alpha: float, target: float) -> Call:
    variance = (1 - target) / (1 - alpha) * (1 - alpha / target)
    sigma = spec.eta * math.sqrt(variance)
    direction = math.sqrt(max(0.0, 1 - target - sigma**2))
    clean, noise = predictions(spec.prediction, alpha)
    return single_step(timestep, clean, math.sqrt(target), direction * noise, sigma, spec.clip_sample)
