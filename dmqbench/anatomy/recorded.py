"""The network on recorded full-precision states: the same batches as the bank was made in."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dmqbench.data.bank import Trajectories
from dmqbench.models.rollout import Denoising

MAX_CALLS = 20


def batches(count: int, chunk: int) -> list[range]:
    """Cut 0..count−1 into consecutive batches of ``chunk``; the last one may be smaller."""
    return [range(start, min(start + chunk, count)) for start in range(0, count, chunk)]


def spread_calls(calls: int, at_most: int = MAX_CALLS) -> tuple[int, ...]:
    """Return all call indices, or ``at_most`` of them, evenly spaced, the first and the last included."""
    if calls <= at_most:
        return tuple(range(calls))
    return tuple(round(index * (calls - 1) / (at_most - 1)) for index in range(at_most))


def require_same_plan(denoising: Denoising, trajectories: Trajectories) -> None:
    """Raise ValueError where the trajectories were recorded with another sampler."""
    if trajectories.timesteps != denoising.sampler.timesteps:
        raise ValueError("the trajectories follow another sampler than the plan")


@torch.no_grad()
def predict(denoising: Denoising, trajectories: Trajectories, members: Sequence[int], call: int) -> Tensor:
    """Return what the network predicts at the recorded states before ``call``, [B, C, H, W] on its device.

    ``members`` are indices of trajectories. Guidance is included, as in the recorded outputs.
    """
    return denoising.predict(trajectories.at(torch.tensor(members) * trajectories.calls + call))
