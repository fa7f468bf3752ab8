"""Weight bits that change after a layer was made, and plans that a network takes over."""

import pytest
import torch
from torch import nn

from dmqbench.quant.context import StepContext
from dmqbench.quant.layers import adopt_weight_bits_, plan_of_layers, quant_layers, quantize_layers_
from dmqbench.quant.plan import LayerPlan, PrecisionPlan
from dmqbench.quant.state import calibration_state

MIXED = (3, 1, 2, 2)
PLAN = PrecisionPlan((LayerPlan("0", 4, 8, (2,)), LayerPlan("1", 4, 6)), ("2",))


def network():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(6, 4, 3), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 1, 1))
    quantize_layers_(layers, PLAN, StepContext())
    return layers


def plan_with(**bits):
    """``PLAN`` with the weight bits of layers given as ``_0=…``."""
    layers = [LayerPlan(name.removeprefix("_"), value, 2) for name, value in bits.items()]
    return PrecisionPlan(tuple(layers))


@torch.no_grad()
def test_a_layer_gets_other_weight_bits_and_keeps_the_rest():
    layer = network()[0]
    layer.set_equivalent_scale_(torch.full((6,), 2.0))
    layer.activation_quantizer.set_parameters_(torch.ones(1, 2), torch.zeros(1, 2))
    layer.weight_quantizer.set_parameters_(torch.full((4, 2), 0.1), torch.full((4, 2), 8.0))
    layer.freeze_weight_()
    activation = layer.activation_quantizer
    layer.set_weight_bits_(MIXED)
    assert layer.plan == LayerPlan("0", MIXED, 8, (2,))
    assert layer.weight_quantizer.levels.tolist() == [8, 2, 4, 4]
    assert (layer.weight_quantizer.scale == 1).all() and layer.weight_quantizer.codes is None
    assert layer.fixed_weight is None
    assert layer.weight_quantizer.groups.slices == (slice(0, 2), slice(2, 6))
    assert layer.activation_quantizer is activation and activation.initialised
    assert (layer.equivalent_scale == 2).all()
    layer.weight_on = True
    weight = layer.effective_weight()
    assert [len(row.unique()) <= 2**bits for row, bits in zip(weight, MIXED, strict=True)] == [True] * 4


def test_equal_bits_of_rows_are_one_number_and_32_is_none_at_all():
    layer = network()[0]
    layer.set_weight_bits_((5,) * 4)
    assert (layer.plan.weight_bits, layer.weight_quantizer.levels.tolist()) == (5, [32] * 4)
    layer.set_weight_bits_(32)
    assert layer.weight_quantizer is None
    layer.set_weight_bits_(2)
    assert layer.weight_quantizer.levels.tolist() == [4] * 4


@pytest.mark.parametrize(
    ("bits", "message"), [((2, 2), "2 rows for layer 0, the model has 4"), (9, "weight bits 9"), ((2, 0, 2, 2), "0")]
)
def test_wrong_bits_change_nothing(bits, message):
    layer = network()[0]
    before = layer.weight_quantizer
    with pytest.raises(ValueError, match=message):
        layer.set_weight_bits_(bits)
    assert layer.weight_quantizer is before and layer.plan == PLAN.layers[0]


def test_a_network_takes_over_weight_bits_alone():
    layers = network()
    untouched = layers[1].weight_quantizer
    adopt_weight_bits_(layers, plan_with(_0=MIXED, _1=(4,) * 5))
    assert layers[1].weight_quantizer is untouched
    expected = PrecisionPlan((LayerPlan("0", MIXED, 8, (2,)), PLAN.layers[1]), ("2",))
    assert plan_of_layers(layers, PLAN) == expected
    assert calibration_state(layers)["0.weight_quantizer.levels"].tolist() == [8, 2, 4, 4]


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ({"_1": 4}, "the precision plan lacks layer 0, which is quantized here"),
        ({"_0": MIXED, "_1": 4, "_2": 4}, "the precision plan has layer 2, which is not quantized here"),
        ({"_0": MIXED, "_1": MIXED}, "the precision plan has 4 rows for layer 1, the model has 5"),
    ],
)
def test_another_network_is_refused_with_the_first_difference_and_nothing_changes(bits, message):
    layers = network()
    with pytest.raises(ValueError, match=f"^{message}$"):
        adopt_weight_bits_(layers, plan_with(**bits))
    assert plan_of_layers(layers, PLAN) == PLAN
    assert all((layer.weight_quantizer.levels == 16).all() for layer in quant_layers(layers).values())
