"""The state of calibration of a network, as plain tensors: what a stage hands to the next, and what is stored."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from dmqbench.quant.attention import AttentionQuantizers
from dmqbench.quant.functional import interpolate_parameters
from dmqbench.quant.layer import QuantLayer
from dmqbench.quant.layers import quant_layers
from dmqbench.quant.quantizer import ActivationQuantizer
from dmqbench.quant.spec import Neighbours, StepGroups

DERIVED = ("weight", "bias", "fixed_weight", "group_of_channel")
"""Tensors of a layer that are the model's own, or follow from the rest."""

OPTIONAL = (
    "alpha",
    "codes",
    "exponent",
    "equivalent_scale",
    "absorbed_scale",
    "output_shift",
    "adapter_down",
    "adapter_up",
)
"""Tensors that a quantizer or layer may be without."""

Shape = tuple[int | None, ...]
"""Expected sizes; None where any size will do."""


def _owners(network: nn.Module) -> dict[str, nn.Module]:
    """Every module that holds calibration tensors directly, by name."""
    owners: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        if isinstance(module, QuantLayer | AttentionQuantizers):
            for inner, child in module.named_modules(prefix=name):
                owners[inner] = child
    return owners


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    tensors = {**module._parameters, **module._buffers}
    return {name: value for name, value in tensors.items() if value is not None and name not in DERIVED}


def _expected_shapes(name: str, module: nn.Module, network: nn.Module) -> dict[str, Shape]:
    """The shape of every calibration tensor that ``module`` may hold."""
    if isinstance(module, ActivationQuantizer):
        groups = module.groups
        table: Shape = (None, groups.count)
        return {
            "scale": table,
            "zero_point": table,
            "exponent": (None, groups.channels),
            "row_of_call": (None,),
        }
    if isinstance(module, QuantLayer):
        rows, channels, *_ = module.weight.shape
        return {
            "equivalent_scale": (channels,),
            "absorbed_scale": (channels,),
            "output_shift": (rows,),
            "adapter_down": (None, module.weight[0].numel()),
            "adapter_up": (rows, None),
        }
    if isinstance(module, AttentionQuantizers):
        return {}
    weight = network.get_submodule(name.rpartition(".")[0]).weight
    assert isinstance(weight, Tensor)
    own: dict[str, Shape] = {key: tuple(value.shape) for key, value in _own_tensors(module).items()}
    return own | {"codes": tuple(weight.shape), "alpha": tuple(weight.shape)}


def _fits(shape: torch.Size, expected: Shape) -> bool:
    return len(shape) == len(expected) and all(
        size in (actual, None) for actual, size in zip(shape, expected, strict=True)
    )


