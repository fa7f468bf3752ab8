"""Equivalent scales moved for good into what writes a layer's input, where the algebra allows it.

y = (x / τ)(τ ⊙ W): where all layers that read x have the same τ, the rows that write x are divided by it instead, and
nothing is divided when the network runs. The calibration state keeps τ by layer; parameters are rescaled with it.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dmqbench.models.attention import ExplicitAttention
from dmqbench.models.equivalence_table import found_in
from dmqbench.models.equivalences import Equivalence, rescale_
from dmqbench.quant.functional import is_narrow
from dmqbench.quant.layers import quant_layers
from dmqbench.quant.state import load_calibration_state_

ADDED_UP = "it reads a sum of branches, a condition, or what an activation function stands before"
"""Why a layer is not absorbed of which nothing more is known."""


class Absorbable(NamedTuple):
    """Layers that can share one scale, place by place, and why others cannot have theirs absorbed."""

    shared: dict[str, tuple[str, ...]]
    left_out: dict[str, str]


def absorbable(network: nn.Module, layers: Collection[str]) -> Absorbable:
    """Sort the ``layers`` of a network whose layers and attentions are exchanged already."""
    places, reasons = found_in(network)
    shared: dict[str, tuple[str, ...]] = {}
    for place in places:
        members = tuple(part.layer for part in place.readers if part.layer in layers)
        problem = _problem(network, place)
        if problem is None and members:
            shared[place.name] = members
        elif problem is not None:
            reasons |= dict.fromkeys(members, problem)
    absorbed = {name for members in shared.values() for name in members}
    return Absorbable(shared, {name: reasons.get(name, ADDED_UP) for name in layers if name not in absorbed})


def _problem(network: nn.Module, place: Equivalence) -> str | None:
    """Why no equivalent scale of a whole input can be absorbed at a place."""
    weights = {name: network.get_parameter(f"{name}.weight") for name in place.modules}
    if any(weights[part.layer].shape[1] != place.channels for part in place.readers):
        return "it reads other channels too"
    attention = network.get_submodule(place.name.rpartition(".")[0])
    if place.kind == "value" and isinstance(getattr(attention, "processor", None), ExplicitAttention):
        return "the attention's values are quantized before it"
    if any(map(is_narrow, weights.values())):
        return "weights in fewer bits than float32 would be rounded again"
    return None


@torch.no_grad()
def absorb_(network: nn.Module, scales: Mapping[str, Tensor]) -> None:
    """Rescale a network by the equivalent scales [C_in] of layers, which are the same for all layers of a place."""
    for place in found_in(network)[0]:
        scale = next((scales[part.layer] for part in place.readers if part.layer in scales), None)
        if scale is not None:
            rescale_(network, place, 1 / scale.double())
    layers = quant_layers(network)
    for name, scale in scales.items():
        layers[name].absorbed_scale = scale.detach().to(layers[name].weight.device, copy=True)
        layers[name].equivalent_scale = None


def load_state_into_(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Set a network to a calibration state, its own parameters rescaled as the state asks.

    Raises:
        ValueError: the state is of another model or plan, or the network's parameters were rescaled by other scales.
    """
    layers = quant_layers(network)
    held = {name: layer.absorbed_scale for name, layer in layers.items() if layer.absorbed_scale is not None}
    suffix = ".absorbed_scale"
    wanted = {key.removesuffix(suffix): value for key, value in state.items() if key.endswith(suffix)}
    if held and not (held.keys() == wanted.keys() and all(torch.equal(held[k], wanted[k].to(held[k])) for k in held)):
        raise ValueError("the network has absorbed other equivalent scales than the calibration state holds")
    load_calibration_state_(network, state)
    if wanted and not held:
        absorb_(network, wanted)
