"""The most memory that training through the whole network would hold at once, from shapes alone; see ``footprints``."""

from typing import Any

import torch
from torch import Tensor, nn

from dmqbench.calibration.shape_bench import ShapeBench
from dmqbench.models.shape_memo import ShapeMemo
from dmqbench.quant.functional import widened
from dmqbench.quant.layers import freeze_weight_, weight_layers
from dmqbench.quant.state import activation_quantizers


def low_rank_tuning(bench: ShapeBench, settings: Any) -> int:
    """The graph of the whole network, adapters, and the state of their optimizer."""
    layers = weight_layers(bench.network)
    adapters: list[Tensor] = []
    for layer in layers.values():
        rows, columns = layer.weight.flatten(1).shape
        rank = min(settings.rank, rows, layer.weight.shape[1] if settings.adapters == "per_tap" else columns)
        taps = columns // layer.weight.shape[1] if settings.adapters == "per_tap" else 1
        weight = widened(layer.weight)
        layer.adapter_down = nn.Parameter(weight.new_empty(rank, columns))
        layer.adapter_up = nn.Parameter(weight.new_empty(rows, rank * taps))
        adapters += [layer.adapter_down, layer.adapter_up]
    scales = [layer.weight_quantizer.scale for layer in layers.values() if layer.weight_quantizer is not None]
    scales += [quantizer.scale for quantizer in activation_quantizers(bench.network).values()]
    leaves = [*adapters, *(scale.requires_grad_(True) for scale in scales)]
    states = 4 * sum(leaf.nbytes for leaf in adapters)  # Adam's two, the best so far, its copy
    windows = min(max(1, settings.batch // settings.window), bench.points.trajectories)
    step = bench.training(windows * settings.window, leaves)
    teacher = bench.call(windows * settings.window, False, False) if settings.distils else 0
    training = bench.network_bytes + states + max(step, teacher)
    bench.network.requires_grad_(False)
    for layer in layers.values():
        layer.freeze_weight_()
        layer.adapter_down, layer.adapter_up = None, None
    return max(training, bench.network_bytes + states + bench.saved_bytes)


TRAINED_BYTES = 18
"""Of a weight whose rounding is trained: its lower code and its best, one each; its latent, Adam's two moments of that,
and a gradient, four each."""


def trajectory_reconstruction(bench: ShapeBench, settings: Any) -> int:
    """The graph of one call, or of all calls of a group where gradients are kept through them."""
    freeze_weight_(bench.network)
    layers, trained = weight_layers(bench.network), 0
    leaves: list[Tensor] = [quantizer.scale for quantizer in activation_quantizers(bench.network).values()]
    if settings.joint:
        for layer in layers.values():
            layer.fixed_weight = torch.empty(layer.weight.shape, device=layer.weight.device)
            leaves.append(layer.fixed_weight)
        trained = TRAINED_BYTES * sum(layer.weight.numel() for layer in layers.values())
        bench.elsewhere = max(bench.elsewhere, trained)  # as a checkpoint writes it
    for leaf in leaves:
        leaf.requires_grad_(True)
    graphs = min(settings.horizon, bench.points.calls) if settings.gradient == "exact" else 1
    step = bench.training(min(settings.batch, bench.points.trajectories) * graphs, leaves)
    bench.network.requires_grad_(False)
    training = bench.network_bytes + trained + max(step, bench.saved_bytes)
    if settings.joint:
        with ShapeMemo(), torch.no_grad():
            for layer in layers.values():
                layer.show_codes_()
    return training
