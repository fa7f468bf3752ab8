"""How gradients of an end state reach earlier outputs and states, against autograd and closed forms."""

import math

import pytest
import torch
from examples import costly
from hypothesis import given
from hypothesis import strategies as st
from samplers.test_plan import PROCESSES, SCHEDULE, network, planned, specs, tensors

from dmqbench.samplers.adjoint import (
    detached,
    linear_transport,
    on_trajectory,
    output_gradients,
    power_spectrum,
    recorded_states,
    scalar_transport,
    spectral_transport,
    unit_transport,
)
from dmqbench.samplers.plan import State, build_plan
from dmqbench.samplers.processes import Edm, Flow, call_sigmas
from dmqbench.samplers.schedule import NoiseSchedule
from dmqbench.samplers.spec import SamplerSpec

SHAPE = (2, 3)
"""Of a state: two samples of three numbers."""

RUNGE_KUTTA = SamplerSpec("pndm", 5, skip_prk=False)


def drawn(key, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64)


def short(spec):
    """The same kind of sampler with few steps, so that places are tried often."""
    return SamplerSpec(**{**vars(spec), "steps": 4 + spec.steps % 7})


def noise_of(plan, call):
    return drawn(1000 + call) if plan.calls[call].sigma > 0 else None


def visited(plan):
    """States before every call and at the end, and the outputs of a network on them."""
    states, outputs = [plan.initial(drawn(0))], []
    for call in range(plan.network_calls):
        outputs.append(network(plan.input_scales[call] * states[-1].x, plan.timesteps[call]))
        states.append(plan.step(states[-1], outputs[-1], call, noise_of(plan, call)))
    return states, outputs


# ---- recorded trajectories


@given(specs())
@costly(30)
def test_recorded_states_are_those_of_the_rollout_with_anchor_and_history(spec):
    plan = planned(short(spec))
    states, outputs = visited(plan)
    x, output = torch.stack([state.x for state in states], 1), torch.stack(outputs, 1)
    found = list(recorded_states(plan, x, output))
    assert len(found) == len(states)
    for ours, theirs in zip(found, states, strict=True):
        assert len(ours.history) == len(theirs.history)
        assert all(torch.equal(left, right) for left, right in zip(tensors(ours), tensors(theirs), strict=True))


def test_a_recorded_x_is_kept_though_the_update_gives_another():
    plan = build_plan(SamplerSpec("dpmpp", 5), SCHEDULE)
    states, outputs = visited(plan)
    x = torch.stack([state.x for state in states], 1) + 1e-3
    found = list(recorded_states(plan, x, torch.stack(outputs, 1)))
    for place, state in enumerate(found):
        assert torch.equal(state.x, x[:, place])


def test_a_detached_state_has_no_graph():
    state = State(*(torch.ones(2, requires_grad=True) * 2 for _ in range(2)), (torch.ones(2, requires_grad=True) * 3,))
    cut = detached(state)
    assert not any(tensor.requires_grad for tensor in tensors(cut))
    assert all(torch.equal(left, right) for left, right in zip(tensors(cut), tensors(state), strict=True))


def test_points_inside_a_runge_kutta_step_are_off_the_trajectory():
    plan = build_plan(RUNGE_KUTTA, SCHEDULE)
    assert [place for place in range(plan.network_calls + 1) if on_trajectory(plan, place, plan.network_calls)] == [
        *(0, 4, 8),
        *(12, 13, 14),
    ]
    assert on_trajectory(plan, 6, end=6)


# ---- gradients of outputs


def of_algebra(plan, first, states, outputs, weight):
    """∂⟨w, x_M⟩ of M network outputs, and of each state by itself, by autograd through the sampler's updates alone.

    The outputs do not depend on the states: the Jacobian of the network is cut.
    """
    leaves = [output.clone().requires_grad_(True) for output in outputs]
    bumps = [torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True) for _ in outputs]
    state = states[0]
    for index, (leaf, bump) in enumerate(zip(leaves, bumps, strict=True)):
        state = plan.step(state, leaf, first + index, noise_of(plan, first + index))
        state = state._replace(x=state.x + bump)
    total = (weight * state.x).sum()
    found = torch.autograd.grad(total, [*leaves, *bumps], materialize_grads=True)
    return found[: len(leaves)], found[len(leaves) :]


