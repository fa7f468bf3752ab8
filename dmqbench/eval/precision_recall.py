"""Improved precision and recall (Kynkäänniemi et al. 2019): samples among the reference's, and the reverse."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from dmqbench.eval.features import require_comparable, require_matrix
from dmqbench.eval.measurement import Estimate
from dmqbench.eval.protocol import MetricUnavailable
from dmqbench.eval.statistics import Replicated, even_groups, group_edges, jackknife, share_interval

NEIGHBOURS = 3
_LEAST = 64
_DISTANCES_AT_ONCE = 1 << 22
_ROUNDING = 1e-12


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]: of samples within the reference's manifold, and of the reference within the samples'."""

    precision: Estimate
    recall: Estimate


def precision_recall_estimates(
    features: Tensor, reference: Tensor, paired: bool = False, neighbours: int = NEIGHBOURS
) -> PrecisionRecall:
    """Return precision and recall of features [N, d] against reference [M, d], with intervals and replicates.

    A set's manifold is the union of balls about its members that reach to their third nearest neighbour, borders
    included (eq. 1 and 2 of the paper, and the ADM evaluation suite). Both shares depend on N and M. ``paired``: row i
    of both belongs to the same seed, and a group is deleted from both; otherwise the reference is fixed. Replicates are
    exact: radii grow where a neighbour is deleted. ``MetricUnavailable`` below 64 rows on either side.
    """
    features, reference = _checked(features, "samples"), _checked(reference, "reference images")
    require_comparable(features, reference, paired)
    # Distances about a common centre lose fewer digits.
    centre = reference.double().mean(dim=0)
    edges = group_edges(len(features), even_groups(len(features))).tolist()
    own_manifold = _Manifold.of(features, centre, neighbours, edges)
    manifold = _Manifold.of(reference, centre, neighbours, edges if paired else None)
    precision = _share(manifold.holds(features, centre), edges, deleted=True)
    recall = _share(own_manifold.holds(reference, centre), edges, deleted=paired)
    return PrecisionRecall(precision, recall)


class _Held(NamedTuple):
    """Which points a manifold holds [Q], and which it holds without each of the groups [Q, G] or of none [Q, 1]."""

    points: Tensor
    without: Tensor


@dataclass(frozen=True)
class _Manifold:
    """Members [M, d], their squared radii [M], and those without each of the groups [M, G].

    ``edges`` say which members are deleted together; ``None`` where none is ever deleted, and then ``without`` is too.
    """

    members: Tensor
    radii: Tensor
    without: Tensor | None
    edges: list[int] | None

    @classmethod
    def of(cls, features: Tensor, centre: Tensor, neighbours: int, edges: list[int] | None) -> "_Manifold":
        members = features.double() - centre
        radii, without = [], []
        for rows, squared in _squared_distances(members, members):
            squared[torch.arange(len(squared)), torch.arange(rows.start, rows.stop)] = torch.inf
            radii.append(squared.kthvalue(neighbours, dim=1).values)
            if edges is not None:
                without.append(_radii_without(squared, neighbours, edges))
        return cls(members, torch.cat(radii), torch.cat(without) if without else None, edges)

    def holds(self, points: Tensor, centre: Tensor) -> _Held:
        held = [self._holds(squared) for _, squared in _squared_distances(points.double() - centre, self.members)]
        return _Held(*(torch.cat(parts) for parts in zip(*held, strict=True)))

    def _holds(self, squared: Tensor) -> _Held:
        inside = squared <= self.radii
        if self.edges is None or self.without is None:
            points = inside.any(dim=1)
            return _Held(points, points[:, None])
        sizes = [high - low for low, high in pairwise(self.edges)]
        by_group = torch.stack([part.any(dim=1) for part in inside.split(sizes, dim=1)], dim=1)
        holders = by_group.sum(dim=1, keepdim=True)
        # Without a group, a point is held by a ball of another group as it was, or by one that grew.
        without = holders > by_group
        grew = self.without > self.radii[:, None]
        for group, (low, high) in enumerate(pairwise(self.edges)):
            grown = grew[:, group].nonzero()[:, 0]
            grown = grown[(grown < low) | (grown >= high)]
            without[:, group] |= (squared[:, grown] <= self.without[grown, group]).any(dim=1)
        return _Held(holders[:, 0] > 0, without)


def _radii_without(squared: Tensor, neighbours: int, edges: list[int]) -> Tensor:
    """Return the k-th smallest of each row [B, M] without the columns of each group [B, G].

    The k smallest of every group hold it whatever group is deleted; of these the 2 k smallest do, for at most k of
    them are of one group.
    """
    groups = list(pairwise(edges))
    nearest = [
        squared[:, low:high].topk(min(neighbours, high - low), dim=1, largest=False).values for low, high in groups
    ]
    labels = torch.cat([torch.full((part.shape[1],), group) for group, part in enumerate(nearest)])
    candidates = torch.cat(nearest, dim=1).topk(2 * neighbours, dim=1, largest=False)
    kept = labels[candidates.indices][:, :, None] != torch.arange(len(groups))
    place = (kept.cumsum(dim=1) < neighbours).sum(dim=1)
    return candidates.values.gather(1, place)


def _squared_distances(points: Tensor, members: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield the squared distances between some points and all members [B, M], in blocks of bounded size."""
    lengths = members.square().sum(dim=1)
    step = max(1, _DISTANCES_AT_ONCE // len(members))
    for start in range(0, len(points), step):
        rows = slice(start, min(start + step, len(points)))
        both = points[rows].square().sum(dim=1, keepdim=True) + lengths
        squared = both - 2 * points[rows] @ members.mT
        # What rounding leaves between equal features is no distance.
        yield rows, squared.where(squared > _ROUNDING * both, 0)


def _share(held: _Held, edges: list[int], deleted: bool) -> Estimate:
    """Return the share of points that are held; ``deleted`` says that a group's points leave with it."""
    n, groups = edges[-1], len(edges) - 1
    counts = held.without.double().sum(dim=0).expand(groups).clone()
    totals = torch.full((groups,), float(len(held.points)), dtype=torch.float64)
    if deleted:
        for group, (low, high) in enumerate(pairwise(edges)):
            column = min(group, held.without.shape[1] - 1)
            counts[group] -= held.without[low:high, column].sum()
            totals[group] -= high - low
    value = float(held.points.double().mean())
    statistic = Replicated(value, n, tuple((counts / totals).tolist()))
    interval = share_interval(value, jackknife(statistic).variance, n, groups)
    return Estimate.of(statistic, interval)


def _checked(features: Tensor, what: str) -> Tensor:
    require_matrix(features, f"features of {what}")
    if len(features) < _LEAST:
        raise MetricUnavailable(f"precision and recall need at least {_LEAST} {what}, got {len(features)}")
    return features
