"""Outliers planted into a network by exact rescalings: the dose is all that changes, and no picture of full precision.

A planted channel of a tensor is multiplied by the dose in what writes it, and divided in what reads it: the layers
behind see an outlier among their input channels and a small column among their weights.
"""

from functools import lru_cache

import torch
from torch import nn

from dmqbench.data.noise import generator
from dmqbench.models.equivalence_table import found_in
from dmqbench.models.equivalences import rescale_
from dmqbench.models.folders import ModelSource
from dmqbench.models.planted import KINDS, Planted
from dmqbench.models.sources import meta_network


@lru_cache(maxsize=16)
def kinds_in(source: ModelSource) -> tuple[str, ...]:
    """Return the kinds of places that a model has; no weights are read."""
    found = {place.kind for place in found_in(meta_network(source))[0]}
    return tuple(kind for kind in KINDS if kind in found)


def plant_(network: nn.Module, planted: Planted) -> dict[str, int]:
    """Plant outliers into a full-precision network; return how many channels of which places, by name and kind."""
    counts: dict[str, int] = {}
    if not planted:
        return counts
    for place in found_in(network)[0]:
        if not planted.where or place.kind in planted.where:
            count = planted.channels(place.channels)
            order = torch.randperm(place.channels, generator=generator("planted", planted.seed, place.name))
            factor = torch.ones(place.channels, dtype=torch.float64)
            factor[order[:count]] = planted.dose
            rescale_(network, place, factor)
            counts[f"{place.name} ({place.kind})"] = count
    return counts
