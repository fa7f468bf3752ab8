"""Euler's method over flow matching: Lipman et al., "Flow Matching for Generative Modeling" (2023)."""

from collections.abc import Sequence
from itertools import pairwise

from dmqbench.samplers.calls import Call
from dmqbench.samplers.processes import Flow
from dmqbench.samplers.spec import SamplerSpec


def flow_calls(spec: SamplerSpec, process: Flow, sigmas: Sequence[float]) -> tuple[Call, ...]:
    """Return x_s = x_t + (σ_s - σ_t) v as a table."""
    return tuple(Call(process.timestep(sigma), 1.0, (target - sigma,)) for sigma, target in pairwise(sigmas))
