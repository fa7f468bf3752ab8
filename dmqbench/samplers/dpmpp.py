"""DPM-Solver++ 2M: Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Models" (2022)."""

import math
from collections.abc import Sequence

from dmqbench.samplers.calls import Call, predictions
from dmqbench.samplers.spec import SamplerSpec

LEAST_ALPHA = 2.0**-24
"""Stands for ᾱ = 0 of a rescaled schedule, as in diffusers: log-SNR is finite there."""


def dpmpp_calls(spec: SamplerSpec, timesteps: Sequence[int], alphas: Sequence[float]) -> tuple[Call, ...]:
    """Return algorithm 2 of the paper (midpoint form) as a table.

    History holds predicted clean samples. The first call has no history and the last one goes to zero noise,
    where log-SNR is infinite: both are of first order.
    """
    levels = [alphas[timestep] or LEAST_ALPHA for timestep in timesteps]
    last = len(timesteps) - 1
    calls = []
    for index, timestep in enumerate(timesteps):
        clean, _ = predictions(spec.prediction, levels[index])
        if index == last:
            calls.append(Call(timestep, 0.0, (1.0,), output=clean))
            continue
        a, b = _second_order(levels, index) if index > 0 else _first_order(levels, index)
        calls.append(Call(timestep, a, b, output=clean, keep=(0,) if index + 1 < last else ()))
    return tuple(calls)


def _first_order(levels: Sequence[float], index: int) -> tuple[float, tuple[float, ...]]:
    alpha, target = levels[index], levels[index + 1]
    growth = -math.expm1(_log_snr(alpha) - _log_snr(target))
    return math.sqrt((1 - target) / (1 - alpha)), (math.sqrt(target) * growth,)


def _second_order(levels: Sequence[float], index: int) -> tuple[float, tuple[float, ...]]:
    a, (weight,) = _first_order(levels, index)
    before, now, after = (_log_snr(level) for level in levels[index - 1 : index + 2])
    slope = 0.5 * (after - now) / (now - before)
    return a, (weight * (1 + slope), -weight * slope)


def _log_snr(alpha: float) -> float:
    """λ = log(√ᾱ / √(1-ᾱ))."""
    return 0.5 * (math.log(alpha) - math.log1p(-alpha))
