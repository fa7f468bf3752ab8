"""A frozen layer as integers: its meaning, from which every engine computes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dmqbench.quant.functional import is_narrow, quantize
from dmqbench.quant.layer import QuantLayer
from dmqbench.quant.quantizer import ActivationQuantizer, along_axis

LinearMap = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class FrozenLayer:
    """Codes, scales, zero-points and exponents of one layer with quantized weights and activations.

    y[o] = bias[o] + Σ_g s_x[g] s_w[o, g] Σ_{c in g} 2^e[c] q_x[c] q_w[o, c], with q = code − zero_point.

    The input is divided once, by τ ⊙ s_x 2^e with τ the equivalent scale, before it is rounded (DMQ eq. 25), and every
    output channel is multiplied once. The powers of two lie on the input integers; ``shifted_weight_integers`` has them
    on the weights instead, for kernels whose activations must be plain codes.
    """

    name: str
    weight_codes: Tensor
    """uint8 [R, C, …]: shared with the quantizer, as anything made of them would be a copy of the network."""
    weight_zero_point: Tensor
    """int16, broadcastable to the codes."""
    weight_scale: Tensor
    """s_w, [R, G]."""
    bias: Tensor | None
    activation: ActivationQuantizer
    equivalent_scale: Tensor | None
    """Divides the input per channel before it is quantized, [C]."""
    channel_axis: int
    linear_map: LinearMap
    """The bare convolution or matrix product: (x, weight, bias) → y, stride and padding included."""

    @property
    def weight_integers(self) -> Tensor:
        """q_w, int16 [R, C, …]."""
        return self.weight_codes.to(torch.int16) - self.weight_zero_point

    @property
    def parts(self) -> tuple[slice, ...]:
        return self.activation.groups.slices

    def input_integers(self, x: Tensor) -> Tensor:
        """q_x of a float input, as floats: clamp(round(x / (τ · s_x 2^e)), −z, L−1−z).

        A training layer divides by τ and s_x in turn; the quotients differ by a last bit, so that an integer can differ
        only where the quotient is half-way between two.
        """
        if self.activation.interpolates:
            rows = self.activation.rows()
            grid = self._grids(*self.activation.by_channel(*self.activation.in_flight(rows), rows))
        else:
            grid = self._of_batch(self._input_grids)
        divisor, zero_point = (along_axis(grid[:, i], x.ndim, self.channel_axis) for i in range(2))
        return quantize(x, divisor, zero_point, self.activation.levels)

    def input_parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """The channels of ``x`` that each input group reads."""
        if len(self.parts) == 1:
            return (x,)
        return tuple(x.narrow(self.channel_axis, part.start, part.stop - part.start) for part in self.parts)

    def channel_powers(self, x: Tensor) -> Tensor | None:
        """2^e broadcastable to ``x``, or None without power-of-two scaling."""
        if self._powers is None:
            return None
        return along_axis(self._of_batch(self._powers), x.ndim, self.channel_axis)

    @cached_property
    def least_exponent(self) -> int:
        """The least e of all rows and channels, 0 without power-of-two scaling; integer sums are in units of 2^e."""
        exponent = self.activation.exponent
        return 0 if exponent is None else int(exponent.min())

    def shifted_weight_integers(self, row: int) -> Tensor:
        """q_w 2^(e − least e) of one row of steps, int32 [R, C, …], for a kernel that sums plain q_x (DMQ eq. 28).

        With s_x 2^(least e) in the place of s_x they give the layer's output. They hold for the steps of ``row`` alone
        and must be made again where the row changes.
        """
        integers = self.weight_integers.int()
        exponent = self.activation.exponent
        if exponent is None:
            return integers
        shift = (exponent[min(row, len(exponent) - 1)] - self.least_exponent).int()
        rows, channels, *kernel = integers.shape
        # A grouped convolution's rows read different channels: its weight has C / groups of them.
        by_row = shift.reshape(-1, channels).repeat_interleave(rows * channels // len(shift), dim=0)
        return integers << by_row.reshape(rows, channels, *[1] * len(kernel))

    def output_scales(self, ndim: int) -> tuple[Tensor, ...]:
        """s_x[g] s_w[:, g] of every group, broadcastable to the output: the multiplication after the sum."""
        if self.activation.interpolates:
            scales = self._scales(self.activation.in_flight(self.activation.rows())[0])
        else:
            scales = self._of_batch(self._output_scales)
        return tuple(along_axis(scales[:, g], ndim, self.channel_axis) for g in range(len(self.parts)))

    def broadcast_bias(self, ndim: int) -> Tensor | None:
        """The bias broadcastable to the output."""
        return None if self.bias is None else along_axis(self.bias[None], ndim, self.channel_axis)

    def _of_batch(self, table: Tensor) -> Tensor:
        """Rows of a table [rows, …] for the samples in flight: [B, …], or [1, …] where all calls share one."""
        return table[self.activation.rows()] if len(table) > 1 else table

    @cached_property
    def _input_grids(self) -> Tensor:
        """Of every row of the activation's parameters."""
        return self._grids(*self.activation.tables())

    def _grids(self, scale: Tensor, zero_point: Tensor) -> Tensor:
        """(τ · s_x 2^e, zero-point) of rows and channels, [rows, 2, C], or [rows, 2, 1] if channels share."""
        if self.equivalent_scale is not None:
            scale = scale * self.equivalent_scale
        return torch.stack(torch.broadcast_tensors(scale, zero_point), dim=1).detach()

    @cached_property
    def _powers(self) -> Tensor | None:
        exponent = self.activation.exponent
        return None if exponent is None else torch.exp2(exponent.to(self.weight_scale.dtype))

    @cached_property
    def _output_scales(self) -> Tensor:
        """Of every row of the activation's parameters."""
        return self._scales(self.activation.scale)

    def _scales(self, scale: Tensor) -> Tensor:
        """s_x s_w of rows of s_x, [rows, G, R]."""
        return scale.detach()[:, :, None] * self.weight_scale.T[None]


def has_integer_form(layer: QuantLayer) -> bool:
    """Whether weights and activations of a layer are both quantized, on grids that are known beforehand.

    Not where products are in fewer bits than float32: those would round sums of integers, or overflow.
    """
    weights, activation = layer.weight_quantizer, layer.activation_quantizer
    on_grids = weights is not None and activation is not None and activation.dynamic is None
    return on_grids and (layer.weight is None or not is_narrow(layer.weight))  # None: let go of, as it is lowered


def freeze_layer(layer: QuantLayer) -> FrozenLayer:
    """Return the integers of a layer after ``freeze_()``.

    Raises:
        ValueError: weights or activations of the layer are in full precision, or its activation ranges are dynamic.
    """
    weights, activation = layer.weight_quantizer, layer.activation_quantizer
    if weights is None or activation is None or weights.codes is None or not has_integer_form(layer):
        raise ValueError(f"layer {layer.plan.name}: only frozen static weights and activations have an integer form")
    return FrozenLayer(
        name=layer.plan.name,
        weight_codes=weights.codes,
        weight_zero_point=weights.spread(weights.zero_point).detach().to(torch.int16),
        weight_scale=weights.scale.detach().clone(),
        bias=layer.quantized_bias(weights.scale.dtype),
        activation=activation,
        equivalent_scale=None if layer.equivalent_scale is None else layer.equivalent_scale.detach(),
        channel_axis=layer.channel_axis,
        linear_map=layer.apply_weight,
    )