@given(specs(), st.data())
@costly(80)
def test_gradients_of_outputs_are_those_of_the_samplers_own_algebra(spec, data):
    """With ∂L/∂x of each state given, history, anchors and clipping included; wherever the group begins and ends."""
    plan = planned(short(spec))
    first = data.draw(st.integers(0, plan.network_calls - 1))
    count = data.draw(st.integers(1, plan.network_calls - first))
    states, outputs = visited(plan)
    states, outputs = states[first : first + count + 1], outputs[first : first + count]
    noises = [noise_of(plan, call) for call in range(first, first + count)]
    expected, of_states = of_algebra(plan, first, states, outputs, drawn(7))
    found = output_gradients(plan, first, states, outputs, noises, of_states)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_of_single_step_samplers_it_is_the_gain_times_the_gradient():
    plan = build_plan(SamplerSpec("ddim", 6, eta=0.5), SCHEDULE)
    states, outputs = visited(plan)
    gradients = [drawn(20 + index) for index in range(3)]
    found = output_gradients(plan, 2, states[2:6], outputs[2:5], [drawn(9)] * 3, gradients)
    for call, ours, gradient in zip(range(2, 5), found, gradients, strict=True):
        torch.testing.assert_close(ours, plan.gains[call] * gradient)


def test_of_adams_bashforth_it_is_the_sum_over_the_updates_that_use_the_output():
    """The fourth-order weights times the move of each step, written out."""
    plan = build_plan(SamplerSpec("pndm", 12), SCHEDULE)
    states, outputs = visited(plan)
    first = 6
    gradients = [drawn(30 + index) for index in range(4)]
    found = output_gradients(plan, first, states[first : first + 5], outputs[first : first + 4], [None] * 4, gradients)
    shares = (55 / 24, -59 / 24, 37 / 24, -9 / 24)
    moves = [plan.gains[call] / shares[0] for call in range(first, first + 4)]
    for index, ours in enumerate(found):
        expected = sum(shares[later - index] * moves[later] * gradients[later] for later in range(index, 4))
        torch.testing.assert_close(ours, expected)


def test_arguments_and_their_graphs_are_left_alone():
    plan = build_plan(SamplerSpec("dpmpp", 6), SCHEDULE)
    states, outputs = visited(plan)
    before = [tensor.clone() for state in states for tensor in tensors(state)]
    found = output_gradients(plan, 1, states[1:4], outputs[1:3], [None] * 2, [drawn(1), drawn(2)])
    assert all(torch.equal(a, b) for a, b in zip(before, (t for state in states for t in tensors(state)), strict=True))
    assert not any(tensor.requires_grad for tensor in (*outputs, *found))


def test_gradients_off_the_trajectory_are_not_read():
    plan = build_plan(RUNGE_KUTTA, SCHEDULE)
    states, outputs = visited(plan)
    gradients = [drawn(40 + index) for index in range(4)]
    unread = [
        gradient if on_trajectory(plan, place, 4) else torch.full(SHAPE, math.nan, dtype=torch.float64)
        for place, gradient in enumerate(gradients, start=1)
    ]
    assert sum(bool(gradient.isnan().any()) for gradient in unread) == 3
    expected, found = (
        output_gradients(plan, 0, states[:5], outputs[:4], [None] * 4, given) for given in (gradients, unread)
    )
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_a_last_update_that_stays_at_its_noise_level_has_no_gradient():
    plan = build_plan(SamplerSpec("pndm", 5, final_alpha_one=False), SCHEDULE)
    states, outputs = visited(plan)
    last = plan.network_calls - 1
    assert plan.timesteps[last] == 0 and plan.gains[last] == 0
    [found] = output_gradients(plan, last, states[last:], outputs[last:], [None], [drawn(1)])
    assert torch.equal(found, torch.zeros(SHAPE, dtype=torch.float64))


# ---- transports


def alphas_of(plan):
    return tuple(level.alpha for level in plan.levels)


def test_noise_levels_are_those_of_the_states():
    plan = build_plan(SamplerSpec("ddim", 5), SCHEDULE)
    table = SCHEDULE.alphas_cumprod()
    assert alphas_of(plan) == (*(float(table[timestep]) for timestep in plan.timesteps), 1.0)
    kept = build_plan(SamplerSpec("ddim", 5, final_alpha_one=False), SCHEDULE)
    assert alphas_of(kept)[-1] == float(table[0])
    assert {level.size for level in (*plan.levels, *kept.levels)} == {1.0}


