"""Quantized layers: drop-in subclasses of torch's, which compute

    y = Q_a(x / s) * Q_w(s ⊙ (W0 + B A)) + bias

with s the equivalent scale per input channel and B A a low-rank adapter, both optional. W0 is never changed: with
both switches off the same module is the full-precision teacher.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmqbench.quant.attention import AttentionQuantizers
from dmqbench.quant.context import StepContext
from dmqbench.quant.plan import LayerPlan, PrecisionPlan
from dmqbench.quant.quantizer import ActivationQuantizer, WeightQuantizer
from dmqbench.quant.spec import InputGroups, StepGroups


class QuantLayer(nn.Module):
    """What quantized layers share; mixed in before a torch layer that has ``weight`` and ``bias``."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    channel_axis: int = 1
    kind: str

    def attach_quantizers_(self, plan: LayerPlan, context: StepContext, steps: StepGroups) -> None:
        """Add quantizers for ``plan`` beside the weight; both switches start off.

        Raises:
            ValueError: the plan cuts the input of a grouped convolution, whose rows see a part of it already.
        """
        if plan.boundaries and getattr(self, "groups", 1) != 1:
            raise ValueError(f"layer {plan.name}: the input of a grouped convolution cannot be cut")
        groups = InputGroups(self.weight.shape[1], plan.boundaries)
        self.plan = plan
        self.weight_on = False
        self.activation_on = False
        self.lowered: Callable[[Tensor], Tensor] | None = None
        self.equivalent_scale: nn.Parameter | None = None
        self.adapter_down: nn.Parameter | None = None
        self.adapter_up: nn.Parameter | None = None
        self.register_buffer("fixed_weight", None, persistent=False)
        self.weight_quantizer: WeightQuantizer | None = None
        self.activation_quantizer: ActivationQuantizer | None = None
        if plan.quantizes_weight:
            self.weight_quantizer = self._weight_quantizer(plan, groups)
        if plan.activation_levels is not None:
            channels = self.weight.shape[1] * getattr(self, "groups", 1)
            self.activation_quantizer = ActivationQuantizer(
                context,
                plan.activation_levels,
                InputGroups(channels, plan.boundaries),
                self.channel_axis,
                steps,
            )
        self.to(self.weight.device)

    def _weight_quantizer(self, plan: LayerPlan, groups: InputGroups) -> WeightQuantizer:
        levels = torch.tensor(plan.weight_levels_of_rows(len(self.weight)))
        return WeightQuantizer(levels, groups, self.weight.ndim)

    @classmethod
    @abstractmethod
    def of(cls, layer: Any) -> "QuantLayer":
        """Return a quantizable layer that shares the parameters of ``layer``."""

    @abstractmethod
    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's linear map with another weight."""

    def _along_input(self, vector: Tensor, ndim: int, axis: int) -> Tensor:
        shape = [1] * ndim
        shape[axis] = -1
        return vector.reshape(shape)

    def set_equivalent_scale_(self, scale: Tensor) -> nn.Parameter:
        """Set s [C_in]; any fixed rounding was for another weight and is dropped."""
        if scale.shape != (self.weight.shape[1],) or getattr(self, "groups", 1) != 1:
            raise ValueError(
                f"an equivalent scale needs one value per input channel of an ungrouped layer ({self.kind})"
            )
        self.equivalent_scale = nn.Parameter(scale, requires_grad=False)
        self.drop_rounding_()
        return self.equivalent_scale

    def add_adapter_(self, rank: int, generator: torch.Generator) -> tuple[nn.Parameter, nn.Parameter]:
        """Add a low-rank ΔW = up · down over the flattened input; it starts at zero. Returns (down, up)."""
        columns = self.weight[0].numel()
        down = torch.randn(rank, columns, generator=generator) / columns**0.5
        self.adapter_down = nn.Parameter(down.to(self.weight))
        self.adapter_up = nn.Parameter(self.weight.new_zeros(len(self.weight), rank))
        self.drop_rounding_()
        return self.adapter_down, self.adapter_up

    def set_weight_bits_(self, bits: int | tuple[int, ...]) -> None:
        """Quantize the weight with other ``bits``: one number, or one per row; 32 leaves it in full precision.

        The weight must be calibrated again. Equivalent scale, adapter and activation side stay.

        Raises:
            ValueError: a number of bits is not allowed, or there is not one for every row.
        """
        plan = self.plan.with_weight_bits(bits, len(self.weight))
        groups = InputGroups(self.weight.shape[1], plan.boundaries)
        self.plan = plan
        self.fixed_weight, self.lowered = None, None
        self.weight_quantizer = None
        if plan.quantizes_weight:
            self.weight_quantizer = self._weight_quantizer(plan, groups).to(self.weight.device)

    def drop_rounding_(self) -> None:
        """Forget learned or fixed rounding, because the weight or the grid that it was for has changed."""
        self.fixed_weight, self.lowered = None, None
        if self.weight_quantizer is not None:
            self.weight_quantizer.codes, self.weight_quantizer.alpha = None, None

    def scaled_weight(self) -> Tensor:
        """s ⊙ (W0 + ΔW): what the weight quantizer sees."""
        weight: Tensor = self.weight
        if self.adapter_down is not None and self.adapter_up is not None:
            weight = weight + (self.adapter_up @ self.adapter_down).view_as(weight)
        if self.equivalent_scale is not None:
            weight = weight * self._along_input(self.equivalent_scale, weight.ndim, 1)
        return weight

    def effective_weight(self) -> Tensor:
        """The weight that the layer computes with while quantization is on."""
        if not self.weight_on or self.weight_quantizer is None:
            return self.scaled_weight()
        if self.fixed_weight is not None:
            return self.fixed_weight
        return self.weight_quantizer(self.scaled_weight())

    def scaled_input(self, x: Tensor) -> Tensor:
        """x / s: what the activation quantizer sees."""
        if self.equivalent_scale is None:
            return x
        return x / self._along_input(self.equivalent_scale, x.ndim, self.channel_axis)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.weight_on or self.activation_on):
            return self.apply_weight(x, self.weight, self.bias)
        if self.lowered is not None and self.weight_on and self.activation_on:
            return self.lowered(x)
        x = self.scaled_input(x)
        if self.activation_on and self.activation_quantizer is not None:
            x = self.activation_quantizer(x)
        return self.apply_weight(x, self.effective_weight(), self.bias)

    @torch.no_grad()
    def freeze_weight_(self) -> None:
        """Fix the weight's codes. Activation parameters can still be trained; nothing quantizes a weight any more."""
        if self.weight_quantizer is not None:
            self.weight_quantizer.fix_(self.scaled_weight())
            self.fixed_weight = self.weight_quantizer.reconstruct()

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


