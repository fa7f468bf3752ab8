"""Step errors on networks whose errors are known in closed form, then on quantized ones."""

import numpy as np
import pytest
import torch
from examples import costly
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from workbench import SCHEDULE, W3A6, sampler, set_min_max_ranges_, workbench

from dmqbench.anatomy.diagnosis import compare, diagnose, step_errors
from dmqbench.config.names import DIAGNOSIS
from dmqbench.data.bank import Trajectories
from dmqbench.data.noise import step_noise
from dmqbench.engines import lower_
from dmqbench.models.adapter import Adapter
from dmqbench.models.conditioning import PixelDecoder, Unconditional
from dmqbench.models.rollout import Denoising
from dmqbench.quant.layers import freeze_, quant_layers
from dmqbench.quant.spec import StepGroups
from dmqbench.results.diagnosis import load_diagnosis
from dmqbench.samplers.plan import State
from dmqbench.store.files import save_json

SHAPE = (2, 4, 4)


class Constant(nn.Module):
    """Predicts one number everywhere, whatever the state."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value), requires_grad=False)

    def forward(self, x, timestep, return_dict):
        return (torch.zeros_like(x) + self.value,)


def constant(value: float) -> Adapter:
    return Adapter(
        Constant(value),
        sample_shape=SHAPE,
        schedule=SCHEDULE,
        prediction="epsilon",
        conditioner=Unconditional(),
        decoder=PixelDecoder(),
    )


PLANS = {
    "ddim": sampler("ddim", 6),
    "ddim, eta 1": sampler("ddim", 6, eta=1.0),
    "dpmpp": sampler("dpmpp", 6),
    "pndm": sampler("pndm", 6),
    "pndm with Runge-Kutta": sampler("pndm", 6, skip_prk=False),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_constant_error_adds_up_as_the_sampler_says(plan):
    """The error does not depend on the state, so the difference of the trajectories follows the sampler's recursion."""
    exact, wrong, error = constant(0.5), constant(0.6), 0.1
    full = Denoising(exact, plan).follow(stream="val", seed=3, indices=range(5))
    found = step_errors(Denoising(wrong, plan), full, seed=3, chunk=2)
    assert found.local == pytest.approx([(error / 0.5) ** 2] * plan.network_calls, rel=1e-5)
    assert found.injected == pytest.approx([(gain * error) ** 2 for gain in plan.gains], rel=1e-5)

    one = torch.zeros(1, dtype=torch.float64)
    states = [plan.initial(one), plan.initial(one)]
    expected = [0.0]
    for call in range(plan.network_calls):
        outputs = (0.5 + one, 0.6 + one)
        states = [plan.step(state, output, call, one) for state, output in zip(states, outputs, strict=True)]
        expected.append(float(states[1].x - states[0].x) ** 2)
    assert found.accumulated == pytest.approx(expected, rel=1e-3, abs=1e-12)
    assert found.shift == pytest.approx(found.accumulated, rel=1e-3, abs=1e-12)  # it is one shift, no more


def test_noise_of_a_stochastic_sampler_is_shared():
    plan = PLANS["ddim, eta 1"]
    full = Denoising(constant(0.5), plan).follow(stream="val", seed=3, indices=range(2))
    same = step_errors(Denoising(constant(0.5), plan), full, seed=3, chunk=2)
    assert set(same.accumulated) == {0.0}
    other = step_errors(Denoising(constant(0.5), plan), full, seed=4, chunk=2)
    assert min(other.accumulated) > 1e-3
    assert step_noise("val", 3, [0], 0, SHAPE).std() > 0.5


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_network_that_is_not_quantized_has_no_error_at_all(guidance):
    """Exactly none: batches, conditions, noise and guidance are those of the bank."""
    bench = workbench(guidance=guidance)
    found = step_errors(bench.denoising, bench.bank.val, seed=0, chunk=4)
    assert {*found.local, *found.injected, *found.accumulated, *found.shift} == {0.0}


def frozen(guidance: float = 1.0):
    bench = workbench(W3A6, steps=StepGroups.per_step(4), guidance=guidance)
    inputs = bench.bank.cal.at(torch.arange(8))
    set_min_max_ranges_(bench.adapter, inputs.x, inputs.timestep, inputs.cond, inputs.step)
    freeze_(bench.network)
    lower_(bench.network, "simulate")
    return bench


def run(bench):
    return diagnose(bench.denoising, bench.bank.val, seed=0, chunk=4)


