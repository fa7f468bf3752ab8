"""The consistency U-Net of adaptive-terrain-diffusion (MIT), out of its ONNX file.

Parameters have the names of the original's ADM there. What its group normalizations multiply by and add was folded into
constants without names, and a perceptron reads the difficulty, 0 to 1 in 99 steps: a table of what it says takes its
place.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import save_file
from torch import Tensor

from dmqbench.models.compvis.unet import converted_unet
from dmqbench.models.folders import read_config

_PREFIX, _LABEL = "network.", "label_emb."
_NORM_BEFORE = {
    "in_layers.2": "in_layers.0",
    "out_layers.3": "out_layers.0",
    "qkv": "norm",
    "out.2": "out.0",
}
"""Convolution → the normalization that comes before it."""


def convert(file: Path, config: Path, target: Path) -> None:
    """Write the weights of the network that ``config`` makes to ``target``."""
    tensors = terrain_weights(onnx.load(file).graph, read_config(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target, {"format": "pt"})


def terrain_weights(graph: onnx.GraphProto, config: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the weights in ``graph`` by diffusers' names; ``config`` is that of the network they are for."""
    constants = {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in graph.initializer}
    own = {name.removeprefix(_PREFIX): value for name, value in constants.items() if name.startswith(_PREFIX)}
    label = {name.removeprefix(_LABEL): own.pop(name) for name in [*own] if name.startswith(_LABEL)}
    network = converted_unet({**own, **dict(_norms(graph, constants))}, config, heads_outside=True)
    return {**network, "class_embedding.weight": _table(label, config["num_class_embeds"])}


def _norms(graph: onnx.GraphProto, constants: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Weight and bias of every group normalization, by the original's names."""
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    for node in graph.node:
        if node.op_type == "InstanceNormalization":  # of groups; then come their shape, the weight and the bias
            [shaped] = readers[node.output[0]]
            [scaled] = readers[shaped.output[0]]
            [shifted] = readers[scaled.output[0]]
            norm = _norm_before(readers, shifted)
            yield f"{norm}.weight", constants[scaled.input[1]].flatten()
            yield f"{norm}.bias", constants[shifted.input[1]].flatten()


def _norm_before(readers: Mapping[str, list[onnx.NodeProto]], node: onnx.NodeProto) -> str:
    """The name of the normalization that ends with ``node``: all that reads it leads to one convolution."""
    while node.op_type != "Conv":
        node = readers[node.output[0]][0]
    convolution = node.input[1].removeprefix(_PREFIX).removesuffix(".weight")
    layer = next(layer for layer in _NORM_BEFORE if convolution.endswith(layer))
    return convolution.removesuffix(layer) + _NORM_BEFORE[layer]


def _table(label: Mapping[str, Tensor], rows: int) -> Tensor:
    """What the perceptron says of every difficulty, computed in float64, so that it is the same everywhere."""
    weights = {name: tensor.double() for name, tensor in label.items()}
    difficulty = (torch.arange(rows).double() / (rows - 1)).float().double()
    hidden = difficulty[:, None] @ weights["0.weight"].T + weights["0.bias"]
    return (torch.nn.functional.silu(hidden) @ weights["2.weight"].T + weights["2.bias"]).float()
