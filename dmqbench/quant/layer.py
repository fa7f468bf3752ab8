"""What quantized layers share. They compute

    y = Q_a(x / s) * Q_w(s ⊙ (W0 + B A)) + bias + d

with s the equivalent scale per input channel, B A a low-rank adapter and d a shift per output channel, all optional.
W0 is never changed: with both switches off the same module is the full-precision teacher. (Where s is absorbed, W0
holds it for good, and what writes x was divided by it: ``models.absorption``.)

W0 and what the layer reads may be in fewer bits than float32, and so is the product then; Q_a, Q_w, s, B and A are in
float32 always.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dmqbench.quant.context import StepContext
from dmqbench.quant.functional import widened
from dmqbench.quant.plan import LayerPlan
from dmqbench.quant.quantizer import ActivationQuantizer, WeightQuantizer, along_axis, uncast
from dmqbench.quant.spec import InputGroups, StepGroups


class QuantLayer(nn.Module):
    """What quantized layers share; mixed in before a torch layer that has ``weight`` and ``bias``."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    channel_axis: int = 1
    kind: str
    absorbed_scale: Tensor | None
    """The equivalent scale [C_in] that W0 has been multiplied by for good."""
    output_shift: Tensor | None
    """d [C_out], which is added wherever anything is quantized."""
    weight_elsewhere: Callable[[], Tensor] | None
    """While set, ``weight`` has no values, and this brings them: see ``calibration.offloading``."""

    def attach_quantizers_(self, plan: LayerPlan, context: StepContext, steps: StepGroups) -> None:
        """Add quantizers for ``plan`` beside the weight; both switches start off.

        Raises:
            ValueError: the plan cuts the input of a grouped convolution, whose rows see a part of it already.
        """
        if plan.boundaries and getattr(self, "groups", 1) != 1:
            raise ValueError(f"layer {plan.name}: the input of a grouped convolution cannot be cut")
        self.plan = plan
        self.weight_on = False
        self.activation_on = False
        self.lowered: Callable[[Tensor], Tensor] | None = None
        self.weight_elsewhere = None
        self.equivalent_scale: nn.Parameter | None = None
        self.adapter_down: nn.Parameter | None = None
        self.adapter_up: nn.Parameter | None = None
        self.register_buffer("fixed_weight", None, persistent=False)
        self.register_buffer("absorbed_scale", None)
        self.register_buffer("output_shift", None)
        self.weight_quantizer = self._weight_quantizer(plan)
        self.activation_quantizer: ActivationQuantizer | None = None
        if plan.activation_levels is not None:
            channels = self.weight.shape[1] * getattr(self, "groups", 1)
            groups = InputGroups(channels, plan.boundaries)
            dynamic = "token" if plan.per_token else None
            self.activation_quantizer = ActivationQuantizer(
                context, plan.activation_levels, groups, self.channel_axis, steps, dynamic
            )
        self.to(self.weight.device)

    def _weight_quantizer(self, plan: LayerPlan) -> WeightQuantizer | None:
        if not plan.quantizes_weight:
            return None
        levels = 2 ** torch.tensor(plan.bits_of_rows(1)).expand(len(self.weight))
        groups = InputGroups(self.weight.shape[1], plan.boundaries)
        return WeightQuantizer(levels, groups, self.weight.ndim).to(self.weight.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantLayer":
        """Weight and bias follow every ``to``; what belongs to quantizers is moved, but never cast to fewer bits."""
        own = (self.weight, self.bias, self.fixed_weight)

        def applied(tensor: Tensor) -> Tensor:
            return fn(tensor) if any(tensor is each for each in own) else uncast(fn)(tensor)

        return super()._apply(applied, recurse)

    def reset_parameters(self) -> None:
        """Draw none, as torch's layers do when they are made: they are those of the layer that it stands for."""

    @classmethod
    @abstractmethod
    def of(cls, layer: Any) -> "QuantLayer":
        """Return a quantizable layer that shares the parameters of ``layer``."""

    @abstractmethod
    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's linear map with another weight; all are of one precision."""

    def apply_widened(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The same with an input and a weight of any precision: computed in the layer's own, given in float32."""
        own = self.weight.dtype
        return widened(self.apply_weight(x.to(own), weight.to(own), bias))

    def set_equivalent_scale_(self, scale: Tensor) -> nn.Parameter:
        """Set s [C_in]; any fixed rounding was for another weight and is dropped."""
        if scale.shape != (self.weight.shape[1],) or getattr(self, "groups", 1) != 1:
            raise ValueError(
                f"an equivalent scale needs one value per input channel of an ungrouped layer ({self.kind})"
            )
        self.equivalent_scale = nn.Parameter(widened(scale), requires_grad=False)
        self.drop_rounding_()
        return self.equivalent_scale

    def add_adapter_(
        self, rank: int, generator: torch.Generator, per_tap: bool = False
    ) -> tuple[nn.Parameter, nn.Parameter]:
        """Add a low-rank ΔW = up · down, which starts at zero; return (down, up).

        Over the flattened input: down [rank, C_in · taps], up [C_out, rank]. With ``per_tap`` every tap of the kernel
        has an outer factor of its own: up [C_out, rank · taps]. The rank is at most that of the matrices multiplied.
        """
        rows, columns = self.weight.flatten(1).shape
        channels = self.weight.shape[1]
        rank = min(rank, rows, channels if per_tap else columns)
        down = torch.randn(rank, columns, generator=generator) / columns**0.5
        weight = widened(self.weight)
        self.adapter_down = nn.Parameter(down.to(weight))
        taps = columns // channels if per_tap else 1
        self.adapter_up = nn.Parameter(weight.new_zeros(rows, rank * taps))
        self.drop_rounding_()
        return self.adapter_down, self.adapter_up

    def set_weight_bits_(self, bits: int | tuple[int, ...]) -> None:
        """Quantize the weight with other ``bits``: one number, or one per row; 32 leaves it in full precision.

        The weight must be calibrated again. Equivalent scale, adapter and activation side stay.

        Raises:
            ValueError: a number of bits is not allowed, or there is not one for every row.
        """
        self.plan = self.plan.with_weight_bits(bits, len(self.weight))
        self.fixed_weight, self.lowered = None, None
        self.weight_quantizer = self._weight_quantizer(self.plan)

    def drop_rounding_(self) -> None:
        """Forget learned or fixed rounding, because the weight or the grid that it was for has changed."""
        self.fixed_weight, self.lowered = None, None
        if self.weight_quantizer is not None:
            self.weight_quantizer.codes, self.weight_quantizer.alpha = None, None

    def unscaled_weight(self) -> Tensor:
        """W0."""
        return self.weight if self.weight_elsewhere is None else self.weight_elsewhere()

    def scaled_weight(self) -> Tensor:
        """s ⊙ (W0 + ΔW): what the weight quantizer sees."""
        weight = widened(self.unscaled_weight())
        if self.adapter_down is not None and self.adapter_up is not None:
            weight = weight + low_rank_product(self.adapter_up, self.adapter_down).view_as(weight)
        if self.equivalent_scale is not None:
            weight = weight * along_axis(self.equivalent_scale[None], weight.ndim, 1)
        return weight

    def effective_weight(self) -> Tensor:
        """The weight that the layer computes with while quantization is on."""
        if not self.weight_on or self.weight_quantizer is None:
            return self.scaled_weight()
        if self.fixed_weight is not None:
            return self.fixed_weight
        if self.weight_quantizer.codes is not None:  # for which W0 need not be brought
            return self.weight_quantizer.reconstruct()
        return self.weight_quantizer(self.scaled_weight())

    def weight_step(self) -> Tensor:
        """The mean step of the weight's quantizer, in units of the unscaled weight that adapters are added to."""
        assert self.weight_quantizer is not None
        step = self.weight_quantizer.spread(self.weight_quantizer.scale.detach()).flatten(1)
        if self.equivalent_scale is None:
            return step.mean()
        return (step * (1 / self.equivalent_scale.detach())).mean()

    def scaled_input(self, x: Tensor) -> Tensor:
        """x / s: what the activation quantizer sees."""
        if self.equivalent_scale is None:
            return widened(x)
        return x / along_axis(self.equivalent_scale[None], x.ndim, self.channel_axis)

    def quantized_bias(self, dtype: torch.dtype) -> Tensor | None:
        """bias + d, which outputs have wherever anything is quantized."""
        if self.output_shift is None:
            return self.bias
        return (self.output_shift if self.bias is None else widened(self.bias) + self.output_shift).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.weight_on or self.activation_on):
            return self.apply_weight(x, self.unscaled_weight(), self.bias)
        if self.lowered is not None and self.weight_on and self.activation_on:
            return self.lowered(x)
        given = self.scaled_input(x)
        if self.activation_on and self.activation_quantizer is not None:
            given = self.activation_quantizer(given)
        weight = self.effective_weight()
        return self.apply_weight(given.to(x.dtype), weight.to(x.dtype), self.quantized_bias(x.dtype))

    @torch.no_grad()
    def freeze_weight_(self) -> None:
        """Fix the weight's codes. Activation parameters can still be trained; nothing quantizes a weight any more."""
        if self.weight_quantizer is not None:
            self.weight_quantizer.fix_(self.scaled_weight())
            self.show_codes_()

    def show_codes_(self) -> None:
        """Let the layer compute with the weight that its fixed codes stand for, kept if its own weight is."""
        assert self.weight_quantizer is not None
        kept = self.weight_elsewhere is None
        self.fixed_weight = self.weight_quantizer.reconstruct().to(self.weight.dtype) if kept else None

    @torch.no_grad()
    def freeze_(self) -> None:
        """Fix weight and activation parameters.

        Raises:
            RuntimeError: the activation range was never calibrated.
        """
        if self.activation_quantizer is not None and not self.activation_quantizer.initialised:
            raise RuntimeError(f"layer {self.plan.name}: the activation range is not calibrated")
        self.freeze_weight_()
        for parameter in self.parameters():
            parameter.requires_grad_(False)


def low_rank_product(up: Tensor, down: Tensor) -> Tensor:
    """ΔW [C_out, C_in · taps] of an adapter: one product, or where ``up`` is as many times wider, one for every tap."""
    rank = len(down)
    taps = up.shape[1] // rank
    if taps == 1:
        return up @ down
    return torch.einsum("okt,kct->oct", up.unflatten(1, (rank, taps)), down.unflatten(1, (-1, taps))).flatten(1)
