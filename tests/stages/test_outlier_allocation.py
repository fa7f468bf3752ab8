"""Outlier-driven mixed quantization on tiny networks: against layers quantized one allocation at a time."""

from collections import Counter

import pytest
import torch
from tiny import unet
from torch import nn
from workbench import MSE, workbench

from dmqbench.calibration.checkpoint import UnitCheckpoint
from dmqbench.calibration.run import run_stage
from dmqbench.config.compose import compose
from dmqbench.config.job import make_job
from dmqbench.quant.allocation import row_bits, row_kurtosis
from dmqbench.quant.functional import affine_parameters
from dmqbench.quant.layer import QuantLayer
from dmqbench.quant.layers import freeze_, quant_layers
from dmqbench.quant.observers import Observer
from dmqbench.quant.spec import BitWidth, StepGroups
from dmqbench.stages.outlier_allocation import OutlierAllocation
from dmqbench.stages.ranges import ActivationRange, WeightRange, set_weight_range_

W2A4 = BitWidth(2, 4)
SETTINGS = {
    "samples": 16,
    "observer": "min_max",
    "candidates": 80,
    "exponent": 2.4,
    "largest_tenths": 5,
    "inputs": "quantized",
    "rows": "kurtosis",
    "prescale": "always",
    "plus": False,
}
CUT = "up_blocks.0.resnets.0.conv_shortcut"
"""A layer whose input is cut."""


def outlying(network):
    """A fifth of the rows of every weight made larger and heavier in the tail, so that moving bits to them pays."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight.data
            rows = weight[: len(weight) // 5]
            heavy = rows.sign() * rows.abs() ** 1.5
            rows.copy_(8 * heavy * weight.abs().mean() / heavy.abs().mean())
    return network


def bench_of(bits=W2A4, **settings):
    return workbench(bits, network=outlying(unet()), **settings)


class Watched(OutlierAllocation):
    """Keeps what every layer reads, puts out in full precision, and hands on."""

    def _decide(self, name, layer, args, output):
        handed_on = super()._decide(name, layer, args, output)
        self.seen = {**getattr(self, "seen", {}), name: (args[0].clone(), output.clone(), handed_on.clone())}
        return handed_on


def stage_of(bench=None, cls=OutlierAllocation, **settings):
    return cls.of(bench_of() if bench is None else bench, **{**SETTINGS, **settings})


def allocated(bench=None, cls=OutlierAllocation, **settings):
    stage = stage_of(bench, cls, **settings)
    run_stage(stage, "cpu", [])
    return stage


def by_name(stage):
    return {layer["name"]: layer for layer in stage.findings()["layers"]}


def quantized_output(layer: QuantLayer, x, bits, activation=True):
    """The layer's own forward pass with min-max ranges of ``x`` and a weight of ``bits``."""
    layer.set_weight_bits_(tuple(bits))
    set_weight_range_(layer, Observer("min_max"))
    quantizer = layer.activation_quantizer
    channels = layer.scaled_input(x).movedim(layer.channel_axis, 0)
    parts = [channels[part] for part in quantizer.groups.slices]
    low, high = (torch.stack([getattr(part, end)() for part in parts])[None] for end in ("amin", "amax"))
    quantizer.set_parameters_(*affine_parameters(low, high, quantizer.levels))
    layer.weight_on, layer.activation_on = True, activation
    try:
        return layer(x)
    finally:
        layer.weight_on = layer.activation_on = False


@pytest.fixture(scope="module", params=["quantized", "fp"])
def watched(request):
    return allocated(cls=Watched, inputs=request.param)


