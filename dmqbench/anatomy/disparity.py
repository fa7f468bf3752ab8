"""Skip-channel disparity: how far the largest channel of a concatenated input stands above the usual one.

A layer's disparity is the largest over the median, over its input channels, of each channel's largest magnitude; a
model's is the geometric mean over its skip layers. Equivalent and power-of-two scaling exist for such inputs, so this
is the dose of the dose-response ladder.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import inf
from statistics import geometric_mean

from dmqbench.anatomy.statistics import input_statistics
from dmqbench.data.bank import Trajectories
from dmqbench.models.rollout import Denoising
from dmqbench.models.topology import LayerInfo, Topology
from dmqbench.quant.layers import quantization
from dmqbench.quant.scaling import channel_disparity


def model_disparity(layers: Mapping[str, float]) -> float:
    """Return the geometric mean of the layers' disparities.

    Raises:
        ValueError: there are none: the model has no skip layers.
    """
    if not layers:
        raise ValueError("there are no skip layers, so the model has no skip-channel disparity")
    return inf if inf in layers.values() else geometric_mean(layers.values())


def skip_layers(topology: Topology) -> tuple[LayerInfo, ...]:
    """Return the layers that a concatenation feeds directly, and the shortcuts of residual blocks, in their order."""
    return tuple(layer for layer in topology.layers if layer.boundaries or layer.shortcut)


def measure_disparity(
    denoising: Denoising, trajectories: Trajectories, *, members: int, chunk: int = 32
) -> dict[str, float]:
    """Return the disparity of every skip layer of the full-precision network, by name; empty if it has none.

    Largest magnitudes are taken over all recorded calls of the first ``members`` trajectories. Quantizers, where the
    network has any, are off meanwhile. Memory: one batch of ``chunk`` states.
    """
    with quantization(denoising.adapter.network, weight=False, activation=False):
        topology = denoising.adapter.topology()
        skips = replace(topology, layers=skip_layers(topology))
        if not skips.layers:
            return {}
        inputs = input_statistics(denoising, skips, trajectories, members=members, chunk=chunk)
    return {name: channel_disparity(statistics.channels.absmax) for name, statistics in inputs.items()}
