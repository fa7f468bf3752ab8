"""Skip-channel disparity: how far the largest channel of a concatenated input stands above the usual one.

A layer's disparity is the largest over the median, over its input channels, of each channel's largest magnitude; a
model's is the geometric mean over its skip layers. Equivalent and power-of-two scaling exist for such inputs, so this
is the dose of the dose-response ladder.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import inf
from statistics import geometric_mean

from torch import Tensor

from dmqbench.data.bank import Trajectories
from dmqbench.eval.anatomy_statistics import input_statistics
from dmqbench.models.adapter import Adapter
from dmqbench.models.topology import LayerInfo, Topology
from dmqbench.quant.layers import quantization


def channel_disparity(largest: Tensor) -> float:
    """Return max over median of ``largest`` [C] ≥ 0, each channel's largest magnitude; at least 1.

    The median of an even number of channels is the mean of the middle two. Infinite where at least half of the
    channels are always zero and one is not; 1 where all are.

    Raises:
        ValueError: there are no channels, or a magnitude is negative or not finite.
    """
    if largest.ndim != 1 or not len(largest):
        raise ValueError(f"largest magnitudes of channels must have shape [C] with C ≥ 1, not {list(largest.shape)}")
    if not (largest.isfinite() & (largest >= 0)).all():
        raise ValueError("largest magnitudes of channels must be finite and not negative")
    # In double precision no quotient of two single-precision numbers overflows.
    top, median = float(largest.max()), float(largest.double().quantile(0.5))
    if top == 0:
        return 1.0
    return top / median if median > 0 else inf


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
    adapter: Adapter, trajectories: Trajectories, *, members: int, guidance: float = 1.0, chunk: int = 32
) -> dict[str, float]:
    """Return the disparity of every skip layer of the full-precision network, by name; empty if it has none.

    Largest magnitudes are taken over all recorded calls of the first ``members`` trajectories. Quantizers, where the
    network has any, are off meanwhile. Memory: one batch of ``chunk`` states.
    """
    with quantization(adapter.network, weight=False, activation=False):
        topology = adapter.topology()
        skips = replace(topology, layers=skip_layers(topology))
        if not skips.layers:
            return {}
        inputs = input_statistics(adapter, skips, trajectories, members=members, guidance=guidance, chunk=chunk)
    return {name: channel_disparity(statistics.channels.absmax) for name, statistics in inputs.items()}
