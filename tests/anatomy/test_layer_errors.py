"""Layer errors against the definition on captured inputs, and what they may not change."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import dit, sd3, text_unet, unet
from workbench import BUILDERS, W3A6, adapter_of, set_min_max_ranges_, workbench

from dmqbench.anatomy.layer_errors import LayerErrors, layer_errors
from dmqbench.anatomy.recorded import batches, spread_calls
from dmqbench.calibration.capture import capture_inputs
from dmqbench.engines import lower_
from dmqbench.models.rollout import Denoising
from dmqbench.quant.functional import affine_parameters, fake_quantize
from dmqbench.quant.layers import freeze_, quant_layers, set_quantization_
from dmqbench.quant.spec import BitWidth, StepGroups
from dmqbench.results import diagnosis_figures
from dmqbench.results.plots.low_bits import layer_title


def calibrated(bits=W3A6, **settings_):
    bench = workbench(bits, **settings_)
    inputs = bench.bank.cal.at(torch.arange(8))
    set_min_max_ranges_(bench.adapter, inputs.x, inputs.timestep, inputs.cond, inputs.step)
    return bench


def measured(bench, **settings_) -> LayerErrors:
    found = layer_errors(bench.denoising, bench.bank.val, **{"chunk": 32, **settings_})
    assert found is not None
    return found


def switches(network) -> list[tuple[bool, bool]]:
    return [(layer.weight_on, layer.activation_on) for layer in quant_layers(network).values()]


@pytest.mark.parametrize("builder", BUILDERS.values(), ids=BUILDERS)
def test_errors_are_those_of_the_layer_alone_on_full_precision_inputs(builder):
    """Input captured at one call, output recomputed from the quantizers' tables with torch's own operators."""
    bench = calibrated(network=builder())
    found = measured(bench)
    for name in (found.names[0], found.names[-1]):
        layer = quant_layers(bench.network)[name]
        call = 2
        points = torch.arange(4) * 4 + call
        module_inputs = capture_inputs(bench.denoising, layer, bench.bank.val, points, 4)
        x = module_inputs.arguments[0][0][:].double()
        activation = layer.activation_quantizer
        scale, zero_point = (table.double() for table in activation.tables())
        view = [1, -1] + [1] * (x.ndim - 2) if layer.channel_axis == 1 else [1] * (x.ndim - 1) + [-1]
        rounded = fake_quantize(x, scale.view(view), zero_point.view(view), activation.levels)
        weight = layer.weight_quantizer(layer.weight).double()
        none = torch.zeros(len(weight), dtype=torch.float64)
        exact = layer.apply_weight(x, layer.weight.double(), none)
        bias = none if layer.bias is None else layer.bias.double()
        shape = [1, -1] + [1] * (exact.ndim - 2) if layer.channel_axis == 1 else [-1]
        error = (layer.apply_weight(rounded, weight, none) - exact).square().sum()
        expected = float(error / (exact + bias.view(shape)).square().sum())
        assert found.error[found.names.index(name)][call] == pytest.approx(expected, rel=1e-3)


def test_wide_codes_leave_almost_no_error_and_fewer_bits_more():
    by_bits = {bits: measured(calibrated(BitWidth(*bits))).mean_log10 for bits in ((8, 16), (6, 6), (4, 4), (2, 2))}
    assert list(by_bits.values()) == sorted(by_bits.values())
    assert by_bits[8, 16] < -3.5 < -1.0 < by_bits[2, 2]


def test_a_layer_whose_codes_hold_its_weight_has_no_error():
    """Weights that lie on the grid and activations in full precision: nothing is lost, exactly."""
    bench = workbench(BitWidth(8, 32))
    for layer in quant_layers(bench.network).values():
        codes = torch.randint(-100, 100, layer.weight.shape, generator=torch.Generator().manual_seed(1))
        layer.weight.copy_(codes / 512)
        scale = torch.full((len(layer.weight), layer.weight_quantizer.groups.count), 1 / 512)
        layer.weight_quantizer.set_parameters_(scale, torch.full_like(scale, 128.0))
    found = measured(bench)
    assert all(value == 0 for row in found.error for value in row)
    assert found.mean_log10 is None


def test_skip_layers_are_those_that_the_topology_cuts():
    bench = calibrated()
    found = measured(bench)
    cut = {layer.name for layer in bench.topology.layers if layer.boundaries}
    assert {name for name, skip in zip(found.names, found.skip, strict=True) if skip} == cut != set()
    assert set(found.names) == set(quant_layers(bench.network))


@pytest.mark.parametrize("on", [(False, False), (True, False), (True, True)], ids=str)
def test_switches_hooks_and_outputs_are_as_before(on):
    bench = calibrated(guidance=2.0)
    set_quantization_(bench.network, weight=on[0], activation=on[1])
    inputs = bench.bank.val.at(torch.arange(4))
    before = bench.adapter.denoise(inputs.x, inputs.timestep, inputs.cond, inputs.step)
    measured(bench)
    assert switches(bench.network) == [on] * len(quant_layers(bench.network))
    assert not any(module._forward_hooks for module in bench.network.modules())
    assert torch.equal(before, bench.adapter.denoise(inputs.x, inputs.timestep, inputs.cond, inputs.step))


def test_a_frozen_and_lowered_network_has_the_same_errors_and_stays_so():
    bench = calibrated(steps=StepGroups.per_step(4))
    before = measured(bench)
    freeze_(bench.network)
    lower_(bench.network, "simulate")
    after = measured(bench)
    for row, other in zip(before.error, after.error, strict=True):
        assert other == pytest.approx(row, rel=1e-3)
    assert set(switches(bench.network)) == {(True, True)}
    assert all(layer.lowered is not None for layer in quant_layers(bench.network).values())


def test_per_step_rows_are_read_at_their_own_step():
    """A range that is ruined at call 1 alone shows at call 1 alone."""
    bench = calibrated(steps=StepGroups.per_step(4))
    before = measured(bench)
    name = before.names[3]
    quantizer = quant_layers(bench.network)[name].activation_quantizer
    low, high = torch.full((1,), -1e3), torch.full((1,), 1e3)
    scale = quantizer.scale.clone()
    scale[1] = affine_parameters(low, high, quantizer.levels)[0]
    quantizer.set_parameters_(scale, quantizer.zero_point)
    after = measured(bench)
    for row, (old, new) in enumerate(zip(before.error, after.error, strict=True)):
        changed = [call for call in range(4) if old[call] != new[call]]
        assert changed == ([1] if before.names[row] == name else [])


def test_batches_do_not_matter_beyond_rounding():
    bench = calibrated()
    whole, pieces = measured(bench), measured(bench, chunk=3)
    for row, other in zip(whole.error, pieces.error, strict=True):
        assert other == pytest.approx(row, rel=1e-3)


def test_a_range_that_was_never_calibrated_is_named():
    bench = workbench()
    with pytest.raises(FloatingPointError, match="quantized output is not finite"):
        measured(bench)
    assert set(switches(bench.network)) == {(False, False)}


@pytest.mark.parametrize("builder", [unet, text_unet, dit], ids=["unet", "text_unet", "dit"])
def test_a_network_without_quantizable_layers_has_none(builder):
    bench = workbench(network=unet())
    assert layer_errors(Denoising(adapter_of(builder()), bench.sampler), bench.bank.val, chunk=4) is None


@given(st.integers(1, 400), st.integers(2, 40))
def test_spread_calls_are_distinct_even_and_reach_both_ends(calls, at_most):
    chosen = spread_calls(calls, at_most)
    assert len(chosen) == min(calls, at_most) == len(set(chosen))
    assert (chosen[0], chosen[-1]) == (0, calls - 1)
    gaps = {b - a for a, b in pairwise(chosen)}
    assert not gaps or max(gaps) - min(gaps) <= 1


@given(st.integers(1, 100), st.integers(1, 40))
def test_batches_cover_everything_once(count, chunk):
    parts = batches(count, chunk)
    assert [index for part in parts for index in part] == list(range(count))
    assert all(len(part) == chunk for part in parts[:-1])


def test_rows_say_whose_tokens_a_layer_works_on_where_there_is_a_text():
    record = measured(calibrated(network=sd3())).to_json()
    tokens = dict(zip(record["names"], record["tokens"], strict=True))
    block = "transformer_blocks.0"
    texts = ("attn.add_k_proj", "attn.to_add_out", "ff_context.net.2", "norm1_context.linear")
    images = ("attn.to_k", "attn.to_out.0", "attn2.to_q", "ff.net.2", "norm1.linear")
    assert {tokens[f"{block}.{name}"] for name in texts} == {"text"}
    assert {tokens[f"{block}.{name}"] for name in images} == {"image"}
    names = diagnosis_figures.layer_errors(record, range(4)).panels[0].y.names
    assert f"{block}.attn.add_k_proj · text" in names
    assert layer_title({"name": "a", "tokens": "both"}) == "a · both"


def test_rows_of_a_network_of_images_alone_say_nothing_of_tokens():
    record = measured(calibrated()).to_json()
    assert "tokens" not in record
    names = diagnosis_figures.layer_errors(record, range(4)).panels[0].y.names
    assert {name.partition(" · ")[2] for name in names} == {"", "skip"}
    assert layer_title({"name": "a"}) == "a"
