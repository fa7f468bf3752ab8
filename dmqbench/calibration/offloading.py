"""Weights of layers that lie elsewhere but while their layers compute.

Not by accelerate's hooks: those know of a module's forward pass alone, and put parameters that are being trained aside
with the others; stages read weights between forward passes too, and train what belongs to layers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from dmqbench.calibration.rows import Rows, Shelf
from dmqbench.quant.layer import QuantLayer
from dmqbench.quant.layers import quant_layers


@contextmanager
def weights_elsewhere(network: nn.Module, shelf: Shelf) -> Iterator[None]:
    """Keep the first weights of all quantizable layers on ``shelf`` for a while, and the quantized ones as codes alone.

    They are brought for one layer at a time; in a backward pass they stay with what needs them, unless that is computed
    again (``Portions.recomputed``). Whoever reads ``layer.weight`` meanwhile finds its shape, type and device, and NaN.
    """
    layers = list(quant_layers(network).values())
    sources = _sent(layers, shelf)
    for parameter in network.parameters():
        if parameter not in sources:  # the file that all were read from lies in memory while one of them does
            parameter.data = parameter.data.clone()
    try:
        for layer in layers:
            layer.weight_elsewhere, layer.fixed_weight = sources[layer.weight], None
            # No matter how many rows and columns, it is one value.
            layer.weight.data = layer.weight.new_full((1,) * layer.weight.ndim, torch.nan).expand(layer.weight.shape)
        yield
    finally:
        for weight, brought in {layer.weight: layer.weight_elsewhere for layer in layers}.items():
            assert brought is not None
            weight.data = brought()  # not from the shelf alone: it may have been rescaled meanwhile
        for layer in layers:
            layer.weight_elsewhere = None
            if layer.weight_quantizer is not None and layer.weight_quantizer.codes is not None:
                layer.show_codes_()


def offloaded_bytes(network: nn.Module) -> int:
    """Return the bytes of what ``weights_elsewhere`` would keep on its shelf."""
    return sum(weight.nbytes for weight in {layer.weight for layer in quant_layers(network).values()})


def _sent(layers: list[QuantLayer], shelf: Shelf) -> dict[nn.Parameter, Callable[[], Tensor]]:
    """Copy the weights to a shelf; return what brings each."""
    weights = list({layer.weight: None for layer in layers})  # layers may share one
    sources: dict[nn.Parameter, Callable[[], Tensor]] = {}
    for dtype in {weight.dtype: None for weight in weights}:
        alike = [weight for weight in weights if weight.dtype == dtype]
        rows, start = shelf.rows(sum(weight.numel() for weight in alike), alike[0].detach().flatten()), 0
        for weight in alike:
            rows.append(weight.detach().flatten())
            sources[weight] = partial(_brought, rows, slice(start, start + weight.numel()), weight.shape)
            start += weight.numel()
    return sources


def _brought(rows: Rows, place: slice, shape: torch.Size) -> Tensor:
    return rows[place].view(shape)
