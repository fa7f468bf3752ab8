"""Weights of denoising steps in a calibration loss (DMQ, Lee et al. 2025, eq. 7–9).

Steps differ in their errors by orders of magnitude. Adaptive weighting favours those whose running error is a small
share of the total, which are mostly the early, noisy ones, because what goes wrong there is carried to the end.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

WEIGHTINGS = ("uniform", "linear", "quadratic", "adaptive")
BIN_ERRORS = ("mean", "sum")


@dataclass(frozen=True)
class TimestepWeighting:
    """How steps are weighted.

    Args:
        name: ``uniform``: 1; ``linear``: 1 + strength·(1 − b/B) for bin b of B, of which 0 is the noisiest;
            ``quadratic``: 1 + strength·(1 − b/B)²; ``adaptive``: (1 − Λ_b / ΣΛ)^strength with the running error Λ.
        strength: α of ``adaptive``, the slope of the others.
        momentum: ξ of Λ ← ξΛ + (1 − ξ)·error, in 0..1.
        bin_error: what a batch tells of a bin: ``mean`` leaves bins that the batch lacks as they are; ``sum`` is the
            published code's form, under which they decay, and in which the first batch starts from zero.
    """

    name: str
    strength: float
    momentum: float
    bin_error: str = "mean"

    def __post_init__(self) -> None:
        if self.name not in WEIGHTINGS:
            raise ValueError(f"weighting={self.name} is not known (allowed: {', '.join(WEIGHTINGS)})")
        if self.bin_error not in BIN_ERRORS:
            raise ValueError(f"bin_error={self.bin_error} is not known (allowed: {', '.join(BIN_ERRORS)})")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum={self.momentum} is out of range (allowed: 0 to 1)")

    def weights(self, running: Tensor) -> Tensor:
        """λ of every bin [B], given the running errors Λ [B]; all are equal while fewer than two bins have any."""
        bins = len(running)
        if self.name == "uniform":
            return torch.ones_like(running)
        if self.name == "adaptive":
            if (running > 0).sum() < 2:  # there is nothing to weigh against, and λ = 0 would stop learning
                return torch.full_like(running, (1 - 1 / bins) ** self.strength if bins > 1 else 1.0)
            return (1 - running / running.sum()).clamp(min=0).pow(self.strength)
        earliness = 1 - torch.arange(bins, dtype=running.dtype, device=running.device) / bins
        return 1 + self.strength * (earliness if self.name == "linear" else earliness.square())

    def updated(self, running: Tensor, bin_of_sample: Tensor, errors: Tensor) -> Tensor:
        """Λ [B] after a batch whose samples are in the bins ``bin_of_sample`` [N] with ``errors`` [N].

        In the ``mean`` form a bin's first error replaces the zero that it starts from.
        """
        # A product, because index_add_ adds in no fixed order on a GPU.
        members = bin_of_sample == torch.arange(len(running), device=running.device)[:, None]
        sums = members.to(running.dtype) @ errors.to(running.dtype)
        if self.bin_error == "sum":
            return torch.lerp(sums, running, self.momentum)
        counts = members.sum(1)
        means = sums / counts.clamp(min=1)
        moved = torch.where(running > 0, torch.lerp(means, running, self.momentum), means)
        return torch.where(counts > 0, moved, running)


def bins_of_calls(calls: int, bins: int) -> Tensor:
    """The bin 0..bins−1 of every network call 0..calls−1, int64 [calls]; as many consecutive calls to each as can be.

    ``bins`` 0 gives every call its own, and there are never more bins than calls.
    """
    bins = min(bins, calls) if bins else calls
    return torch.arange(calls) * bins // calls
