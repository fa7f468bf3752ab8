"""EfficientDM's stage: what it trains and how far, what remains of it, and what it tells, against rounding by hand."""

import pytest
import torch
from tiny import dit, text_unet, unet
from tuning import MIN_MAX, begun, held_out_errors, interrupted, ranged, run, stage_of, won
from workbench import W3A6, sampler

from dmqbench.calibration.run import run_stage
from dmqbench.calibration.stage import CalibrationDiverged
from dmqbench.calibration.windows import draw_windows
from dmqbench.quant.layers import freeze_, quant_layers, quantization
from dmqbench.quant.spec import BitWidth, Scope, StepGroups
from dmqbench.quant.state import activation_quantizers, calibration_state, load_calibration_state_
from dmqbench.stages.low_rank_tuning import FORWARDS_OF_A_STEP, LowRankTuning
from dmqbench.stages.ranges import WeightRange

CHAOS = 0.05
"""Relative: a last bit of a sum over another batch changes a code here and there."""


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- what is told is true of what is stored

BENCHES = {
    "ranges per step": {},
    "shared ranges": {"steps": StepGroups.shared()},
    "groups of steps": {"steps": StepGroups.of_size(4, 3)},
    "guided": {"guidance": 3.0},
    "attention quantized": {"scope": Scope(first_last=True, embedding=True, attention=True)},
    "inputs not cut": {"scope": Scope(split=False)},
    "weights alone": {"bits": BitWidth(3, 32)},
    "activations alone": {"bits": BitWidth(32, 4)},
    "one bit": {"bits": BitWidth(1, 6)},
    "Runge-Kutta start": {"plan": sampler("pndm", 4, skip_prk=False), "trajectories": 4},
    "one trajectory": {"trajectories": 1},
    "text": {"network": text_unet, "guidance": 2.0},
    "transformer": {"network": dit},
}


def made(options):
    network = {"network": options["network"]()} if "network" in options else {}
    return ranged(**{**options, **network})


@pytest.mark.parametrize("options", BENCHES.values(), ids=BENCHES.keys())
def test_the_errors_that_are_told_are_those_of_the_stored_state_call_by_call(options):
    bench = made(options)
    before = held_out_errors(bench)
    stage = run(bench, iterations=6, checks=3, batch=16)
    found = stage.findings()
    assert found["noise_error_before"] == pytest.approx(before, rel=CHAOS)
    assert won(found) <= 1
    state = stage.state()
    again = made(options)
    load_calibration_state_(again.network, state)
    freeze_(again.network)
    assert found["noise_error_after"] == pytest.approx(held_out_errors(again), rel=CHAOS)


@pytest.mark.parametrize("bits", [W3A6, BitWidth(3, 32), BitWidth(32, 4)])
def test_training_lowers_the_held_out_error(bits):
    stage = run(ranged(bits, trajectories=16), iterations=16, checks=4, batch=16)
    found = stage.findings()
    assert 0 < found["best_iteration"] <= 16
    assert won(found) < 0.93


# ---- adapters are part of the weight that is quantized, and nothing remains of them


class Watched(LowRankTuning):
    """Keeps what the network computes, and with what, just before adapters are merged."""

    def _merge(self):
        seen = self.bench.bank.val.at(torch.arange(6))
        self.seen = seen
        self._show()
        self.last = self.predictions()
        self.kept = {name: value.detach().clone() for name, value in self.adapters.items()}
        super()._merge()

    def predictions(self):
        seen, bench = self.seen, self.bench
        with torch.no_grad(), quantization(bench.network, weight=True, activation=True):
            return bench.adapter.denoise(seen.x, seen.timestep, seen.cond, seen.step)


