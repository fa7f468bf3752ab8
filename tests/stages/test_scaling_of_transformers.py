"""Equivalent scaling of every layer of a transformer, those behind adaptive norms, gates and activations included."""

import pytest
import torch
from tiny import dit, flux, inputs, pixart, sd3, sdxl_unet
from workbench import EQUIVALENT_SCALING, W3A6, workbench

from dmqbench.calibration.run import run_stage
from dmqbench.models.topology import trace
from dmqbench.quant.context import StepContext
from dmqbench.quant.layers import quant_layers, quantize_layers_, set_quantization_
from dmqbench.quant.plan import uniform_plan
from dmqbench.quant.spec import BitWidth, Scope
from dmqbench.stages.equivalent_scaling import EquivalentScaling

IN_DOUBLE = {"rtol": 1e-9, "atol": 1e-9}


def in_double(value):
    """Floating tensors of a tree in double precision; the rest as it is."""

    def convert(leaf):
        return leaf.double() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf

    return torch.utils._pytree.tree_map(convert, value)


@pytest.mark.parametrize("build", [sdxl_unet, dit, pixart, sd3, flux])
def test_learned_scales_change_nothing_in_full_precision(build):
    """Behind a norm with modulation, a gated or plain GELU, an attention: each layer undoes what divides its input."""
    bench = workbench(W3A6, network=build())
    run_stage(EquivalentScaling.of(bench, **{**EQUIVALENT_SCALING, "iterations": 3}), "cpu", [])
    learned = {name: layer.equivalent_scale for name, layer in quant_layers(bench.network).items()}
    assert all(scale is not None and len(scale.unique()) > 1 for scale in learned.values())

    network = build().double()
    args, kwargs = in_double(inputs(network))
    layers = trace(network, args, kwargs).layers
    with torch.no_grad():
        expected = network(*args, **kwargs)[0]
        plan = uniform_plan(layers, BitWidth(32, 32), Scope(first_last=True, embedding=True))
        quantize_layers_(network, plan, StepContext())
        for name, layer in quant_layers(network).items():
            scale = learned[name].double() if name in learned else torch.rand(layer.weight.shape[1]).double() + 0.5
            layer.set_equivalent_scale_(8 * scale)
        set_quantization_(network, weight=True, activation=True)
        torch.testing.assert_close(network(*args, **kwargs)[0], expected, **IN_DOUBLE)