@torch.no_grad()
def test_every_candidate_has_the_error_of_a_layer_that_is_quantized_so(watched):
    layers, found = quant_layers(watched.bench.network), by_name(watched)
    assert len(layers[CUT].weight_quantizer.groups.slices) == 2
    for name, layer in layers.items():
        x, output, _ = watched.seen[name]
        bias = 0 if layer.bias is None else layer.bias.reshape(-1, *[1] * (output.ndim - 2 if x.ndim == 4 else 0))
        energy = (output - bias).square().sum()
        order = row_kurtosis(layer.scaled_weight()).argsort(descending=True, stable=True)
        rows = len(order)
        assert len(found[name]["errors"]) == (6 if rows >= 10 else 1)
        for tenths, error in enumerate(found[name]["errors"]):
            bits = row_bits(order, tenths * (rows // 10), 2, plus=False).tolist()
            got = quantized_output(layer, x, bits, watched.settings.on_quantized_inputs)
            assert error == pytest.approx(float((got - output).square().sum() / energy), rel=1e-4), name
        assert found[name]["errors"][found[name]["tenths"]] == min(found[name]["errors"])


@torch.no_grad()
def test_what_a_layer_hands_on_is_quantized_as_it_was_decided(watched):
    """Inputs as well, whatever the errors were compared on."""
    for name, layer in quant_layers(watched.bench.network).items():
        x, output, handed_on = watched.seen[name]
        torch.testing.assert_close(handed_on, quantized_output(layer, x, by_name(watched)[name]["bits"]))
        assert not torch.equal(handed_on, output)


@pytest.mark.parametrize(("inputs", "expected"), [("quantized", 4), ("fp", 5)])
def test_one_pass_computes_a_layer_once_per_number_of_bits(inputs, expected, monkeypatch):
    stage, calls = stage_of(inputs=inputs), Counter()
    for name, layer in stage.layers.items():
        inner = layer.apply_weight
        monkeypatch.setattr(
            layer, "apply_weight", lambda *args, f=inner, name=name: (calls.update([name]), f(*args))[1]
        )
    run_stage(stage, "cpu", [])
    assert set(calls.values()) == {expected}
    share = sum(stage.share_of_network.values())
    assert stage.network_forwards == pytest.approx(16 * (1 + (expected - 1) * share))


@pytest.mark.parametrize("bits", [2, 3, 7])
def test_the_mean_is_exactly_the_bits_of_the_job(bits):
    findings = allocated(bench_of(BitWidth(bits, 4))).findings()
    assert findings["mean_bits"] == bits
    assert findings["limit"] is None
    assert any(layer["moved"] for layer in findings["layers"])
    for layer in findings["layers"]:
        assert sum(layer["bits"]) == bits * layer["rows"]
        assert layer["moved"] == layer["tenths"] * (layer["rows"] // 10)


def test_bits_and_scales_live_in_the_layers_and_nothing_else_does():
    stage = allocated(cls=Watched)
    assert any(layer["moved"] for layer in stage.findings()["layers"])
    for name, layer in quant_layers(stage.bench.network).items():
        bits = by_name(stage)[name]["bits"]
        assert layer.plan.bits_of_rows(len(bits)) == tuple(bits)
        assert layer.weight_quantizer.levels.tolist() == [2**width for width in bits]
        assert (layer.weight_quantizer.scale == 1).all() and layer.weight_quantizer.codes is None
        assert not layer.activation_quantizer.initialised
        (x, *_), weight = stage.seen[name], layer.weight
        largest = x.abs().movedim(layer.channel_axis, 0).flatten(1).amax(1).clamp(min=1e-5)
        heaviest = weight.abs().movedim(1, 0).flatten(1).amax(1).clamp(min=1e-5)
        torch.testing.assert_close(layer.equivalent_scale.detach(), (largest / heaviest).sqrt())


def test_twice_is_the_same():
    one, other = allocated(), allocated()
    assert one.findings() == other.findings()
    first, second = one.state(), other.state()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name].nan_to_num(), second[name].nan_to_num()) for name in first)


def test_guidance_and_ranges_per_step_make_no_difference_to_how_it_works():
    stage = allocated(bench_of(guidance=2.0, steps=StepGroups.per_step(4)), cls=Watched)
    assert len(stage.seen[CUT][0]) == 32
    assert stage.findings()["mean_bits"] == 2.0


def test_the_stages_after_it_complete_a_network():
    bench = bench_of()
    allocated(bench)
    run_stage(WeightRange.of(bench, **MSE), "cpu", [])
    run_stage(ActivationRange.of(bench, **MSE, samples=16, batch=8, values_per_row=1000), "cpu", [])
    freeze_(bench.network)
    for layer in quant_layers(bench.network).values():
        codes = layer.weight_quantizer.codes.flatten(1).amax(1)
        assert (codes < layer.weight_quantizer.levels).all()


# ---- switches


def test_rows_at_random_depend_on_the_seed_and_the_layer():
    def bits(seed):
        stage = allocated(bench_of(BitWidth(3, 8), seed=seed), rows="random", plus=True)
        return {name: layer["bits"] for name, layer in by_name(stage).items()}

    one, other = bits(0), bits(1)
    assert one == bits(0) != other
    assert len({tuple(found) for found in one.values() if len(found) == 16}) > 1


def test_head_and_tail_take_rows_as_they_stand():
    found = by_name(allocated(rows="head_tail"))
    assert any(layer["moved"] for layer in found.values())
    for layer in found.values():
        moved = layer["moved"]
        assert layer["bits"] == [3] * moved + [2] * (layer["rows"] - 2 * moved) + [1] * moved


def test_without_prescaling_there_is_no_scale():
    stage = allocated(prescale="none")
    assert all(layer.equivalent_scale is None for layer in quant_layers(stage.bench.network).values())