def _first_difference(network: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """In what ``state`` does not fit ``network``, or None."""
    owners = _owners(network)
    shapes = {name: _expected_shapes(name, module, network) for name, module in owners.items()}
    for key, value in state.items():
        name, _, attribute = key.rpartition(".")
        expected = shapes.get(name, {}).get(attribute)
        if expected is None:
            return f"the calibration state holds {key}, which this model or precision plan lacks"
        if not _fits(value.shape, expected):
            return f"{key} has shape {list(value.shape)} in the calibration state, {list(expected)} in this model"
        if attribute == "levels" and not torch.equal(value.cpu(), getattr(owners[name], attribute).cpu()):
            return f"{key} differs: the calibration state is for other bit-widths"
    for name, module in owners.items():
        for attribute in _own_tensors(module):
            required = attribute not in OPTIONAL and not isinstance(module, ActivationQuantizer)
            if required and f"{name}.{attribute}" not in state:
                return f"the calibration state lacks {name}.{attribute}"
    return None


def activation_quantizers(network: nn.Module) -> dict[str, ActivationQuantizer]:
    """Name → activation quantizer of every layer and attention whose parameters are calibrated, in the order of
    registration; dynamic ones have none."""
    modules = {name: module for name, module in network.named_modules() if isinstance(module, ActivationQuantizer)}
    return {name: module for name, module in modules.items() if module.dynamic is None}


def follow_calls_(network: nn.Module, calls: Sequence[int]) -> None:
    """Let network call i from now on use the activation parameters that call ``calls[i]`` has used."""
    for quantizer in activation_quantizers(network).values():
        if quantizer.per_step:
            quantizer.row_of_call = quantizer.row_of_call[torch.tensor(calls, device=quantizer.row_of_call.device)]


def tensors_of(calls: Sequence[Neighbours]) -> tuple[Tensor, Tensor, Tensor]:
    """Their near and far calls, int64 [n], and shares, float64 [n]."""
    near, far = (torch.tensor([getattr(call, name) for call in calls]) for name in ("near", "far"))
    return near, far, torch.tensor([call.share for call in calls], dtype=torch.float64)


@torch.no_grad()
def interpolate_calls_(network: nn.Module, calls: Sequence[Neighbours]) -> None:
    """Let network call i from now on use activation parameters that lie as far between two rows as ``calls[i]`` does.

    Tables then have a row per call. Powers of two are integers, and those of the nearer row.
    """
    near, far, share = tensors_of(calls)
    for quantizer in activation_quantizers(network).values():
        if not quantizer.per_step:
            continue
        device, scale, zero_point = quantizer.scale.device, quantizer.scale, quantizer.zero_point
        rows, others = (quantizer.row_of_call[calls_of.to(device)] for calls_of in (near, far))
        between = interpolate_parameters(
            scale[rows], zero_point[rows], scale[others], zero_point[others], share.to(device)[:, None]
        )
        if quantizer.exponent is not None and len(quantizer.exponent) > 1:
            quantizer.exponent = quantizer.exponent[rows]
        quantizer.set_parameters_(*between, StepGroups.per_step(len(calls)))


def calibration_state(network: nn.Module, activations: bool = True) -> dict[str, Tensor]:
    """Return copies of all calibration tensors: codes, scales, zero-points, levels, exponents, tables, adapters.

    Without ``activations`` the state holds nothing of activation quantizers, so that weights calibrated once serve
    every activation bit-width.
    """
    return {name: value.detach().clone().contiguous() for name, value in _calibration_tensors(network, activations)}


def calibration_bytes(network: nn.Module) -> int:
    """Return what ``calibration_state`` would take."""
    return sum(value.nbytes for _, value in _calibration_tensors(network))


def _calibration_tensors(network: nn.Module, activations: bool = True) -> Iterator[tuple[str, Tensor]]:
    for name, module in _owners(network).items():
        if activations or not isinstance(module, ActivationQuantizer):
            for attribute, value in _own_tensors(module).items():
                yield f"{name}.{attribute}", value


@torch.no_grad()
def load_calibration_state_(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Set all calibration tensors to ``state``; no layer is lowered any more.

    Optional tensors that it lacks become absent, activation quantizers that it does not speak of uncalibrated.

    Raises:
        ValueError: the state is of another model or plan; the first difference is named, and nothing is changed.
    """
    difference = _first_difference(network, state)
    if difference is not None:
        raise ValueError(difference)
    owners = _owners(network)
    for name, module in owners.items():
        for attribute in _own_tensors(module):
            if f"{name}.{attribute}" in state:
                continue
            if attribute in OPTIONAL:
                setattr(module, attribute, None)
            elif attribute == "scale":
                module.get_parameter(attribute).fill_(torch.nan)
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    for key, value in state.items():
        name, _, attribute = key.rpartition(".")
        module = owners[name]
        value = value.to(device, copy=True)
        is_buffer = attribute in module._buffers
        setattr(module, attribute, value if is_buffer else nn.Parameter(value, requires_grad=False))
    for layer in quant_layers(network).values():
        weights = layer.weight_quantizer
        layer.fixed_weight, layer.lowered = None, None
        if weights is not None and weights.codes is not None:
            layer.show_codes_()
