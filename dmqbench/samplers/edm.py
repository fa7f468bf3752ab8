"""EDM: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022)."""

import math
from collections.abc import Sequence
from itertools import pairwise

from dmqbench.samplers.calls import Call, Mix
from dmqbench.samplers.processes import Edm
from dmqbench.samplers.spec import Prediction, SamplerSpec


def edm_calls(spec: SamplerSpec, process: Edm, sigmas: Sequence[float]) -> tuple[Call, ...]:
    """Return algorithm 1 of the paper without its noise as a table, or only its Euler steps.

    Outputs are slopes (x - D) / σ. A step is corrected from where it started, with the mean of the slopes at both ends;
    the last one, to σ = 0, is not.
    """
    calls = []
    for sigma, target in pairwise(sigmas):
        corrected = spec.solver == "heun" and target > 0
        step = target - sigma
        calls.append(_call(process, spec.prediction, sigma, (step,), keep=(0,) if corrected else ()))
        if corrected:
            calls.append(_call(process, spec.prediction, target, (step / 2, step / 2), anchored=True))
    return tuple(calls)


def _call(
    process: Edm,
    prediction: Prediction,
    sigma: float,
    b: tuple[float, ...],
    keep: tuple[int, ...] = (),
    anchored: bool = False,
) -> Call:
    """Return a call at ``sigma``; its slope is σ / (σ² + σ_d²) x - c_out / σ F, as 1 - c_skip = σ² / (σ² + σ_d²)."""
    total = sigma**2 + process.sigma_data**2
    sign = -1 if prediction == "epsilon" else 1
    slope = Mix(sigma / total, sign * process.sigma_data / math.sqrt(total))
    base = "anchor" if anchored else "current"
    scale = process.input_scale(sigma)
    return Call(process.timestep(sigma), 1.0, b, output=slope, base=base, keep=keep, input_scale=scale)
