"""Whether a denoiser of the user's own computes what it did when the trajectories in the store were made.

Ids know its weights and its name, and no code: a ``forward`` that was edited would be given what the old one left.
"""

import torch

from dmqbench.models.folders import ModelError
from dmqbench.models.likeness import differ
from dmqbench.models.precision import FLOAT32
from dmqbench.tasks.trajectories import bank_of
from dmqbench.tasks.workshop import Workshop

POINTS = 8
"""Of the calibration trajectories, over all calls."""


@torch.no_grad()
def require_same_function(shop: Workshop) -> None:
    """Make the trajectories of the job, or compare those that are there with what the network predicts now.

    Raises:
        ModelError: they were made by another function with the same weights.
    """
    known = bank_of(shop).cal
    points = known.spread(POINTS)
    expected = known.output[points // known.calls, points % known.calls]
    found = shop.calibrating(shop.full_precision).predict(known.at(points)).cpu()
    if differ(found, expected, narrow=shop.job.model.dtype != FLOAT32):
        was = "it predicts something else than when the trajectories in the store were made, with the same weights"
        raise ModelError(f"{shop.job.model.name}: {was}: give it another name, or another store")
