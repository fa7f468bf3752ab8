"""The reference engine: exact integer accumulators, scaled once at the end."""

from collections.abc import Callable

import torch
from torch import Tensor

from dmqbench.quant.frozen import FrozenLayer

INT32_MAX = 2**31 - 1


def accumulators(layer: FrozenLayer, x: Tensor) -> list[Tensor]:
    """Return Σ_c 2^e q_x q_w of every input group, int32 in the output's shape.

    torch has no integer convolution on every device; float64 holds all integers below 2^53, so the sum is exact.
    Powers of two are taken relative to the layer's least exponent, so that negative ones stay integer: sums are in
    units of 2 to ``layer.least_exponent``.

    Raises:
        OverflowError: a sum does not fit the 32 bits that an integer kernel would have.
    """
    integers = layer.input_integers(x).double()
    powers = layer.channel_powers(x)
    if powers is not None:
        integers = integers * (powers.double() * 2.0**-layer.least_exponent)
    sums = []
    for piece, part in zip(layer.input_parts(integers), layer.parts, strict=True):
        total = layer.linear_map(piece, layer.weight_integers[:, part].double(), None)
        if total.numel() and total.abs().max() > INT32_MAX:
            raise OverflowError(f"layer {layer.name}: an accumulator does not fit 32 bits")
        sums.append(total.to(torch.int32))
    return sums


def int_reference(layer: FrozenLayer) -> Callable[[Tensor], Tensor]:
    """Return a callable from float input to float output that computes ``layer`` exactly."""
    base = 2.0**layer.least_exponent

    def run(x: Tensor) -> Tensor:
        sums = zip(accumulators(layer, x), layer.output_scales(x.ndim), strict=True)
        output = torch.stack([total.to(x.dtype) * (scale * base) for total, scale in sums]).sum(dim=0)
        bias = layer.broadcast_bias(x.ndim)
        return output if bias is None else output + bias

    return run
