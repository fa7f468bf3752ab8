"""Engines: how a frozen layer is computed.

``simulate`` uses floats, ``int_reference`` exact integers. An engine is a function from a frozen layer to a callable on
the layer's float input; a faster one can be added here without touching a method.
"""

from collections.abc import Callable

from torch import Tensor, nn

from dmqbench.engines.int_reference import int_reference
from dmqbench.engines.simulate import simulate
from dmqbench.quant.frozen import FrozenLayer, freeze_layer, has_integer_form
from dmqbench.quant.layers import quant_layers
from dmqbench.quant.spec import ENGINE_NAMES

Engine = Callable[[FrozenLayer], Callable[[Tensor], Tensor]]

ENGINES: dict[str, Engine] = dict(zip(ENGINE_NAMES, (simulate, int_reference), strict=True))


def lower_(network: nn.Module, engine: str) -> None:
    """Let every frozen layer compute with ``engine``.

    Layers whose weights or activations are in full precision (bits 32), or whose ranges are taken from the activations
    as they come, have no integers beforehand and stay as they are.
    """
    for layer in quant_layers(network).values():
        if has_integer_form(layer):
            # The weight that it stands for can be made of the codes again, and is as large as the network.
            layer.lowered, layer.fixed_weight = ENGINES[engine](freeze_layer(layer)), None
