"""AccuQuant's stage: what it reports against rollouts of the outcome."""

import pytest
import torch
from rollouts import CHAOS, JOINT, NAME, finished, interrupted, ranged, run, stage_of
from workbench import sampler, workbench

from dmqbench.calibration.run import run_stage
from dmqbench.config.limits import limits_of
from dmqbench.quant.layers import freeze_, quant_layers, quantization
from dmqbench.quant.spec import BitWidth, StepGroups
from dmqbench.quant.state import activation_quantizers, calibration_state, load_calibration_state_
from dmqbench.stages import trajectory_reconstruction, trajectory_settings
from dmqbench.stages.trajectory_gradients import CONTROLS, RULES
from dmqbench.stages.trajectory_reconstruction import TrajectoryReconstruction

RECIPES = {"scales": {}, "joint": JOINT}


pytestmark = pytest.mark.usefixtures("one_thread_and_any_rate")


# ---- what is reported, against rollouts of the outcome


def exact_visits(bench):
    """The visits of full precision on validation trajectories."""
    with quantization(bench.network, weight=False, activation=False):
        return list(bench.denoising.rollout(stream="val", seed=bench.seed, indices=range(len(bench.bank.val))))


def accumulated(bench, exact, first, stop, start):
    """Mean squared difference to full precision, on validation trajectories, of the state after call ``stop`` − 1 of
    the network as it is now, from full precision's state before call ``first`` or from its own first state."""
    denoising, val = bench.denoising, bench.bank.val
    options = {"stream": "val", "seed": bench.seed, "indices": range(len(val))}
    with quantization(bench.network, weight=True, activation=True):
        own = start == "quantized"
        at, state = (0, exact[0].before) if own else (first, exact[first].before)
        visits = denoising.rollout_from(state, at, val.cond, **options)
        reached = next(visit for visit in visits if visit.call == stop - 1)
    return float((reached.after.x - exact[stop - 1].after.x).square().mean())


def assert_reported(stage, key, start, exact=None):
    """The held-out errors of ``key`` are those of the network as it is now."""
    exact = exact or exact_visits(stage.bench)
    for span in stage.findings()["spans"]:
        for (first, last), error in zip(span["groups"], span[key], strict=True):
            assert error == pytest.approx(accumulated(stage.bench, exact, first, last + 1, start), rel=CHAOS)


SAMPLERS = {
    "ddim from its prefix": ({}, "quantized"),
    "stochastic": ({"plan": sampler(eta=1.0)}, "fp"),
    "stochastic from its prefix": ({"plan": sampler(eta=1.0)}, "quantized"),
    "dpmpp": ({"plan": sampler("dpmpp", 5)}, "fp"),
    "dpmpp from its prefix": ({"plan": sampler("dpmpp", 5)}, "quantized"),
    "runge-kutta": ({"plan": sampler("pndm", 4, skip_prk=False), "trajectories": 4}, "fp"),
    "guided": ({"guidance": 2.0}, "fp"),
}


@pytest.mark.parametrize(("options", "start"), SAMPLERS.values(), ids=SAMPLERS.keys())
def test_the_errors_that_are_told_are_those_of_rollouts_before_and_after(options, start):
    """M = 3 divides none of the plans: the last group is shorter; one span, so that starts move with its scales.

    A group goes on to the end of a Runge-Kutta step, of four calls.
    """
    bench = ranged(steps=StepGroups.shared(), **options)
    before = calibration_state(bench.network)
    stage = run(bench, horizon=3, iterations=1, start=start)
    (span,) = stage.findings()["spans"]
    calls = bench.sampler.network_calls
    length = 4 if bench.sampler.calls[3].base == "anchor" else 3
    assert span["groups"] == [[first, min(first + length, calls) - 1] for first in range(0, calls, length)]
    assert sum(span["error_after"]) <= sum(span["error_before"])
    exact = exact_visits(bench)
    assert_reported(stage, "error_after", start, exact)
    load_calibration_state_(bench.network, before)
    assert_reported(stage, "error_before", start, exact)


def test_spans_are_trained_one_after_another_on_the_quantized_prefix():
    """Each reports the error after its own training, which later spans do not change."""
    stage = finished(start="quantized")
    assert len(stage.findings()["spans"]) == 2
    assert_reported(stage, "error_after", "quantized")