class _QuantConv(QuantLayer):
    _conv_forward: Callable[[Tensor, Tensor, Tensor | None], Tensor]

    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x, weight, bias)

    @classmethod
    def of(cls, layer: Any) -> "QuantLayer":
        new: Any = cls(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            bias=layer.bias is not None,
            padding_mode=layer.padding_mode,
            device="meta",
        )
        new.weight, new.bias = layer.weight, layer.bias
        return new


class QuantConv1d(_QuantConv, nn.Conv1d):
    kind = "conv1d"


class QuantConv2d(_QuantConv, nn.Conv2d):
    kind = "conv2d"


class QuantLinear(QuantLayer, nn.Linear):
    kind = "linear"
    channel_axis = -1

    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    @classmethod
    def of(cls, layer: Any) -> "QuantLayer":
        new: Any = cls(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        new.weight, new.bias = layer.weight, layer.bias
        return new


QUANTIZABLE: dict[type[nn.Module], type[QuantLayer]] = {
    nn.Conv1d: QuantConv1d,
    nn.Conv2d: QuantConv2d,
    nn.Linear: QuantLinear,
}


def quantize_layers_(
    network: nn.Module, plan: PrecisionPlan, context: StepContext, steps: StepGroups | None = None
) -> None:
    """Replace the layers that ``plan`` names by quantizable ones that share their parameters.

    Raises:
        ValueError: the plan names a layer that the network lacks, or whose shape differs; the first one is named.
    """
    for layer_plan in plan.layers:
        parent_name, _, child_name = layer_plan.name.rpartition(".")
        try:
            parent = network.get_submodule(parent_name)
            child = parent.get_submodule(child_name)
        except AttributeError:
            raise ValueError(f"the precision plan names layer {layer_plan.name}, which this model lacks") from None
        if type(child) not in QUANTIZABLE:
            raise ValueError(f"layer {layer_plan.name} is a {type(child).__name__}, which cannot be quantized")
        layer_plan.check_shape(tuple(child.get_parameter("weight").shape))
        quantizable = QUANTIZABLE[type(child)].of(child)
        quantizable.attach_quantizers_(layer_plan, context, steps or StepGroups.shared())
        quantizable.train(child.training)
        setattr(parent, child_name, quantizable)


def quant_layers(network: nn.Module) -> dict[str, QuantLayer]:
    """Name → quantizable layer, in the order of registration."""
    return {name: module for name, module in network.named_modules() if isinstance(module, QuantLayer)}


def plan_of_layers(network: nn.Module, plan: PrecisionPlan) -> PrecisionPlan:
    """``plan``, by which the layers of ``network`` were made, with the bits that they have now."""
    layers = quant_layers(network)
    return replace(plan, layers=tuple(layers[layer.name].plan for layer in plan.layers))


def adopt_weight_bits_(network: nn.Module, plan: PrecisionPlan) -> None:
    """Give the layers of ``network`` the weight bits that ``plan`` has for them; those that have them stay as they are.

    Raises:
        ValueError: the plan is for other layers or rows; the first difference is named, and nothing is changed.
    """
    layers, plans = quant_layers(network), plan.by_name
    plan.check_layers({name: len(layer.weight) for name, layer in layers.items()})
    for name, layer in layers.items():
        rows = len(layer.weight)
        if plans[name].bits_of_rows(rows) != layer.plan.bits_of_rows(rows):
            layer.set_weight_bits_(plans[name].weight_bits)


def set_quantization_(network: nn.Module, *, weight: bool, activation: bool) -> None:
    """Switch weight and activation quantization of every quantizable layer and attention inside ``network``."""
    for module in network.modules():
        if isinstance(module, QuantLayer):
            module.weight_on, module.activation_on = weight, activation
        elif isinstance(module, AttentionQuantizers):
            module.activation_on = activation


@contextmanager
def quantization(network: nn.Module, *, weight: bool, activation: bool) -> Iterator[None]:
    """Switch quantization for a while; with both off the network is the teacher."""
    layers = [module for module in network.modules() if isinstance(module, QuantLayer)]
    attentions = [module for module in network.modules() if isinstance(module, AttentionQuantizers)]
    before = [(layer.weight_on, layer.activation_on) for layer in layers]
    attentions_before = [attention.activation_on for attention in attentions]
    set_quantization_(network, weight=weight, activation=activation)
    try:
        yield
    finally:
        for layer, (weight_on, activation_on) in zip(layers, before, strict=True):
            layer.weight_on, layer.activation_on = weight_on, activation_on
        for attention, activation_on in zip(attentions, attentions_before, strict=True):
            attention.activation_on = activation_on


def freeze_weight_(network: nn.Module) -> None:
    """Fix the weights of all quantizable layers."""
    for layer in quant_layers(network).values():
        layer.freeze_weight_()


def freeze_(network: nn.Module) -> None:
    """Fix weights and activation parameters of all quantizable layers and attentions, and switch quantization on.

    Raises:
        RuntimeError: an activation range was never calibrated.
    """
    for layer in quant_layers(network).values():
        layer.freeze_()
    for name, module in network.named_modules():
        if isinstance(module, AttentionQuantizers):
            module.requires_grad_(False)
            if not all(quantizer.initialised for quantizer in module.children()):
                raise RuntimeError(f"attention {name}: an activation range is not calibrated")
    set_quantization_(network, weight=True, activation=True)
