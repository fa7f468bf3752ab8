"""Weights that lie elsewhere: what is computed with them, and that they lie there."""

from itertools import combinations

import pytest
import torch
from tiny import smallest_unet
from workbench import ACTIVATION_RANGE, MSE, W3A6, adapter_of, topology_of, workbench

from dmqbench.calibration.offloading import offloaded_bytes, weights_elsewhere
from dmqbench.calibration.rows import Shelf
from dmqbench.calibration.run import run_stage
from dmqbench.models.live_memory import live_memory, network_bytes
from dmqbench.quant.context import StepContext
from dmqbench.quant.layers import freeze_weight_, quant_layers, quantization, quantize_layers_
from dmqbench.quant.plan import uniform_plan
from dmqbench.quant.spec import COMMON_SCOPE
from dmqbench.stages.ranges import ActivationRange, WeightRange


@pytest.fixture(scope="module")
def bench():
    """Layers with ranges, the first of them with an equivalent scale and an adapter."""
    bench = workbench()
    run_stage(WeightRange.of(bench, **MSE), "cpu", [])
    run_stage(ActivationRange.of(bench, **ACTIVATION_RANGE), "cpu", [])
    _, layer, *_ = quant_layers(bench.network).values()
    layer.set_equivalent_scale_(torch.linspace(0.5, 2, layer.weight.shape[1]))
    _, up = layer.add_adapter_(2, torch.Generator().manual_seed(0))
    up.data += 0.01
    return bench


def computed(bench, weight, activation):
    """A prediction and the gradient of its square."""
    point = bench.bank.cal.at(bench.bank.cal.spread(3))
    x = point.x.clone().requires_grad_()
    with quantization(bench.network, weight=weight, activation=activation):
        output = bench.adapter.denoise(x, point.timestep, point.cond, point.step)
    return output.detach(), *torch.autograd.grad(output.square().sum(), x)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("switches", [(False, False), (True, True)])
def test_the_same_bits_are_computed(bench, switches, frozen):
    if frozen:
        freeze_weight_(bench.network)
    before = computed(bench, *switches)
    weights = {name: (layer.weight, layer.weight.clone()) for name, layer in quant_layers(bench.network).items()}
    with weights_elsewhere(bench.network, Shelf(moved=True)):
        assert all(weight.isnan().all() for weight, _ in weights.values())
        assert not any(layer.fixed_weight is not None for layer in quant_layers(bench.network).values())
        assert all(map(torch.equal, before, computed(bench, *switches)))
    for name, layer in quant_layers(bench.network).items():
        weight, values = weights[name]
        assert layer.weight is weight and torch.equal(weight, values)
    assert all(map(torch.equal, before, computed(bench, *switches)))


def test_layers_that_share_a_weight_get_it_back():
    bench = workbench()
    layers = list(quant_layers(bench.network).values())
    first, second = next(pair for pair in combinations(layers, 2) if pair[0].weight.shape == pair[1].weight.shape)
    second.weight = first.weight
    values = first.weight.clone()
    with weights_elsewhere(bench.network, Shelf(moved=True)):
        assert torch.equal(second.unscaled_weight(), values)
    assert second.weight is first.weight and torch.equal(first.weight, values)


def test_what_is_planned_is_one_layer_at_a_time():
    network = smallest_unet()
    topology = topology_of(adapter_of(network))
    network.to("meta")
    quantize_layers_(network, uniform_plan(topology.layers, W3A6, COMMON_SCOPE), StepContext())
    freeze_weight_(network)
    layers, whole = quant_layers(network).values(), network_bytes(network)
    weights = sum(layer.weight.nbytes for layer in layers)
    assert offloaded_bytes(network) == weights
    codes = weights // 4
    with weights_elsewhere(network, Shelf(moved=True)):
        rest = network_bytes(network)
        assert codes < rest < whole - 1.9 * weights  # first weights and quantized ones
        with live_memory() as live:
            brought = [layer.unscaled_weight() is None for layer in layers]
        assert not any(brought)
        assert live.peak == max(layer.weight.nbytes for layer in layers)
    assert network_bytes(network) == whole
