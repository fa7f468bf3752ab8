"""DDPM: Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models" (2020)."""

import math
from collections.abc import Sequence
from itertools import pairwise

from dmqbench.samplers.calls import STATE, Call, predictions, single_step
from dmqbench.samplers.spec import SamplerSpec


def ddpm_calls(spec: SamplerSpec, timesteps: Sequence[int], alphas: Sequence[float]) -> tuple[Call, ...]:
    """Return eq. 7 of the paper as a table, with variance β̃; the last step adds no noise."""
    levels = [*(alphas[timestep] for timestep in timesteps), 1.0]
    return tuple(
        _call(spec, timestep, alpha, target)
        for timestep, (alpha, target) in zip(timesteps, pairwise(levels), strict=True)
    )


def _call(spec: SamplerSpec, timestep: int, alpha: float, target: float) -> Call:
    beta = 1 - alpha / target
    clean_weight = math.sqrt(target) * beta / (1 - alpha)
    state_weight = math.sqrt(alpha / target) * (1 - target) / (1 - alpha)
    sigma = math.sqrt((1 - target) / (1 - alpha) * beta)
    clean, _ = predictions(spec.prediction, alpha)
    return single_step(timestep, clean, clean_weight, state_weight * STATE, sigma, spec.clip_sample)
