"""The tensors of a quantized network's file: codes packed to their bits, and how long the file will be.

Everything here works on the meta device as well, where tensors have shapes and no values.
"""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from dmqbench.quant.packing import pack, unpack
from dmqbench.quant.plan import LayerPlan, PrecisionPlan

_CODES, _BITS, _LEVELS = (f"weight_quantizer.{name}" for name in ("codes", "bits", "levels"))
_ONLY_WHILE_CALIBRATING = ("weight_quantizer.alpha", "adapter_down", "adapter_up")
"""Tensors that end with the weight's rounding: the codes hold what they led to."""
_ABSORBED = "absorbed_scale"
"""Likewise of every layer: its parameters and those before it hold it."""

# In the order of the file format: tensors are laid out by type, the last first, then by name.
_TYPES = {
    **{torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.float16: "F16"},
    **{torch.bfloat16: "BF16", torch.int32: "I32", torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"},
}
_ALIGNMENT = 8


def packed(tensors: Mapping[str, Tensor], plan: PrecisionPlan) -> dict[str, Tensor]:
    """Return what the file holds of the state of a frozen network.

    A layer's codes [R, C, …] become one stream (``quant.packing``), and its numbers of levels the bits of its rows,
    uint8 [R]; everything else stays.

    Raises:
        ValueError: codes do not fit the bits that ``plan`` gives them.
    """
    held = dict(tensors)
    for layer in _coded(plan):
        codes = held.pop(f"{layer.name}.{_CODES}")
        del held[f"{layer.name}.{_LEVELS}"]
        bits = layer.bits_of_rows(len(codes))
        try:
            held[f"{layer.name}.{_CODES}"] = pack(codes.flatten(1), bits)
        except ValueError as error:
            raise ValueError(f"layer {layer.name}: {error}") from None
        held[f"{layer.name}.{_BITS}"] = torch.tensor(bits, dtype=torch.uint8, device=codes.device)
    return held


def unpacked(
    tensors: Mapping[str, Tensor], plan: PrecisionPlan, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Return the state that ``packed`` was given.

    Args:
        shapes: of the weight of every layer with codes, by the layer's name.

    Raises:
        ValueError: codes or bits of a layer are missing, or are not those of the plan and the shape.
    """
    state = dict(tensors)
    for layer in _coded(plan):
        if layer.name not in shapes:
            raise ValueError(f"has layer {layer.name}, which this model lacks")
        for name in (f"{layer.name}.{_CODES}", f"{layer.name}.{_BITS}"):
            if name not in tensors:
                raise ValueError(f"lacks {name}")
        codes, bits = state.pop(f"{layer.name}.{_CODES}"), state.pop(f"{layer.name}.{_BITS}")
        rows, *rest = shapes[layer.name]
        wanted = torch.tensor(layer.bits_of_rows(rows), dtype=torch.uint8)
        if not torch.equal(bits, wanted):
            raise ValueError(f"holds {layer.name}.{_BITS} of other rows or bit-widths than the precision plan's")
        try:
            flat = unpack(codes, wanted.tolist(), prod(rest))
        except ValueError as error:
            raise ValueError(f"holds {layer.name}.{_CODES} that cannot be read: {error}") from None
        state[f"{layer.name}.{_CODES}"] = flat.reshape(rows, *rest)
        state[f"{layer.name}.{_LEVELS}"] = 2 ** wanted.to(torch.int32)
    return state


def _coded(plan: PrecisionPlan) -> tuple[LayerPlan, ...]:
    return tuple(layer for layer in plan.layers if layer.quantizes_weight)


def frozen_state(
    network: Mapping[str, Tensor], calibration: Mapping[str, Tensor], plan: PrecisionPlan
) -> dict[str, Tensor]:
    """Return the shapes, on the meta device, of the state that a network has once it is frozen and let go.

    Args:
        network: the state of the full-precision network.
        calibration: the calibration state; rounding need not be fixed in it.
    """
    coded = [layer.name for layer in _coded(plan)]
    dropped = {f"{name}.{tensor}" for name in coded for tensor in _ONLY_WHILE_CALIBRATING}
    state = {name: value for name, value in calibration.items() if name not in dropped and not name.endswith(_ABSORBED)}
    weights = {f"{name}.weight" for name in coded}
    state |= {name: value for name, value in network.items() if name not in weights}
    shapes = {name: torch.empty_like(value, device="meta") for name, value in state.items()}
    for name in coded:
        shapes[f"{name}.{_CODES}"] = torch.empty(network[f"{name}.weight"].shape, dtype=torch.uint8, device="meta")
    return shapes


def shapes_in(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file on the meta device; only its header is read."""
    types = {name: dtype for dtype, name in _TYPES.items()}
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {
            name: torch.empty(part.get_shape(), dtype=types[part.get_dtype()], device="meta")
            for name, part in slices.items()
        }


def file_length(tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes of the safetensors file of ``tensors``, its header included."""
    order = list(_TYPES)
    header: dict[str, dict[str, object]] = {}
    end = 0
    for name in sorted(tensors, key=lambda name: (-order.index(tensors[name].dtype), name)):
        start, end = end, end + tensors[name].nbytes
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _TYPES[tensors[name].dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + -(-len(text) // _ALIGNMENT) * _ALIGNMENT + end