@pytest.mark.parametrize("recipe", ["scales", "joint"])
def test_training_lowers_the_held_out_error_and_the_frozen_network_keeps_it(recipe):
    bench = ranged(trajectories=16)
    changed = {"horizon": 4, "iterations": 12, "batch": 8, "checks": 3}
    stage = run(bench, **changed, **RECIPES[recipe])
    (span,) = stage.findings()["spans"]
    assert span["error_after"][0] < 0.97 * span["error_before"][0]
    assert 0 < span["best_iteration"] <= 12
    state = stage.state()
    again = ranged(trajectories=16)
    load_calibration_state_(again.network, state)
    freeze_(again.network)
    error = accumulated(again, exact_visits(again), 0, 4, "fp")
    assert span["error_after"][0] == pytest.approx(error, rel=CHAOS)
    codes = [name for name in state if name.endswith("codes")]
    fresh = ranged(trajectories=16)
    stage_of(fresh)  # rounds to nearest
    moved = sum(int((state[name] != calibration_state(fresh.network)[name]).sum()) for name in codes)
    assert (moved > 0) == (recipe == "joint")


def test_the_cosine_and_ratio_are_those_against_the_exact_gradient():
    (rough, *_), (same, *_) = (finished(gradient=g).findings()["spans"] for g in ("identity", "replayed"))
    assert (same["gradient_cosine"], same["gradient_ratio"]) == (1.0, 1.0)
    assert 0.1 < rough["gradient_cosine"] < 0.9999
    assert rough["gradient_ratio"] > 0
    one = run(ranged(), horizon=1, iterations=1).findings()["spans"]
    assert all(span["gradient_cosine"] == pytest.approx(1, abs=1e-5) for span in one)
    assert all(span["gradient_ratio"] == pytest.approx(1, abs=1e-3) for span in one)


def test_settings_are_told_as_they_were_used():
    found = run(ranged(), horizon=99, iterations=1, gradient="online", checks=9).findings()
    assert found["settings"] == {"horizon": 4, "gradient": "online", "joint": False}
    assert [span["groups"] for span in found["spans"]] == [[[0, 3]]]


# ---- the best state is kept


@pytest.mark.parametrize("recipe", ["scales", "joint"])
def test_a_state_that_only_gets_worse_is_not_kept(recipe):
    bench = ranged()
    before = calibration_state(bench.network)
    stage = run(bench, recipe=recipe, scale_travel=8.0, rounding_travel=8.0)
    for span in stage.findings()["spans"]:
        assert span["best_iteration"] == 0
        assert span["error_after"] == span["error_before"]
    for name, value in stage.state().items():
        if name in before:
            torch.testing.assert_close(value, before[name], rtol=1e-5, atol=0)


def test_what_is_kept_is_the_best_of_all_looks():
    bench = ranged(trajectories=16)
    stage = run(bench, horizon=4, iterations=8, checks=8, scale_travel=2.0)
    looks = [event["held_out_error"] for event in bench.record.of("unit")]
    assert len(looks) == 8
    (span,) = stage.findings()["spans"]
    best = min(looks + span["error_before"])
    assert span["error_after"][0] == pytest.approx(best)
    assert accumulated(bench, exact_visits(bench), 0, 4, "fp") == pytest.approx(best, rel=CHAOS)
    assert span["best_iteration"] == (0 if best in span["error_before"] else 1 + looks.index(best))


def test_a_span_leaves_the_rows_of_others_alone():
    bench = ranged()
    before = {name: q.scale.clone() for name, q in activation_quantizers(bench.network).items()}
    stage = stage_of(bench, interrupted(TrajectoryReconstruction, (2, 0)), iterations=4)
    with pytest.raises(KeyboardInterrupt):
        run_stage(stage, "cpu", [])
    moved = 0
    for name, quantizer in activation_quantizers(bench.network).items():
        ratio = quantizer.scale.detach() / before[name]
        torch.testing.assert_close(ratio[2:], torch.ones_like(ratio[2:]), rtol=1e-5, atol=0)
        moved += int((ratio[:2] - 1).abs().gt(1e-3).sum())
    assert moved > 0