def drawn(bench):
    return bench.denoising.sample_chunk(0, chunk=4, seed=0)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_errors_of_a_quantized_network_follow_their_definitions(guidance):
    """Recomputed with NumPy from single calls of the network and a rollout written out."""
    bench = frozen(guidance)
    plan, full = bench.sampler, bench.bank.val
    found = run(bench).steps
    label = full.cond
    state = State(full.x[:, 0], full.x[:, 0], ())
    for call, timestep in enumerate(plan.timesteps):
        step = torch.full((4,), call)
        error = bench.adapter.denoise(full.x[:, call], timestep, label, step, guidance) - full.output[:, call]
        squares = error.numpy().astype(np.float64) ** 2
        power = (full.output[:, call].numpy().astype(np.float64) ** 2).sum()
        assert found.local[call] == pytest.approx(squares.sum() / power, rel=1e-4)
        assert found.injected[call] == pytest.approx(plan.gains[call] ** 2 * squares.mean(), rel=1e-4)
        state = plan.step(state, bench.adapter.denoise(state.x, timestep, label, step, guidance), call)
        difference = (state.x - full.x[:, call + 1]).numpy().astype(np.float64)
        assert found.accumulated[call + 1] == pytest.approx((difference**2).mean(), rel=1e-4)
        assert found.shift[call + 1] == pytest.approx((difference.mean(axis=(1, 2, 3)) ** 2).mean(), rel=1e-4)
    assert found.accumulated[0] == found.shift[0] == 0.0


def test_samples_drawn_after_a_diagnosis_have_the_same_bits():
    untouched, diagnosed = frozen(), frozen()
    run(diagnosed)
    assert torch.equal(drawn(untouched).state, drawn(diagnosed).state)


def test_freezing_after_a_diagnosis_gives_the_same_bits():
    """The network may be diagnosed calibrated but not frozen, with its switches as the caller sets them."""

    def calibrated():
        bench = workbench(W3A6)
        inputs = bench.bank.cal.at(torch.arange(8))
        set_min_max_ranges_(bench.adapter, inputs.x, inputs.timestep, inputs.cond, inputs.step)
        return bench

    untouched, diagnosed = calibrated(), calibrated()
    run(diagnosed)
    assert {layer.weight_on or layer.activation_on for layer in quant_layers(diagnosed.network).values()} == {False}
    for bench in (untouched, diagnosed):
        freeze_(bench.network)
        lower_(bench.network, "simulate")
    assert torch.equal(drawn(untouched).state, drawn(diagnosed).state)


def test_the_file_has_the_agreed_form_and_no_undefined_number(tmp_path):
    bench = frozen()
    save_json(tmp_path / DIAGNOSIS, run(bench).to_json())
    found = load_diagnosis(tmp_path)
    assert found is not None
    assert set(found) == {"version", "stream", "trajectories", "timesteps", "steps", "layers", "proxies"}
    assert (found["version"], found["stream"], found["trajectories"]) == (1, "val", 4)
    assert found["timesteps"] == list(bench.sampler.timesteps)
    assert {name: len(values) for name, values in found["steps"].items()} == {
        "local": 4,
        "injected": 4,
        "accumulated": 5,
        "shift": 5,
    }
    errors = np.array(found["layers"]["error"])
    assert errors.shape == (len(found["layers"]["names"]), len(found["layers"]["calls"]))
    assert found["proxies"]["layer_error"] == pytest.approx(np.log10(errors).mean())
    assert found["proxies"]["injected_error"] == pytest.approx(np.log10(sum(found["steps"]["injected"])))
    assert found["proxies"]["accumulated_error"] == pytest.approx(np.log10(found["steps"]["accumulated"][-1]))


def test_a_network_of_another_program_has_step_errors_and_no_layers():
    plan = PLANS["ddim"]
    full = Denoising(constant(0.5), plan).follow(stream="val", seed=0, indices=range(2))
    found = diagnose(Denoising(constant(0.6), plan), full, seed=0, chunk=2)
    assert found.layers is None
    assert found.proxies["layer_error"] is None
    same = diagnose(Denoising(constant(0.5), plan), full, seed=0, chunk=2)
    assert same.proxies == {"layer_error": None, "injected_error": None, "accumulated_error": None}


def test_a_network_that_diverges_and_another_plan_are_refused():
    plan = PLANS["ddim"]
    full = Denoising(constant(0.5), plan).follow(stream="val", seed=0, indices=range(2))
    with pytest.raises(FloatingPointError, match="output is not finite at call 0"):
        diagnose(Denoising(constant(float("nan")), plan), full, seed=0, chunk=2)
    with pytest.raises(ValueError, match="another sampler"):
        diagnose(Denoising(constant(0.5), sampler("ddim", 5)), full, seed=0, chunk=2)


@costly(40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 5), st.floats(0.1, 10.0))
def test_laws_of_the_arithmetic(seed, images, calls, factor):
    """A shift is part of the error; errors grow with the square of a difference; nothing is negative."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, calls + 1, *SHAPE, generator=generator, dtype=torch.float64)
    output = torch.randn(images, calls, *SHAPE, generator=generator, dtype=torch.float64)
    full = Trajectories(x, output, {}, tuple(range(calls)))
    gains = torch.randn(calls, generator=generator).tolist()
    dx = torch.randn(x.shape, generator=generator, dtype=torch.float64) + 0.3
    de = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    found = compare(full, output + de, x + dx, gains)
    scaled = compare(full, output + factor * de, x + factor * dx, gains)
    for part, whole in zip(found.shift, found.accumulated, strict=True):
        assert 0 <= part <= whole * (1 + 1e-9)
    for name in ("local", "injected", "accumulated", "shift"):
        expected = [factor**2 * value for value in getattr(found, name)]
        assert getattr(scaled, name) == pytest.approx(expected, rel=1e-6)