@given(st.integers(1, 8), st.integers(0, 7))
@costly(30)
def test_the_scalar_transport_has_the_limits_of_no_data_and_of_much_data(end, place):
    """√(v_s/v_t) → σ_s/σ_t for data without variance, √(ᾱ_s/ᾱ_t) for variance without bound, 1 for unit variance."""
    place = min(place, end)
    plan = build_plan(SamplerSpec("ddim", 9), SCHEDULE)
    table = SCHEDULE.alphas_cumprod()
    there, here = (float(table[plan.timesteps[index]]) for index in (end, place))
    gradient = drawn(3)
    ratios = {0.0: math.sqrt((1 - there) / (1 - here)), 1.0: 1.0, 1e14: math.sqrt(there / here)}
    for variance, ratio in ratios.items():
        carried = scalar_transport(plan, end, variance)(gradient, place)
        torch.testing.assert_close(carried, ratio * gradient, rtol=1e-6, atol=0)


def test_the_transport_of_gaussian_data_is_the_flow_of_its_exact_network():
    """Many small DDIM steps with ε* = √(1−ᾱ) x / v multiply x by √(v_end / v_k), for each variance."""
    schedule = NoiseSchedule()
    plan = build_plan(SamplerSpec("ddim", 1000), schedule)
    alphas = schedule.alphas_cumprod()
    first, end = 300, 900
    for variance in (0.1, 1.0, 4.0):
        x = torch.ones((), dtype=torch.float64)
        state = plan.initial(x)
        for call in range(first, end):
            alpha = alphas[plan.timesteps[call]]
            state = plan.step(state, (1 - alpha).sqrt() * state.x / (alpha * variance + 1 - alpha), call)
        carried = scalar_transport(plan, end, variance)(x, first)
        assert float(carried) == pytest.approx(float(state.x), rel=5e-3)


@pytest.mark.parametrize(
    ("spec", "process"),
    [
        (SamplerSpec("flow", 6, spacing="trailing"), Flow(shift=3.0)),
        (SamplerSpec("edm", 6), Edm(sigma_max=10.0)),
        (SamplerSpec("edm", 6, solver="heun"), Edm(sigma_max=10.0)),
    ],
)
def test_over_noise_levels_the_variance_is_that_of_the_states(spec, process):
    """(1-σ)² λ + σ² and λ + σ²; for data of unit variance that alone is no identity."""
    plan = build_plan(spec, process)
    sigmas = call_sigmas(spec, process)
    for variance in (0.3, 1.0, 5.0):
        signal = 0 if spec.kind == "edm" else 1
        v = [(1 - signal * sigma) ** 2 * variance + sigma**2 for sigma in (*sigmas, 0.0)]
        for place in range(plan.network_calls):
            for end in (place + 1, plan.network_calls):
                expected = math.sqrt(v[end] / v[place]) * drawn(3)
                torch.testing.assert_close(scalar_transport(plan, end, variance)(drawn(3), place), expected)
                if variance == 1:
                    torch.testing.assert_close(unit_transport(plan, end)(drawn(3), place), expected)


@given(specs())
@costly(30)
def test_where_a_process_preserves_variance_unit_data_asks_for_the_identity(spec):
    plan = planned(short(spec))
    carried = unit_transport(plan, plan.network_calls)(drawn(3), 1)
    assert torch.equal(carried, drawn(3)) == (spec.kind not in PROCESSES)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 3))
