"""The mean error of every layer's outputs, taken back by a constant."""

import pytest
import torch
from workbench import ACTIVATION_RANGE, MSE, workbench

from dmqbench.calibration.capture import run_points
from dmqbench.calibration.run import run_stage
from dmqbench.engines import lower_
from dmqbench.models.hooks import hooked
from dmqbench.quant.layers import freeze_, quant_layers, quantization
from dmqbench.quant.spec import BitWidth
from dmqbench.quant.state import calibration_state, load_calibration_state_
from dmqbench.stages.bias_correction import BiasCorrection, Means
from dmqbench.stages.ranges import ActivationRange, WeightRange

W3A6 = BitWidth(3, 6)
SETTINGS = {"samples": 16, "batch": 4}


def ranged():
    bench = workbench(W3A6)
    for stage in (WeightRange.of(bench, **MSE), ActivationRange.of(bench, **ACTIVATION_RANGE)):
        run_stage(stage, "cpu", [])
    return bench


@pytest.fixture(scope="module")
def corrected():
    stage = BiasCorrection.of(ranged(), **SETTINGS)
    run_stage(stage, "cpu", [])
    return stage


@torch.no_grad()
def errors(bench, quantized=True):
    """By layer the errors of its outputs against those of its own weights, [C_out, values], by another way than the
    stage's: torch's functions on all batches joined."""
    found = {}

    def look(name, layer, args, output):
        given = args[0].movedim(layer.channel_axis, -1) if layer.kind == "linear" else args[0]
        plain = layer.apply_weight(given, layer.weight.detach(), layer.bias)
        found.setdefault(name, []).append((output - plain).movedim(layer.channel_axis, 0).flatten(1))

    points = bench.bank.cal.spread(SETTINGS["samples"])
    with (
        quantization(bench.network, weight=quantized, activation=quantized),
        hooked(quant_layers(bench.network), look),
    ):
        list(run_points(bench.denoising, bench.bank.cal, points, len(points)))
    return {name: torch.cat(parts, dim=1).double() for name, parts in found.items()}


def test_the_shift_is_minus_the_mean_error_of_the_layer_alone(corrected):
    before = errors(ranged())
    for name, layer in quant_layers(corrected.bench.network).items():
        torch.testing.assert_close(layer.output_shift.double(), -before[name].mean(dim=1), rtol=1e-4, atol=1e-6)


def test_shifts_are_mostly_gone_and_so_is_their_share(corrected):
    """Not quite: corrected inputs are others than those that the means were taken on."""
    before, after = errors(ranged()), errors(corrected.bench)
    sizes = [sum(float(each.mean(dim=1).square().sum()) for each in some.values()) for some in (before, after)]
    assert sizes[1] < 0.1 * sizes[0]
    for name, share in corrected.findings()["shares"].items():
        means, all_errors = before[name].mean(dim=1).square().sum(), before[name].square().mean(dim=1).sum()
        assert share == pytest.approx(float(means / all_errors), rel=1e-3)


def test_full_precision_has_no_shift(corrected):
    assert all(not each.any() for each in errors(corrected.bench, quantized=False).values())


@pytest.mark.parametrize("engine", ["simulate", "int_reference"])
def test_engines_add_what_layers_add_and_a_state_brings_it(corrected, engine):
    bench = ranged()
    load_calibration_state_(bench.network, calibration_state(corrected.bench.network))
    freeze_(bench.network)
    plain = errors(bench)
    lower_(bench.network, engine)
    for name, found in errors(bench).items():
        torch.testing.assert_close(found, plain[name], rtol=1e-3, atol=1e-4)


def test_a_second_time_gives_the_same(corrected):
    again = BiasCorrection.of(ranged(), **SETTINGS)
    for layer in quant_layers(again.bench.network).values():
        layer.output_shift = torch.ones(len(layer.weight))  # of a correction before
    run_stage(again, "cpu", [])
    for name, layer in quant_layers(corrected.bench.network).items():
        assert torch.equal(quant_layers(again.bench.network)[name].output_shift, layer.output_shift)


def test_means_of_parts_are_those_of_the_whole():
    errors = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.5
    whole, parts = Means(3), Means(3)
    whole.add(errors, 1)
    for part in errors.split([1, 3, 2]):
        parts.add(part, 1)
    torch.testing.assert_close(parts.shift, whole.shift)
    torch.testing.assert_close(whole.shift, errors.double().mean(dim=(0, 2, 3)))
    assert parts.share == pytest.approx(whole.share)