def scaled_bench(**options):
    """Some layers have an equivalent scale, and rows of other bits."""
    bench = ranged(**options)
    layers = list(quant_layers(bench.network).values())
    for layer in layers[::2]:
        channels = layer.weight.shape[1]
        layer.set_equivalent_scale_(0.5 + torch.rand(channels, generator=torch.Generator().manual_seed(channels)))
        rows = len(layer.weight)
        layer.set_weight_bits_(tuple([2, 4] * (rows // 2) + [3] * (rows % 2)))
    run_stage(WeightRange.of(bench, **MIN_MAX), "cpu", [])
    return bench


def test_codes_are_those_of_the_scaled_sum_of_weight_and_adapters_and_merging_changes_nothing():
    bench = scaled_bench()
    stage = stage_of(bench, Watched, iterations=6)
    run_stage(stage, "cpu", [])
    assert stage.findings()["best_iteration"] > 0
    torch.testing.assert_close(stage.predictions(), stage.last, rtol=1e-5, atol=1e-5)
    changed = 0
    for name, layer in quant_layers(bench.network).items():
        down, up = (stage.kept[f"{name}.{key}"] for key in ("adapter_down", "adapter_up"))
        weight = layer.weight + (up @ down).reshape(layer.weight.shape)
        if layer.equivalent_scale is not None:
            weight = weight * layer.equivalent_scale.reshape(1, -1, *[1] * (weight.ndim - 2))
        scale, zero_point, levels = layer.weight_quantizer.grid()
        codes = torch.clamp((weight / scale).round() + zero_point, torch.zeros(()), levels - 1)
        assert torch.equal(codes, layer.weight_quantizer.codes.float())
        torch.testing.assert_close(layer.fixed_weight, (codes - zero_point) * scale)
        changed += int(up.any())
    assert changed == len(quant_layers(bench.network))


@pytest.mark.parametrize("bits", [W3A6, BitWidth(3, 32), BitWidth(32, 4)])
def test_nothing_of_adapters_remains_and_the_teacher_is_what_it_was(bits):
    bench = scaled_bench() if bits == W3A6 else ranged(bits)
    layers = quant_layers(bench.network)
    weights = {name: layer.weight.clone() for name, layer in layers.items()}
    keys = set(calibration_state(bench.network))
    val = bench.bank.val

    def teacher():
        with torch.no_grad(), quantization(bench.network, weight=False, activation=False):
            return bench.adapter.denoise(val.x[:, 0], val.timesteps[0], val.cond, torch.zeros(len(val)).long())

    before = teacher()
    stage = run(bench)
    assert torch.equal(teacher(), before)
    for name, layer in layers.items():
        assert torch.equal(layer.weight, weights[name])
        assert layer.adapter_down is None and layer.adapter_up is None
    codes = {f"{name}.weight_quantizer.codes" for name, layer in layers.items() if layer.weight_quantizer}
    assert set(stage.state()) == keys | codes
    assert not any(tensor.requires_grad for tensor in (*bench.network.parameters(), *bench.network.buffers()))
    assert not any(layer.weight_on or layer.activation_on for layer in layers.values())
    assert next(iter(stage.state_dict()), None) is None  # Lightning never sees the network


def test_the_rank_is_bounded_by_the_layer():
    stage = begun(ranged(), rank=20)
    for name, layer in stage.layers.items():
        rows, columns = layer.weight.flatten(1).shape
        rank = min(20, rows, columns)
        assert stage.adapters[f"{name}.adapter_down"].shape == (rank, columns)
        assert stage.adapters[f"{name}.adapter_up"].shape == (rows, rank)
    assert {min(layer.weight.flatten(1).shape) for layer in stage.layers.values()} & set(range(20))


# ---- how far things move


def first_step(bench, **changed):
    stage = begun(bench, **changed)
    before = {name: value.detach().clone() for name, value in stage._variables().items()}
    stage.iterate(stage.units()[0], 0)
    return stage, {name: value.detach() - before[name] for name, value in stage._variables().items()}


@pytest.mark.parametrize("scaled", [False, True])
def test_an_adapter_moves_by_its_share_of_the_layers_own_step(scaled):
    """Adam's first step is the rate, whatever the size of a gradient; ``down`` waits for ``up``, which starts at 0.

    Where the weight is scaled before it is rounded, a step of it is a smaller change of what adapters are added to.
    """
    stage, moved = first_step(scaled_bench() if scaled else ranged(), iterations=5, adapter_travel=0.5)
    for name, layer in stage.layers.items():
        quantizer = layer.weight_quantizer
        steps = quantizer.scale.detach()[:, quantizer.group_of_channel]  # of every row and input channel
        if layer.equivalent_scale is not None:
            steps = steps / layer.equivalent_scale
        assert float(moved[f"{name}.adapter_up"].abs().max()) == pytest.approx(0.1 * float(steps.mean()), rel=0.05)
        assert not moved[f"{name}.adapter_down"].any()


def test_doubling_a_layers_weight_doubles_the_movement_of_its_adapter_alone():
    benches = ranged(), ranged()
    name, layer = list(quant_layers(benches[1].network).items())[5]
    with torch.no_grad():
        layer.weight *= 2
        layer.weight_quantizer.scale *= 2
    moved = [first_step(bench, iterations=5)[1] for bench in benches]
    for key in moved[0]:
        if key.endswith("adapter_up"):
            once, twice = (float(each[key].abs().max()) for each in moved)
            assert twice / once == pytest.approx(2 if key == f"{name}.adapter_up" else 1, rel=0.06)


def test_rates_fall_in_a_line_to_zero():
    stage = begun(ranged(), iterations=8, checks=1)
    seen = []
    for iteration in range(8):
        stage.iterate(stage.units()[0], iteration)
        seen.append([group["lr"] for group in stage.optimizer.adam.param_groups])
    assert all(rate > 0 for rate in seen[0])
    for iteration, rates in enumerate(seen):
        assert rates == pytest.approx([rate * (1 - iteration / 8) for rate in seen[0]])


def test_without_travel_a_kind_of_variable_stays_where_it_is():
    """Here both kinds of scales, while adapters turn codes."""
    bench = ranged(network=unet())
    layers = quant_layers(bench.network)
    before = calibration_state(bench.network)
    nearest = {name: layer.weight_quantizer.integers(layer.weight) for name, layer in layers.items()}
    stage = run(bench, weight_scale_travel=0.0, activation_scale_travel=0.0)
    assert stage.findings()["best_iteration"] > 0
    for name, value in stage.state().items():
        if name.endswith("scale"):
            torch.testing.assert_close(value, before[name], rtol=1e-6, atol=0)
    turned = sum(int((layer.weight_quantizer.integers(None) != nearest[name]).sum()) for name, layer in layers.items())
    assert turned > 9


def test_a_state_that_only_gets_worse_is_not_kept():
    bench = ranged()
    layers = quant_layers(bench.network)
    nearest = {name: layer.weight_quantizer.integers(layer.weight) for name, layer in layers.items()}
    before = calibration_state(bench.network)
    stage = run(bench, adapter_travel=60.0, weight_scale_travel=6.0, activation_scale_travel=6.0)
    found = stage.findings()
    assert found["best_iteration"] == 0 and found["noise_error_after"] == found["noise_error_before"]
    for name, value in stage.state().items():
        if name in before and before[name] is not None:
            torch.testing.assert_close(value, before[name], rtol=1e-5, atol=0)
    turned = sum(int((layer.weight_quantizer.integers(None) != nearest[name]).sum()) for name, layer in layers.items())
    assert turned <= 2  # half-way between two codes, and the scale has another last bit


def test_what_is_kept_is_the_best_of_all_looks():
    bench = ranged(trajectories=16)
    stage = run(bench, iterations=8, checks=8, batch=16, adapter_travel=6.0, activation_scale_travel=1.0)
    looks = [event["held_out_error"] for event in bench.record.of("unit")]
    found = stage.findings()
    best = min([*looks, 1.0])
    assert len(looks) == 8 and won(found) == pytest.approx(best)
    assert found["best_iteration"] == (0 if best == 1 else 1 + looks.index(best))


# ---- activation scales of their own for every call


def test_calls_begin_with_equal_scales_and_end_with_their_own():
    bench = ranged()
    assert all((q.scale == q.scale[:1]).all() for q in activation_quantizers(bench.network).values())
    run(bench)
    for quantizer in activation_quantizers(bench.network).values():
        assert len(quantizer.scale) == 4 and len(quantizer.scale.unique(dim=0)) == 4


def test_rows_of_calls_that_are_not_in_the_batch_do_not_move_by_a_bit():
    bench = ranged()
    stage = begun(bench, iterations=9, checks=1, batch=1, window=1)
    quantizers, used = activation_quantizers(bench.network), set()
    for iteration in range(9):
        before = {name: quantizer.scale.detach().clone() for name, quantizer in quantizers.items()}
        drawn = draw_windows(bench.seed, stage.name, "all", iteration, bench.bank.cal, 1, 1)
        stage.iterate(stage.units()[0], iteration)
        [[call]] = drawn.calls.tolist()
        used.add(call)
        for name, quantizer in quantizers.items():
            moved = (quantizer.scale != before[name]).any(1).tolist()
            assert moved == [row == call for row in range(4)], name
    assert len(used) > 2


# ---- what it costs, what it refuses, how it fails


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("distillation", ["none", "relation"])
def test_the_cost_is_what_the_network_was_called_for(guidance, distillation):
    """A backward pass counts as two forwards, and guidance doubles the batch; nobody asks a teacher for nothing."""
    bench = ranged(guidance=guidance, trajectories=3)
    layers, seen = quant_layers(bench.network), {True: 0, False: 0}

    def count(module, args):
        student = next(iter(layers.values())).weight_on
        seen[student] += len(args[0]) * (FORWARDS_OF_A_STEP if torch.is_grad_enabled() else 1)

    handle = bench.network.register_forward_pre_hook(count)
    stage = run(bench, distillation=distillation)
    handle.remove()
    assert FORWARDS_OF_A_STEP == 3
    assert stage.network_forwards == seen[True] + seen[False]
    assert (seen[False] > 0) == (distillation != "none")


def test_where_nothing_is_quantized_there_is_nothing_to_do():
    stage = run(ranged(BitWidth(32, 32)))
    assert (stage.units(), stage.findings(), stage.state()) == ((), {}, {})


@pytest.mark.parametrize(
    ("key", "allowed"), [("distillation", "none, relation, feature"), ("loss", "normalised, published")]
)
def test_an_unknown_word_is_refused_with_what_is_allowed(key, allowed):
    with pytest.raises(ValueError, match=f"{key}=bad is not known .allowed: {allowed}"):
        stage_of(ranged(), **{key: "bad"})


def bias_is_nan(stage):
    next(iter(stage.layers.values())).bias.data.fill_(torch.nan)


def gradient_is_infinite(stage):
    """While the loss is finite."""
    scale = next(iter(stage.layers.values())).weight_quantizer.scale
    scale.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))


@pytest.mark.parametrize(
    ("poison", "name"), [(bias_is_nan, r"\S+\.adapter_down"), (gradient_is_infinite, "weight scales")]
)
def test_what_is_not_finite_is_named_with_its_iteration(poison, name):
    stage = stage_of(ranged(), interrupted((1, 1), poison))  # the second of the second two iterations
    with pytest.raises(CalibrationDiverged) as caught:
        run_stage(stage, "cpu", [])
    assert str(caught.value).startswith("stage low_rank_tuning: the gradient of ")
    with pytest.raises(CalibrationDiverged, match=f"of {name} at iteration 3 is not finite$"):
        raise caught.value