def test_plus_promotes_a_tenth_and_demotes_none():
    stage = allocated(plus=True)
    total = elements = 0
    for name, layer in by_name(stage).items():
        moved = layer["rows"] // 10
        assert Counter(layer["bits"]) == Counter({2: layer["rows"] - moved, **({3: moved} if moved else {})})
        outlying = sorted(range(layer["rows"]), key=lambda row: -layer["kurtosis"][row])[:moved]
        assert all(layer["bits"][row] == 3 for row in outlying)
        columns = quant_layers(stage.bench.network)[name].weight[0].numel()
        total, elements = total + (2 * layer["rows"] + moved) * columns, elements + layer["rows"] * columns
    assert stage.findings()["mean_bits"] == total / elements


def test_the_published_form_is_a_preset():
    (stage, *_) = make_job(compose(["method=mpq_dm", "bits=w2a6", "method.faithful=true"])).method.stages
    chosen = {key: stage.settings[key] for key in ("largest_tenths", "inputs", "observer", "plus")}
    assert chosen == {"largest_tenths": 1, "inputs": "fp", "observer": "min_max", "plus": False}


# ---- odd inputs


@pytest.mark.parametrize(("bits", "reason"), [(1, "less than 1 bit"), (8, "more than 8 bits")])
def test_where_no_row_can_move_the_findings_say_why(bits, reason):
    stage = allocated(workbench(BitWidth(bits, 8)))
    findings = stage.findings()
    assert reason in findings["limit"]
    assert findings["mean_bits"] == bits
    assert all((layer["moved"], len(layer["errors"])) == (0, 1) for layer in findings["layers"])


def test_a_layer_of_fewer_than_ten_rows_keeps_its_bits():
    stage = allocated(workbench(W2A4, network=unet(block_out_channels=(8, 16), attention_head_dim=4)))
    rows = {layer["rows"]: layer for layer in stage.findings()["layers"]}
    assert rows[8]["bits"] == [2] * 8
    assert len(rows[8]["errors"]) == 1 < len(rows[16]["errors"])


def test_a_dead_input_channel_and_a_constant_row_do_no_harm():
    network = unet()
    block = network.down_blocks[0].resnets[0]
    block.norm2.weight.data[3], block.norm2.bias.data[3] = 0, 0  # the activation then makes it zero everywhere
    block.conv2.weight.data[5] = 0.25
    stage = allocated(workbench(W2A4, network=network), cls=Watched)
    name = "down_blocks.0.resnets.0.conv2"
    assert (stage.seen[name][0][:, 3] == 0).all()
    assert all(layer.equivalent_scale.isfinite().all() for layer in quant_layers(network).values())
    layer = by_name(stage)[name]
    assert all(error < 10 for error in layer["errors"])
    assert sum(layer["bits"]) == 32


def test_a_grouped_convolution_is_allocated_without_a_scale():
    network = unet()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network.down_blocks[0].resnets[0].conv2 = nn.Conv2d(16, 16, 3, padding=1, groups=2).requires_grad_(False)
    stage = allocated(workbench(W2A4, network=network))
    layer = quant_layers(network)["down_blocks.0.resnets.0.conv2"]
    assert layer.equivalent_scale is None
    assert len(by_name(stage)["down_blocks.0.resnets.0.conv2"]["errors"]) == 6


@pytest.mark.parametrize(("bits", "layers"), [(BitWidth(32, 4), 0), (BitWidth(3, 32), None)])
def test_one_side_may_be_in_full_precision(bits, layers):
    stage = allocated(workbench(bits))
    assert len(stage.findings().get("layers", ())) == (len(stage.layers) if layers is None else layers)


def test_layers_that_a_scope_gives_more_bits_are_quantized_as_they_are():
    bench = workbench(W2A4)
    kept = quant_layers(bench.network)[CUT]
    kept.set_weight_bits_(8)
    stage = allocated(bench)
    assert CUT not in by_name(stage)
    assert stage.findings()["mean_bits"] == 2.0
    assert (kept.plan.weight_bits, kept.equivalent_scale) == (8, None)


def test_rows_that_have_bits_of_their_own_are_refused():
    bench = bench_of()
    allocated(bench)
    with pytest.raises(ValueError, match="bits, and those of down_blocks"):
        stage_of(bench)


# ---- being killed


def test_a_finished_pass_is_taken_from_the_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    first = stage_of()
    run_stage(first, "cpu", [UnitCheckpoint(path)])
    again = stage_of()
    UnitCheckpoint(path).resume(again)
    assert again.first_unit == 1 and again.bench.record.events == []
    run_stage(again, "cpu", [])
    assert again.findings() == first.findings() and any(layer["moved"] for layer in first.findings()["layers"])
    ours, theirs = again.state(), first.state()
    assert all(torch.equal(ours[name].nan_to_num(), theirs[name].nan_to_num()) for name in theirs)
    assert [layer.plan for layer in quant_layers(again.bench.network).values()] == [
        layer.plan for layer in quant_layers(first.bench.network).values()
    ]
