"""Networks in bfloat16: products in it, quantizers in float32."""

import copy

import pytest
import torch
import torch.nn.functional as F
from quant.test_serving import TIMESTEPS, calibrated, output
from torch import nn

from dmqbench.engines import ENGINES, lower_
from dmqbench.quant.attention import AttentionQuantizers
from dmqbench.quant.context import StepContext
from dmqbench.quant.frozen import has_integer_form
from dmqbench.quant.functional import affine_parameters, fake_quantize
from dmqbench.quant.layers import freeze_, quant_layers, quantization, quantize_layers_
from dmqbench.quant.plan import LayerPlan, PrecisionPlan
from dmqbench.quant.serving import CallWatch, ServingError, serve_
from dmqbench.quant.spec import BitWidth, StepGroups

NARROW = torch.bfloat16


def convolution(bias=True):
    """A quantizable convolution in bfloat16, cut in two parts of its input, and an input."""
    network = nn.Sequential(nn.Conv2d(6, 4, 3, padding=1, bias=bias)).to(NARROW).requires_grad_(False)
    x = torch.randn(3, 6, 5, 5).to(NARROW)
    plan = PrecisionPlan((LayerPlan("0", 4, 6, (2,)),))
    quantize_layers_(network, plan, StepContext())
    (layer,) = quant_layers(network).values()
    layer.set_equivalent_scale_(0.5 + torch.rand(6))
    ends = [torch.aminmax(rows, dim=1) for rows in layer.weight_quantizer.rows(layer.scaled_weight())]
    grids = [affine_parameters(low, high, 16) for low, high in ends]
    layer.weight_quantizer.set_parameters_(*(torch.stack(table, dim=1) for table in zip(*grids, strict=True)))
    parts = [layer.scaled_input(x)[:, part] for part in layer.activation_quantizer.groups.slices]
    grids = [affine_parameters(part.min()[None], part.max()[None], 64) for part in parts]
    layer.activation_quantizer.set_parameters_(*(torch.stack(table, dim=1) for table in zip(*grids, strict=True)))
    return network, layer, x


def restated(layer, x):
    """What the layer computes, part by part: operands are quantized in float32 and rounded, the product is narrow."""
    weights, activations, scale = layer.weight_quantizer, layer.activation_quantizer, layer.equivalent_scale
    of_input, of_weight = [], []
    for group, part in enumerate(weights.groups.slices):
        own = x[:, part].float() / scale[part, None, None]
        of_input.append(fake_quantize(own, activations.scale[0, group], activations.zero_point[0, group], 64))
        own = layer.weight[:, part].float() * scale[part, None, None]
        grid = (table[:, group].view(-1, 1, 1, 1) for table in (weights.scale, weights.zero_point))
        of_weight.append(fake_quantize(own, *grid, 16))
    operands = (torch.cat(parts, 1).to(NARROW) for parts in (of_input, of_weight))
    return F.conv2d(*operands, layer.bias, padding=1)


@pytest.mark.parametrize("bias", [True, False])
def test_operands_are_quantized_in_float32_and_multiplied_in_the_network_s_precision(bias):
    network, layer, x = convolution(bias)
    with quantization(network, weight=True, activation=True):
        assert torch.equal(network(x), restated(layer, x))
    assert torch.equal(network(x), F.conv2d(x, layer.weight, layer.bias, padding=1))
    freeze_(network)
    assert network(x).dtype == layer.fixed_weight.dtype == NARROW
    assert torch.equal(network(x), restated(layer, x))


@pytest.mark.parametrize("trained", [("weight_quantizer.alpha",), ("adapter_down", "adapter_up")], ids=len)
def test_what_is_trained_is_in_float32_and_has_the_gradient_of_float32(trained):
    network, layer, x = convolution()
    if len(trained) == 1:
        layer.weight_quantizer.learn_rounding_(layer.scaled_weight())
    else:
        _, up = layer.add_adapter_(2, torch.Generator().manual_seed(0))
        up.data.normal_(std=0.01)
    names, target = [*trained, "activation_quantizer.scale", "weight_quantizer.scale"], torch.randn(3, 4, 5, 5)

    def gradients(network, x):
        leaves = [network[0].get_parameter(name).requires_grad_(True) for name in names]
        assert {leaf.dtype for leaf in leaves} == {torch.float32}
        with quantization(network, weight=True, activation=True):
            loss = (network(x).float() - target).square().mean()
        return torch.autograd.grad(loss, leaves)

    own = gradients(network, x)
    for narrow, full in zip(own, gradients(copy.deepcopy(network).float(), x.float()), strict=True):
        assert narrow.dtype == torch.float32 and 0 < (narrow - full).norm() < 0.02 * full.norm()