@costly(30)
def test_the_spectral_transport_of_white_data_is_the_scalar_one(height, width, place):
    plan = build_plan(SamplerSpec("ddim", 6), SCHEDULE)
    gradient = drawn(4, (2, 3, height, width))
    white = torch.full((3, height, width // 2 + 1), 0.4, dtype=torch.float64)
    expected = scalar_transport(plan, 4, 0.4)(gradient, place)
    torch.testing.assert_close(spectral_transport(plan, 4, white)(gradient, place), expected)


def test_the_spectral_transport_keeps_the_precision_of_the_gradient():
    plan = build_plan(SamplerSpec("ddim", 6), SCHEDULE)
    spectrum = torch.full((1, 4, 3), 0.4, dtype=torch.float64)
    assert spectral_transport(plan, 4, spectrum)(torch.ones(2, 1, 4, 4), 1).dtype == torch.float32


def test_the_spectral_transport_scales_every_wave_by_its_own_ratio():
    plan = build_plan(SamplerSpec("ddim", 6), SCHEDULE)
    table = alphas_of(plan)
    spectrum = torch.rand(1, 8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    spectrum[:, 5:] = spectrum[:, 1:4].flip(1)  # the same in both diagonal directions
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    for u, v in ((0, 0), (0, 3), (1, 2), (3, 4), (4, 0)):
        wave = torch.cos(2 * math.pi * (u * rows + v * columns) / 8 + 0.3).double()[None, None]
        at_end, here = (table[index] * float(spectrum[0, u, v]) + 1 - table[index] for index in (5, 2))
        mirrored = torch.cos(2 * math.pi * (-u * rows + v * columns) / 8 + 0.3).double()[None, None]
        for each in (wave, mirrored):
            carried = spectral_transport(plan, 5, spectrum)(each, 2)
            torch.testing.assert_close(carried, math.sqrt(at_end / here) * each, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "spec",
    [
        SamplerSpec("ddim", 8),
        SamplerSpec("ddim", 8, eta=1.0),
        SamplerSpec("ddim", 8, clip_sample=1e6),
        SamplerSpec("pndm", 8),
        RUNGE_KUTTA,
    ],
)
def test_the_linear_transport_is_what_the_updates_pass_on_by_themselves(spec):
    """At fixed outputs; a step of Runge-Kutta starts from its anchor, whatever lies between."""
    plan = build_plan(spec, SCHEDULE)
    states, outputs = visited(plan)
    weight, end = drawn(5), plan.network_calls
    _, of_states = of_algebra(plan, 0, states, outputs, weight)
    for place in range(1, end + 1):
        if on_trajectory(plan, place, end):
            carried = linear_transport(plan, end)(weight, place)
            torch.testing.assert_close(carried, of_states[place - 1], rtol=1e-9, atol=0)


def test_the_linear_transport_blows_up_by_the_ratio_of_signals():
    """×158 over the schedule of DDPM, where data of unit variance asks for 1."""
    schedule = NoiseSchedule()
    plan = build_plan(SamplerSpec("ddim", 20, spacing="trailing"), schedule)
    factor = float(linear_transport(plan, 20)(torch.ones((), dtype=torch.float64), 0))
    assert factor == pytest.approx(1 / math.sqrt(float(schedule.alphas_cumprod()[999])))
    assert factor == pytest.approx(158, rel=0.01)


# ---- spectra


def test_white_noise_has_power_one_at_every_frequency():
    power = power_spectrum(torch.randn(4000, 2, 5, 6, generator=torch.Generator().manual_seed(0)))
    assert power.shape == (2, 5, 4)
    torch.testing.assert_close(power, torch.ones_like(power), rtol=0, atol=0.12)


@pytest.mark.parametrize("width", [1, 2, 5, 8])
def test_the_mean_power_is_the_variance_of_pixels(width):
    """Parseval; every column but the first, and the last of an even width, stands for its mirror image as well."""
    samples = drawn(6, (7, 3, 4, width)) * 2 + torch.arange(width)
    power = power_spectrum(samples)
    weights = torch.full((width // 2 + 1,), 2.0, dtype=torch.float64)
    weights[0] = 1
    if width % 2 == 0:
        weights[-1] = 1
    mean = (power * weights).sum() / (3 * 4 * width)
    torch.testing.assert_close(mean, samples.var(0).mean())


def test_what_all_samples_share_has_no_power():
    assert power_spectrum(drawn(8, (1, 2, 4, 4)).expand(5, -1, -1, -1)).abs().max() < 1e-25


def test_one_sample_counts_as_data_of_unit_variance():
    assert torch.equal(power_spectrum(drawn(9, (1, 2, 4, 4))), torch.ones(2, 4, 3, dtype=torch.float64))


def test_the_power_of_two_samples_is_their_variance():
    samples = drawn(11, (2, 1, 3, 1))
    torch.testing.assert_close(power_spectrum(samples).mean(), samples.var(0).mean())
