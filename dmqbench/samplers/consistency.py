"""Sampling from consistency models: Song, Dhariwal, Chen and Sutskever, "Consistency Models" (2023)."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from dmqbench.samplers.calls import Call, Mix, single_step
from dmqbench.samplers.processes import Consistency
from dmqbench.samplers.spec import SamplerSpec


def consistency_calls(spec: SamplerSpec, process: Consistency, sigmas: Sequence[float]) -> tuple[Call, ...]:
    """Return algorithm 1 of the paper as a table: the predicted clean sample, noised to the next level.

    The last level is the smallest, to which nothing is added.
    """
    return tuple(_call(spec, process, sigma, target) for sigma, target in pairwise(sigmas))


def _call(spec: SamplerSpec, process: Consistency, sigma: float, target: float) -> Call:
    above, data = sigma - process.sigma_min, process.sigma_data
    clean = Mix(data**2 / (above**2 + data**2), above * data / math.sqrt(sigma**2 + data**2))
    noise = process.s_noise * math.sqrt(max(0.0, target**2 - process.sigma_min**2))
    call = single_step(process.timestep(sigma), clean, 1.0, Mix(0.0, 0.0), noise, spec.clip_sample)
    return replace(call, input_scale=process.input_scale(sigma))