# ---- sizes and bits that need care


def test_weights_alone_leave_nothing_to_train_but_their_rounding():
    bench = ranged(BitWidth(3, 32))
    stage = run(bench)
    assert stage.units() == ()
    assert stage.findings() == {}
    nearest = stage.state()
    assert all(f"{name}.weight_quantizer.codes" in nearest for name in quant_layers(bench.network))
    joint = run(bench, **JOINT, horizon=4, iterations=8)
    (span,) = joint.findings()["spans"]
    assert span["error_after"] < span["error_before"]
    assert joint.state().keys() == nearest.keys()


@pytest.mark.parametrize("recipe", ["scales", "joint"])
def test_activations_alone_are_trained_under_full_precision_weights(recipe):
    stage = run(ranged(BitWidth(32, 3)), recipe=recipe, horizon=4, iterations=8)
    (span,) = stage.findings()["spans"]
    assert span["error_after"] < span["error_before"]
    assert not any(name.endswith("codes") for name in stage.state())


@pytest.mark.parametrize("gradient", ["identity", "scalar", "spectral"])
def test_one_trajectory_and_a_batch_larger_than_the_bank(gradient):
    stage = run(ranged(trajectories=1), batch=64, gradient=gradient)
    assert all(value.isfinite().all() for value in stage.state().values())
    assert [span["groups"] for span in stage.findings()["spans"]] == [[[0, 1]], [[2, 3]]]


@pytest.mark.parametrize(
    ("key", "allowed"),
    [("recipe", "scales, joint"), ("gradient", "independent, exact, replayed"), ("start", "fp, quantized")],
)
def test_an_unknown_word_is_refused_with_what_is_allowed(key, allowed):
    with pytest.raises(ValueError, match=f"{key}=bad is not known .allowed: {allowed}"):
        stage_of(workbench(), **{key: "bad"})


def test_the_words_for_gradients_are_the_rules():
    assert limits_of(NAME).choices["gradient"] == [*RULES, *CONTROLS]


@pytest.mark.parametrize(
    ("changed", "guidance"),
    [({}, 1.0), ({"gradient": "replayed"}, 2.0), ({"gradient": "online", "start": "quantized"}, 1.0)],
)
def test_the_cost_is_what_the_network_was_called_for(monkeypatch, changed, guidance):
    """A backward pass counts as two forwards, and guidance doubles the batch; comparing gradients is not counted."""
    monkeypatch.setattr(trajectory_reconstruction.TrajectoryReconstruction, "_agreement", lambda *_: (1.0, 1.0))
    bench = ranged(guidance=guidance)
    seen = 0

    def count(module, args):
        nonlocal seen
        seen += len(args[0]) * (3 if torch.is_grad_enabled() else 1)

    handle = bench.network.register_forward_pre_hook(count)
    stage = run(bench, **changed)
    handle.remove()
    assert stage.network_forwards == seen


def test_quantizers_are_left_as_they_were_found():
    """Nothing of the network is a leaf any more, and all switches are off."""
    bench = finished(recipe="joint").bench
    assert not any(tensor.requires_grad for tensor in (*bench.network.parameters(), *bench.network.buffers()))
    assert not any(layer.weight_on or layer.activation_on for layer in quant_layers(bench.network).values())


def test_the_quantized_prefix_may_run_in_batches_of_any_size():
    """Four validation trajectories as three and one, and five of calibration as three and two."""
    parts, whole = (
        run(ranged(trajectories=5), batch=batch, start="quantized", iterations=1).findings()["spans"]
        for batch in (3, 64)
    )
    for ours, theirs in zip(parts[0]["error_before"], whole[0]["error_before"], strict=True):
        assert ours == pytest.approx(theirs, rel=CHAOS)


def test_few_iterations_do_not_make_a_rate_larger_than_allowed(monkeypatch):
    monkeypatch.setattr(trajectory_settings, "LARGEST_RATE", 0.01)
    for iterations, rate in ((1, 0.01), (100, 0.3 / 200)):
        stage = stage_of(ranged(steps=StepGroups.shared()), iterations=iterations)
        stage.start_unit(stage.units()[0])
        assert stage.optimizer.rates == {"scales": pytest.approx(rate)}
