"""PNDM: Liu, Ren, Lin and Zhao, "Pseudo Numerical Methods for Diffusion Models on Manifolds" (2022)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from dmqbench.samplers.calls import Call, Mix, alpha_at, predictions
from dmqbench.samplers.spec import Prediction, SamplerSpec
from dmqbench.samplers.timesteps import RUNGE_KUTTA_STEPS

RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
ADAMS_BASHFORTH = {
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


class _Row(NamedTuple):
    """An update from timestep ``source`` to ``target`` along weighted network outputs, newest first."""

    timestep: int
    source: int
    target: int
    weights: tuple[float, ...]
    keep: tuple[int, ...]
    anchored: bool = False


def pndm_calls(spec: SamplerSpec, timesteps: Sequence[int], alphas: Sequence[float]) -> tuple[Call, ...]:
    """Return algorithm 2 of the paper as a table, with its Runge-Kutta start or without (``skip_prk``).

    History holds network outputs as they come. A v-prediction is combined over the calls first and then
    turned into noise at the base of the step, as in diffusers.
    """
    stride = len(alphas) // spec.steps
    rows = _heun_start(timesteps, stride) if spec.skip_prk else _runge_kutta_start(timesteps, stride)
    first_order = 2 if spec.skip_prk else 4
    for order, timestep in enumerate(timesteps[len(rows) :], start=first_order):
        weights = ADAMS_BASHFORTH[min(order, 4)]
        rows.append(_Row(timestep, timestep, timestep - stride, weights, keep=(0, 1, 2)[:order]))
    return tuple(_call(row, spec, alphas) for row in rows)


def _heun_start(timesteps: Sequence[int], stride: int) -> list[_Row]:
    """Return the first step, taken again with the mean of two outputs; only the first output is kept."""
    first = timesteps[0]
    rows = [_Row(first, first, first - stride, (1.0,), keep=(0,))]
    return rows + [_Row(t, t + stride, t, (1 / 2, 1 / 2), keep=(1,), anchored=True) for t in timesteps[1:2]]


def _runge_kutta_start(timesteps: Sequence[int], stride: int) -> list[_Row]:
    """Return three steps of four calls each; the first output of each is kept for the multi-step method."""
    rows = []
    for past in range(RUNGE_KUTTA_STEPS):
        stages = timesteps[4 * past : 4 * past + 4]
        idle = (0.0,) * past
        for stage, timestep in enumerate(stages[:3]):
            target = timestep - (0 if stage == 1 else stride // 2)
            weights, keep = (1.0, *(0.0,) * stage, *idle), tuple(range(1 + stage + past))
            rows.append(_Row(timestep, stages[0], target, weights, keep, anchored=stage > 0))
        keep = tuple(range(3, 4 + past))
        rows.append(_Row(stages[3], stages[0], stages[3], (*RUNGE_KUTTA, *idle), keep, anchored=True))
    return rows


def _call(row: _Row, spec: SamplerSpec, alphas: Sequence[float]) -> Call:
    target = alpha_at(alphas, row.target, spec.final_alpha_one)
    move = _transfer(spec.prediction, alphas[row.source], target)
    b = tuple(move.output * weight for weight in row.weights)
    return Call(row.timestep, move.x, b, base="anchor" if row.anchored else "current", keep=row.keep)


def _transfer(prediction: Prediction, alpha: float, target: float) -> Mix:
    """Return φ, eq. 9 of the paper, from ᾱ = ``alpha`` to ``target``; it is the step of DDIM with eta 0."""
    clean, noise = predictions(prediction, alpha)
    return math.sqrt(target) * clean + math.sqrt(1 - target) * noise
