"""Codes and features against what NumPy and SciPy make of captured activations."""

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import dit, text_unet, unet
from workbench import set_min_max_ranges_, workbench

from dmqbench.anatomy.feature_statistics import code_counts, feature_statistics
from dmqbench.anatomy.recorded import predict
from dmqbench.engines import lower_
from dmqbench.models.topology import feature_module
from dmqbench.quant.layers import freeze_, quant_layers, quantization
from dmqbench.quant.spec import BitWidth, StepGroups

W3A4 = BitWidth(3, 4)


def frozen_bench(network, guidance=1.0, bits=W3A4, steps=None):
    bench = workbench(bits, network=network, guidance=guidance, steps=steps)
    inputs = bench.bank.cal.at(torch.arange(8))
    set_min_max_ranges_(bench.adapter, inputs.x, inputs.timestep, inputs.cond, inputs.step)
    freeze_(bench.network)
    lower_(bench.network, "simulate")
    return bench


def measured(bench, **changes):
    given = {"members": 4, "chunk": 3} | changes
    return feature_statistics(bench.denoising, bench.denoising, bench.topology, bench.bank.val, **given)


def captured(bench, module, call):
    """What goes into ``module`` on the validation states before ``call``, all four trajectories at once."""
    seen = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].double()))
    predict(bench.denoising, bench.bank.val, range(4), call)
    handle.remove()
    return seen[0]


NETWORKS = pytest.mark.parametrize(
    ("builder", "guidance"),
    [(unet, 1.0), (unet, 2.0), (text_unet, 1.0), (dit, 1.0)],
    ids=["unet", "unet, guided", "text_unet", "dit"],
)


@NETWORKS
def test_features_are_compared_sample_by_sample(builder, guidance):
    bench = frozen_bench(builder(), guidance)
    seen = []
    found = measured(bench, advance=lambda: seen.append(1))
    assert len(seen) == 4 * 2 and found.trajectories == 4  # calls × batches
    module = feature_module(bench.network, bench.topology)
    exact, own = [], []
    for call in range(4):
        own.append(captured(bench, module, call).flatten(1).numpy())
        with quantization(bench.network, weight=False, activation=False):
            exact.append(captured(bench, module, call).flatten(1).numpy())
    norm = np.linalg.norm
    for call in range(4):
        f, q = exact[call], own[call]
        expected = np.mean([norm(b - a) / norm(a) for a, b in zip(f, q, strict=True)])
        assert float(found.relative_error[call]) == pytest.approx(expected, rel=1e-3)
        cosine = np.mean([a @ b / norm(a) / norm(b) for a, b in zip(f, q, strict=True)])
        assert float(found.cosine[call]) == pytest.approx(cosine, rel=1e-4)
    for values, features in ((found.change, exact), (found.change_quantized, own)):
        assert values[0].isnan()
        for call in range(1, 4):
            pairs = zip(features[call], features[call - 1], strict=True)
            expected = np.mean([norm(now - before) / norm(now) for now, before in pairs])
            assert float(values[call]) == pytest.approx(expected, rel=1e-3)
    assert found.relative_error.min() > 1e-3, "four bits leave an error"
    assert not any(module._forward_pre_hooks for module in bench.network.modules())


@pytest.mark.parametrize("builder", [unet, dit])
def test_codes_are_counted_layer_by_layer(builder):
    """Codes recomputed from the calibrated tables, per group of input channels; entropy by SciPy."""
    bench = frozen_bench(builder())
    found = measured(bench).codes
    assert found is not None and found.levels == 16
    layers = quant_layers(bench.network)
    assert list(found.names) == [layer.name for layer in bench.topology.layers if layer.name in layers]
    used, effective = np.zeros((len(found.names), 4)), np.zeros((len(found.names), 4))
    for row, name in enumerate(found.names):
        layer = layers[name]
        quantizer = layer.activation_quantizer
        for call in range(4):
            x = captured(bench, layer, call).movedim(layer.channel_axis, 0).flatten(1).numpy()
            weights = []
            for part, group in enumerate(quantizer.groups.slices):
                scale, zero = float(quantizer.scale[0, part]), float(quantizer.zero_point[0, part])
                codes = np.clip(np.round(x[group] / scale) + zero, 0, 15)
                share = np.unique(codes, return_counts=True)[1] / codes.size
                weights.append((codes.size, len(share), 2 ** stats.entropy(share, base=2)))
            sizes, counts, effectives = np.array(weights).T
            used[row, call] = np.average(counts, weights=sizes)
            effective[row, call] = np.average(effectives, weights=sizes)
            assert found.values[row] == sizes.sum()
    np.testing.assert_allclose(found.effective, effective, rtol=2e-2)  # a value half-way between two codes may move
    assert np.abs(found.used.numpy() - used).max() <= 1
    weights = found.values.numpy()
    np.testing.assert_allclose(found.mean(found.used), np.average(found.used, axis=0, weights=weights))
    assert (found.used >= found.effective - 1e-9).all() and found.used.max() <= 16


def test_parts_of_a_skip_are_counted_apart():
    bench = frozen_bench(unet())
    layer = quant_layers(bench.network)["up_blocks.0.resnets.0.conv_shortcut"]
    assert layer.activation_quantizer.groups.boundaries == (32,)
    x = torch.randn(2, 64, 4, 4, generator=torch.Generator().manual_seed(0))
    x[:, 32:] = 0
    counts = code_counts(layer, x)
    assert counts.shape == (2, 16) and counts.sum(dim=1).tolist() == [2 * 32 * 16] * 2
    assert (counts[1] > 0).sum() == 1 and counts[1].argmax() == int(layer.activation_quantizer.zero_point[0, 1])


def test_a_feature_of_few_levels_uses_few_codes():
    """With two bits an input has four codes at most, whatever the step's own range."""
    bench = frozen_bench(unet(), bits=BitWidth(8, 2), steps=StepGroups.per_step(4))
    codes = measured(bench).codes
    assert codes is not None and codes.levels == 4 and codes.used.max() <= 4 and codes.effective.min() >= 1


def test_without_activation_codes_there_are_features_alone():
    bench = workbench(BitWidth(3, 32))
    with torch.no_grad():
        for layer in quant_layers(bench.network).values():
            span = layer.weight.flatten(1).abs().amax(1, keepdim=True)
            scale = (span / 4).expand_as(layer.weight_quantizer.scale)
            layer.weight_quantizer.set_parameters_(scale, torch.full_like(scale, 4.0))
    freeze_(bench.network)
    found = measured(bench)
    assert found.codes is None and found.relative_error.min() > 0 and found.to_json()["codes"] is None


def test_of_full_precision_against_itself_nothing_differs():
    bench = workbench()
    found = feature_statistics(bench.denoising, bench.denoising, bench.topology, bench.bank.val, members=2, chunk=2)
    assert found.relative_error.max() == 0 and found.change.nan_to_num().equal(found.change_quantized.nan_to_num())
    assert float(found.cosine.min()) == pytest.approx(1) and found.codes is None


def test_a_network_without_finite_features_is_said():
    bench = frozen_bench(unet())
    with torch.no_grad():
        next(iter(quant_layers(bench.network).values())).weight_quantizer.scale.fill_(torch.nan)
    for layer in quant_layers(bench.network).values():
        layer.lowered = None
    with pytest.raises(FloatingPointError, match="not finite"):
        measured(bench)
