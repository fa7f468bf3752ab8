"""Calibration state: the same bits back, into an equal network only."""

import pytest
import torch
from torch import nn

from dmqbench.engines import lower_
from dmqbench.quant.attention import AttentionQuantizers
from dmqbench.quant.context import StepContext
from dmqbench.quant.functional import affine_parameters
from dmqbench.quant.layers import freeze_, quant_layers, quantize_layers_, set_quantization_
from dmqbench.quant.plan import LayerPlan, PrecisionPlan
from dmqbench.quant.spec import StepGroups
from dmqbench.quant.state import activation_quantizers, calibration_state, load_calibration_state_

BITS = (1, 2, 3, 4, 8)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv1d(6, 5, 3, padding=1)
        self.linear = nn.Linear(5, 4)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(self.conv(x).transpose(1, 2))
        if isinstance(getattr(self, "attention", None), AttentionQuantizers):
            x = self.attention(x[:, None], x[:, None], x[:, None], 0.5)[:, 0]
        return x


def fresh(bits=BITS, boundaries=(4,), attention=True) -> tuple[Network, StepContext]:
    network, context = Network(), StepContext()
    plan = PrecisionPlan((LayerPlan("conv", bits, 8, boundaries), LayerPlan("linear", 4, 6)))
    quantize_layers_(network, plan, context, StepGroups.per_step(3))
    if attention:
        network.attention = AttentionQuantizers(context, 256, StepGroups.per_step(3))
    return network, context


@torch.no_grad()
def calibrate_(network: Network, *, freeze: bool) -> None:
    """Fill in every kind of calibration tensor."""
    generator = torch.Generator().manual_seed(1)
    network.conv.set_equivalent_scale_(torch.rand(6, generator=generator) + 0.5)
    network.linear.add_adapter_(2, generator)[1].normal_(generator=generator)
    for layer in quant_layers(network).values():
        weights = layer.weight_quantizer
        grids = [
            affine_parameters(rows.amin(1), rows.amax(1), weights.levels)
            for rows in weights.rows(layer.scaled_weight())
        ]
        weights.set_parameters_(*(torch.stack(tables, 1) for tables in zip(*grids, strict=True)))
    for quantizer in activation_quantizers(network).values():
        scale = torch.rand(quantizer.scale.shape, generator=generator) * 0.1 + 0.02
        quantizer.set_parameters_(scale, torch.full_like(scale, quantizer.levels // 2))
    network.conv.activation_quantizer.exponent = torch.randint(-1, 2, (3, 6), dtype=torch.int8)
    network.linear.weight_quantizer.learn_rounding_(network.linear.scaled_weight())
    if freeze:
        freeze_(network)
    set_quantization_(network, weight=True, activation=True)


def output(network: Network, context: StepContext) -> torch.Tensor:
    x = torch.randn(3, 6, 7, generator=torch.Generator().manual_seed(2))
    with context.at(torch.tensor([2, 0, 1])), torch.no_grad():
        return network(x)


@pytest.mark.parametrize("freeze", [False, True], ids=["in training", "frozen"])
def test_state_brings_back_the_same_bits(freeze):
    network, context = fresh()
    calibrate_(network, freeze=freeze)
    state = calibration_state(network)
    again, its_context = fresh()
    load_calibration_state_(again, state)
    set_quantization_(again, weight=True, activation=True)
    assert torch.equal(output(again, its_context), output(network, context))
    round_trip = calibration_state(again)
    assert round_trip.keys() == state.keys()
    assert all(torch.equal(round_trip[key], value) for key, value in state.items())
    assert all(round_trip[key].dtype == value.dtype for key, value in state.items())


def test_state_is_a_copy_and_holds_no_weights_of_the_model():
    network, _ = fresh()
    calibrate_(network, freeze=True)
    state = calibration_state(network)
    before = state["conv.weight_quantizer.scale"].clone()
    with torch.no_grad():
        network.conv.weight_quantizer.scale.zero_()
    assert torch.equal(state["conv.weight_quantizer.scale"], before)
    assert not {"conv.weight", "conv.bias", "conv.fixed_weight"} & state.keys()


def test_what_the_state_lacks_is_reset():
    network, _ = fresh()
    before = calibration_state(network)
    calibrate_(network, freeze=True)
    lower_(network, "simulate")
    load_calibration_state_(network, before)
    assert calibration_state(network).keys() == before.keys()
    conv = network.conv
    assert conv.fixed_weight is None and conv.equivalent_scale is None and conv.lowered is None


def test_step_tables_may_differ_from_those_the_network_was_built_with():
    network, _ = fresh()
    calibrate_(network, freeze=False)
    shared = StepGroups.shared()
    network.linear.activation_quantizer.set_parameters_(torch.ones(1, 1), torch.zeros(1, 1), shared)
    again, _ = fresh()
    load_calibration_state_(again, calibration_state(network))
    assert not again.linear.activation_quantizer.per_step and again.conv.activation_quantizer.per_step


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"bits": 4}, "conv.weight_quantizer.levels differs: the calibration state is for other bit-widths"),
        ({"boundaries": ()}, r"conv.weight_quantizer.scale has shape \[5, 2\] .* \[5, 1\] in this model"),
        ({"attention": False}, "holds attention.query.scale, which this model or precision plan lacks"),
    ],
    ids=["bits", "boundaries", "attention"],
)
def test_the_first_difference_to_another_model_is_named_and_nothing_changed(other, message):
    network, _ = fresh()
    calibrate_(network, freeze=True)
    another, _ = fresh(**other)
    before = calibration_state(another)
    with pytest.raises(ValueError, match=message):
        load_calibration_state_(another, calibration_state(network))
    after = calibration_state(another)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key].nan_to_num(), after[key].nan_to_num()) for key in before)


def test_missing_unknown_and_misshapen_tensors_are_named():
    network, _ = fresh()
    calibrate_(network, freeze=True)
    state = calibration_state(network)
    missing = {key: value for key, value in state.items() if key != "linear.weight_quantizer.scale"}
    with pytest.raises(ValueError, match=r"lacks linear\.weight_quantizer\.scale"):
        load_calibration_state_(network, missing)
    for unknown in ("linear.weight_quantizer.forward", "linear.weight", "nowhere.scale", "scale"):
        with pytest.raises(ValueError, match=f"holds {unknown}, which this model"):
            load_calibration_state_(network, {**state, unknown: torch.zeros(1)})
    with pytest.raises(ValueError, match=r"conv.weight_quantizer.codes has shape \[5, 6\]"):
        load_calibration_state_(network, {**state, "conv.weight_quantizer.codes": torch.zeros(5, 6)})
