"""Power-of-two scaling (PTS, DMQ section 4.3): finer scales for the channels that an activation's outliers leave idle.

One scale per tensor must hold the largest channel, and wastes its grid on the others. Channel c is quantized with
s · 2^e[c] instead, with e in −D..0: a shift in an integer kernel, never a multiplication. Every sample votes for the
exponent that suits it best, and only a clear majority is followed, because a finer grid clips what is beyond it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dmqbench.quant.functional import quantize

CHUNK_ELEMENTS = 1 << 20
"""Errors are computed for as many samples at a time as have this many values."""

MAX_DEPTH = 7
"""Beyond this a shifted integer weight fits no 8 bits, whatever its own width."""


class Exponents(NamedTuple):
    """The outcome of an election, for every row of steps and channel."""

    exponent: Tensor
    """e in −D..0, int8 [rows, C]."""
    agreement: Tensor
    """Share of the samples that voted for the commonest candidate, float64 [rows, C]; 0 without samples."""


def candidate_errors(x: Tensor, scale: Tensor, zero_point: Tensor, levels: int, depth: int) -> Tensor:
    """Return the mean squared error of every (sample, channel, candidate), [N, C, D+1].

    Candidate d quantizes with the scale s · 2^(d−D), d = 0..D; the zero-point is the same for all.

    Args:
        x: activations [N, C, …], as the quantizer sees them; the mean is over what follows C.
        scale, zero_point: [N or 1, C or 1], of each sample and channel.
        levels: size of the grid.
        depth: D, 0..7.

    Raises:
        ValueError: the depth is out of range.
    """
    if not 0 <= depth <= MAX_DEPTH:
        raise ValueError(f"depth {depth}: allowed are 0 to {MAX_DEPTH}")
    values = x.flatten(2) if x.ndim > 2 else x.unsqueeze(-1)
    scale, zero_point = (table.expand(len(x), -1).unsqueeze(-1) for table in (scale, zero_point))
    errors = x.new_empty(*values.shape[:2], depth + 1)
    size = max(1, CHUNK_ELEMENTS // max(1, values[:1].numel()))
    for part in (slice(start, start + size) for start in range(0, len(values), size)):
        for candidate in range(depth + 1):
            finer = scale[part] * 2.0 ** (candidate - depth)
            difference = quantize(values[part], finer, zero_point[part], levels).mul_(finer).sub_(values[part])
            errors[part, :, candidate] = difference.square_().mean(-1)
    return errors


class Ballot:
    """What the election of one layer needs of all samples: votes and summed errors, [rows, C, D+1].

    The samples themselves are not kept, so that memory does not grow with their number.
    """

    def __init__(self, rows: int, channels: int, depth: int, device: torch.device | str = "cpu") -> None:
        self.depth = depth
        self.votes = torch.zeros(rows, channels, depth + 1, dtype=torch.int64, device=device)
        self.errors = torch.zeros(rows, channels, depth + 1, dtype=torch.float64, device=device)

    def add(self, errors: Tensor, rows: Tensor) -> None:
        """Take in the errors [N, C, D+1] of samples that belong to ``rows``, int64 [N].

        A sample's vote is the candidate of least error, the finest of equal ones.
        """
        winners = errors.argmin(-1, keepdim=True)
        self.votes.index_add_(0, rows, torch.zeros_like(errors, dtype=torch.int64).scatter_(-1, winners, 1))
        self.errors.index_add_(0, rows, errors.double())

    @property
    def samples(self) -> Tensor:
        """Samples of each row, int64 [rows]."""
        return self.votes[:, 0].sum(-1)

    @property
    def agreement(self) -> Tensor:
        """Share of the commonest vote, float64 [rows, C]."""
        return self.votes.amax(-1) / self.samples.clamp_min(1)[:, None].double()

    def by_vote(self, threshold: float) -> Exponents:
        """Return the commonest vote (of tied ones the finest) where its share is at least ``threshold``, else 0.

        DMQ algorithm 1 with the candidates, the comparison and the fallback of the published code: the candidates are
        s/2^D … s, and where samples disagree the channel keeps the whole range s.
        """
        agreement = self.agreement
        accepted = (agreement >= threshold) & (self.samples > 0)[:, None]
        return Exponents(self._exponent(self.votes.argmax(-1), accepted), agreement)

    def by_error(self) -> Exponents:
        """Return the candidate of least error summed over the samples, whether or not they agree (DMQ table 7)."""
        seen = (self.samples > 0)[:, None].expand(self.votes.shape[:2])
        return Exponents(self._exponent(self.errors.argmin(-1), seen), self.agreement)

    def _exponent(self, candidate: Tensor, accepted: Tensor) -> Tensor:
        exponent = candidate - self.depth
        return torch.where(accepted, exponent, torch.zeros_like(exponent)).to(torch.int8)