def test_attention_s_softmax_is_in_float32_as_are_its_quantizers():
    quantizers = AttentionQuantizers(StepContext(), 256)
    query, key, value = (torch.randn(2, 2, 7, 4).to(NARROW) for _ in range(3))
    found = quantizers(query, key, value, 0.5)
    expected = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), scale=0.5)
    assert found.dtype == NARROW and (found.float() - expected).abs().max() < 0.02
    for quantizer in quantizers.children():
        low, high = (0.0, 1.0) if quantizer is quantizers.scores else (-4.0, 4.0)
        grid = affine_parameters(torch.tensor([[low]]), torch.tensor([[high]]), 256)
        quantizer.set_parameters_(*grid)
    seen = []
    for quantizer in quantizers.children():
        quantizer.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    quantizers.activation_on = True
    assert (quantizers(query, key, value, 0.5).float() - expected).abs().max() < 0.05
    assert seen == [torch.float32] * 4


def test_sums_of_integers_are_left_to_float32():
    network, layer, x = convolution()
    freeze_(network)
    before = network(x)
    lower_(network, "simulate")
    assert not has_integer_form(layer) and layer.lowered is None and torch.equal(network(x), before)
    lower_(network.float(), "simulate")
    assert layer.lowered is not None


def served():
    """A network in bfloat16 that was let go of, and a call of it; its grids were found in float32."""
    bench, call = calibrated(steps=StepGroups.per_step(4))
    network = bench.network.to(NARROW)
    call = call[0].to(NARROW), *call[1:]
    freeze_(network)
    with bench.adapter.context.at(call[3]):
        expected = output(network, call)
    serve_(network, ENGINES["simulate"], bench.adapter.context, TIMESTEPS, dtype=NARROW)
    return network, call, expected


def test_a_served_network_computes_the_same_and_no_cast_reaches_its_scales():
    network, call, expected = served()
    assert torch.equal(output(network, call), expected)
    assert torch.equal(output(network.to(NARROW), call), expected)  # as in pipe.to("cuda", torch.bfloat16)
    assert {layer.weight_quantizer.scale.dtype for layer in quant_layers(network).values()} == {torch.float32}
    with pytest.raises(ServingError, match="computes in bfloat16, and its input is float32"):
        output(network, (call[0].float(), *call[1:]))


def test_a_quantized_network_is_as_near_to_its_float32_as_unquantized_it_is():
    """On equal grids: codes that rounding turns over are few."""
    bench, call = calibrated(BitWidth(8, 8))
    narrow = copy.deepcopy(bench.network).to(NARROW)
    few = call[0].to(NARROW), *call[1:]
    distances = []
    for on in (False, True):
        with quantization(bench.network, weight=on, activation=on), quantization(narrow, weight=on, activation=on):
            own, exact = output(narrow, few).float(), output(bench.network, call)
        distances.append(float((own - exact).norm() / exact.norm()))
    assert 0 < distances[0] < 0.03 and 0.5 < distances[1] / distances[0] < 2


def test_timesteps_that_a_pipeline_rounded_are_known_again():
    known = (1000.0, 611.37, 250.4, 1.582)
    watch = CallWatch(StepContext(), known)
    rounded = (torch.tensor(known).to(NARROW) / 1000) * 1000  # twice, as in FLUX' pipeline
    assert rounded.tolist() != list(known)
    step, toward = watch.steps(rounded, 4)
    assert step.tolist() == [0, 1, 2, 3] and toward is None
    with pytest.raises(ServingError, match="was not calibrated"):
        watch.steps(rounded.float(), 4)
