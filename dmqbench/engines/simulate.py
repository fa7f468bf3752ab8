"""The default engine: integers held in floats.

A float32 convolution of integers is exact while its partial sums stay below 2^24, so up to there this computes the
very accumulators of ``int_reference``; beyond, it rounds like any float32 sum.
"""

from collections.abc import Callable

from torch import Tensor

from dmqbench.quant.frozen import FrozenLayer


def simulate(layer: FrozenLayer) -> Callable[[Tensor], Tensor]:
    """Return a callable from float input to float output that computes ``layer`` with float arithmetic."""
    weights = [layer.weight_integers[:, part].to(layer.weight_scale.dtype).contiguous() for part in layer.parts]

    def run(x: Tensor) -> Tensor:
        integers = layer.input_integers(x)
        powers = layer.channel_powers(x)
        if powers is not None:
            integers.mul_(powers)
        output: Tensor | None = None
        groups = zip(layer.input_parts(integers), weights, layer.output_scales(x.ndim), strict=True)
        for piece, weight, scale in groups:
            term = layer.linear_map(piece, weight, None).mul_(scale)
            output = term if output is None else output.add_(term)
        assert output is not None  # an input has at least one group
        bias = layer.broadcast_bias(x.ndim)
        return output if bias is None else output.add_(bias)

    return run
