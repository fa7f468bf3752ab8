"""Quantized layers: drop-in subclasses of torch's, and what is done to all of a network."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from dmqbench.quant.attention import AttentionQuantizers
from dmqbench.quant.context import StepContext
from dmqbench.quant.layer import QuantLayer
from dmqbench.quant.plan import PrecisionPlan
from dmqbench.quant.quantizer import ActivationQuantizer, WeightQuantizer
from dmqbench.quant.spec import StepGroups


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


def weight_layers(network: nn.Module) -> dict[str, QuantLayer]:
    """Those whose weights are quantized."""
    return {name: layer for name, layer in quant_layers(network).items() if layer.weight_quantizer is not None}


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


def _switched(network: nn.Module) -> list[QuantLayer | AttentionQuantizers]:
    """What quantization can be switched on and off of."""
    return [module for module in network.modules() if isinstance(module, (QuantLayer, AttentionQuantizers))]


def set_quantization_(network: nn.Module, *, weight: bool, activation: bool) -> None:
    """Switch weight and activation quantization of every quantizable layer and attention inside ``network``."""
    for module in _switched(network):
        module.activation_on = activation
        if isinstance(module, QuantLayer):
            module.weight_on = weight


def set_clipping_(network: nn.Module, clipping: str) -> None:
    """Let the gradients of every quantizer inside ``network`` be clipped so: see ``functional.CLIPPINGS``."""
    for module in network.modules():
        if isinstance(module, ActivationQuantizer | WeightQuantizer):
            module.clipping = clipping


@contextmanager
def quantization(network: nn.Module, *, weight: bool, activation: bool) -> Iterator[None]:
    """Switch quantization for a while; with both off the network is the teacher."""
    switches = ("weight_on", "activation_on")
    before = [
        (module, name, vars(module)[name]) for module in _switched(network) for name in switches if name in vars(module)
    ]
    set_quantization_(network, weight=weight, activation=activation)
    try:
        yield
    finally:
        for module, name, state in before:
            setattr(module, name, state)


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
