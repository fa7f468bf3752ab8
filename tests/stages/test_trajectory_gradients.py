"""The ways to a group's gradient: against brute force on toys, and closed forms."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from examples import costly
from hypothesis import given
from hypothesis import strategies as st
from samplers.test_over_sigmas import VARIANCES, exact_output
from samplers.test_plan import PROCESSES, SCHEDULE, planned, specs

from dmqbench.samplers.adjoint import power_spectrum, scalar_transport
from dmqbench.samplers.plan import build_plan
from dmqbench.samplers.processes import call_sigmas
from dmqbench.samplers.schedule import NoiseSchedule
from dmqbench.samplers.spec import SamplerSpec
from dmqbench.stages.trajectory_gradients import (
    CONTROLS,
    RULES,
    GroupProblem,
    mean_square,
    mean_square_gradient,
    transported,
)

ALL = RULES | CONTROLS
SHAPE = (2, 1, 2, 2)


def drawn(key, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64)


def gradients(rule, problem, parameters):
    """(value that the rule returns, what it adds to each parameter)."""
    for parameter in parameters:
        parameter.grad = None
    value = rule.run(problem, parameters)
    return value, [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]


# ---- a toy: a smooth network whose every call has parameters of its own


def smooth(x, θ):
    return torch.tanh(x * θ[0]) + θ[1] * torch.sin(x) + θ[2]


def toy(plan, first, count, network=smooth, drift=0.05):
    """A group in float64. Full precision is the network at other parameters, on its own states."""
    parameters = [
        (torch.tensor([0.8, 0.2, 0.1], dtype=torch.float64) + drift * drawn(50 + call, (3,))).requires_grad_(True)
        for call in range(plan.network_calls)
    ]

    def noise(call):
        return drawn(100 + call) if plan.calls[call].sigma > 0 else None

    states = [plan.initial(drawn(0))]
    for call in range(first + count):
        output = network(plan.input_scales[call] * states[-1].x, torch.tensor([0.8, 0.2, 0.1]))
        states.append(plan.step(states[-1], output, call, noise(call)))
    problem = GroupProblem(
        denoise=lambda x, call: network(plan.input_scales[call] * x, parameters[call]),
        plan=plan,
        first=first,
        start=states[first],
        references=states[first:],
        noises=[noise(call) for call in range(first, first + count)],
        spectrum=0.5 + torch.rand(1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
    )
    return problem, parameters


def brute_force(problem, parameters):
    """(∂/∂θ of the end states' squared difference by one graph over all calls, its value)."""
    state = problem.start
    for call, noise in zip(problem.calls, problem.noises, strict=True):
        state = problem.plan.step(state, problem.denoise(state.x, call), call, noise)
    loss = ((state.x - problem.references[-1].x) ** 2).sum() / state.x.numel()
    if not loss.requires_grad:
        return [torch.zeros_like(p) for p in parameters], loss
    return torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True), loss.detach()


def assert_close(found, expected, rtol=1e-9):
    """Relative to the largest entry of each parameter's gradient."""
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=rtol * float(theirs.abs().max()) + 1e-14)


@st.composite
def groups(draw):
    """(plan, first call, number of calls) of any sampler."""
    spec = draw(specs())
    spec = replace(spec, steps=4 + spec.steps % 5)
    plan = planned(spec)
    first = draw(st.integers(0, plan.network_calls - 1))
    return plan, first, draw(st.integers(1, plan.network_calls - first))


@given(groups())
@costly(60)
def test_exact_and_replayed_are_backpropagation_through_all_calls(group):
    problem, parameters = toy(*group)
    expected, error = brute_force(problem, parameters)
    for name in ("exact", "replayed"):
        value, found = gradients(RULES[name], problem, parameters)
        assert_close(found, expected)
        torch.testing.assert_close(value, error)


@given(groups())
@costly(30)
def test_with_one_call_all_ways_are_one(group):
    """Up to no constant at all: every rule has the 1/|x| of the mean."""
    plan, first, _ = group
    problem, parameters = toy(plan, first, 1)
    expected, error = brute_force(problem, parameters)
    for rule in ALL.values():
        value, found = gradients(rule, problem, parameters)
        assert_close(found, expected)
        torch.testing.assert_close(value, error)


@given(groups())
@costly(20)
def test_every_way_reports_the_error_of_its_group_and_adds_to_what_is_there(group):
    problem, parameters = toy(*group)
    error = brute_force(problem, parameters)[1]
    torch.testing.assert_close(problem.end_state_error(), error)
    for name, rule in ALL.items():
        value, once = gradients(rule, problem, parameters)
        assert not value.requires_grad
        if name != "independent":  # which never sees the end state
            torch.testing.assert_close(value, error)
        rule.run(problem, parameters)
        twice = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        assert_close(twice, [2 * gradient for gradient in once])


def of_call(problem, parameters, state, call, gradient):
    """(∂x_next/∂θ)ᵀ ``gradient`` of one call by itself from ``state``."""
    after = problem.plan.step(state, problem.denoise(state.x, call), call, problem.noises[call - problem.first])
    return torch.autograd.grad(after.x, parameters, gradient, allow_unused=True, materialize_grads=True)


def added(parts):
    return [sum(each) for each in zip(*parts, strict=True)]


@pytest.mark.parametrize("spec", [SamplerSpec("ddim", 6), SamplerSpec("ddim", 6, eta=1.0, clip_sample=1.0)])
def test_of_single_step_samplers_every_way_is_a_sum_over_calls_with_its_own_gradient_at_the_state(spec):
    plan = build_plan(spec, SCHEDULE)
    problem, parameters = toy(plan, 1, 4)
    states, _ = problem.run()
    residual = mean_square_gradient(states[-1].x, problem.target)
    table = [*SCHEDULE.alphas_cumprod()[list(plan.timesteps)].tolist(), 1.0]
    power = problem.spectrum[..., [0, 1]].mean()  # of two columns, both stand for themselves alone

    def level(place):
        return table[place] * float(power) + 1 - table[place]

    for name, ratio in (
        ("identity", lambda place: 1.0),
        ("scalar", lambda place: math.sqrt(level(5) / level(place))),
        ("linear", lambda place: math.prod(call.carry for call in plan.calls[place:5])),
    ):
        parts = [of_call(problem, parameters, states[i], 1 + i, ratio(2 + i) * residual) for i in range(4)]
        assert_close(gradients(ALL[name], problem, parameters)[1], added(parts))

    def of_local_error(state, call, x, reference):
        return of_call(problem, parameters, state, call, mean_square_gradient(x, reference.x))

    visited = zip(states, problem.calls, states[1:], problem.references[1:], strict=False)
    closed_loop = [of_local_error(state, call, after.x, reference) for state, call, after, reference in visited]
    assert_close(gradients(RULES["online"], problem, parameters)[1], added(closed_loop))
    recorded = list(zip(problem.references, problem.calls, problem.noises, problem.references[1:], strict=False))
    after = [plan.step(state, problem.denoise(state.x, call), call, z).x.detach() for state, call, z, _ in recorded]
    by_itself = [of_local_error(s, call, x, end) for (s, call, _, end), x in zip(recorded, after, strict=True)]
    value, found = gradients(RULES["independent"], problem, parameters)
    assert_close(found, added(by_itself))
    torch.testing.assert_close(value, sum(mean_square(x, s.x) for x, (_, _, _, s) in zip(after, recorded, strict=True)))
    last = of_call(problem, parameters, states[3], 4, residual)
    assert_close(gradients(CONTROLS["truncated"], problem, parameters)[1], last)


@given(groups())
@costly(30)
def test_the_spectral_correction_of_white_data_is_the_scalar_one(group):
    problem, parameters = toy(*group)
    white = replace(problem, spectrum=torch.full_like(problem.spectrum, 0.7))
    expected = gradients(RULES["scalar"], white, parameters)[1]
    assert_close(gradients(RULES["spectral"], white, parameters)[1], expected)


@pytest.mark.parametrize("width", [1, 2, 5, 6])
def test_the_scalar_correction_takes_the_variance_of_a_pixel_from_the_spectrum(width):
    """Parseval, for odd and even widths: the half spectrum names most frequencies once for two."""
    samples = drawn(9, (11, 1, 3, width)) * torch.linspace(0.2, 2, width, dtype=torch.float64)
    variance = float(samples.var(0, unbiased=False).mean())
    plan = build_plan(SamplerSpec("ddim", 6), SCHEDULE)
    x = drawn(1, (2, 1, 3, width))
    θ = torch.full((1,), 0.3, dtype=torch.float64, requires_grad=True)
    start = plan.initial(x)
    problem = GroupProblem(lambda x, call: x * θ, plan, 2, start, [start] * 4, [None] * 3, power_spectrum(samples))
    expected = transported(lambda p: scalar_transport(p.plan, p.end, variance))
    θ.grad = None
    expected(problem, [θ])
    torch.testing.assert_close(gradients(RULES["scalar"], problem, [θ])[1], [θ.grad])


def test_data_without_variance_corrects_to_zero_where_nothing_is_noisy():
    """One calibration trajectory: v = 0 at ᾱ = 1, and 0/0 must not be met."""
    plan = build_plan(SamplerSpec("ddim", 4), SCHEDULE)
    problem, parameters = toy(plan, 1, 3)
    known = replace(problem, spectrum=torch.zeros_like(problem.spectrum))
    states, _ = problem.run()
    last = of_call(problem, parameters, states[2], 3, mean_square_gradient(states[3].x, problem.target))
    for name in ("scalar", "spectral"):
        assert_close(gradients(RULES[name], known, parameters)[1], last)


def test_a_call_that_stays_at_its_noise_level_teaches_nothing():
    """The last one of samplers that end at ᾱ of timestep 0, from timestep 0: its update ignores the network."""
    for spec in (SamplerSpec("ddim", 5, final_alpha_one=False), SamplerSpec("pndm", 5, final_alpha_one=False)):
        plan = build_plan(spec, SCHEDULE)
        problem, parameters = toy(plan, plan.network_calls - 1, 1)
        for rule in ALL.values():
            value, found = gradients(rule, problem, parameters)
            assert value.isfinite()
            assert max(float(gradient.abs().max()) for gradient in found) < 1e-14


# ---- closed forms


def linear_problem(plan, first, count, slopes):
    """ε = c x + θ with one number θ for every call, towards zero: only sums and products remain."""
    θ = [torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(count)]
    start = plan.initial(drawn(2))
    ends = [start._replace(x=torch.zeros(SHAPE, dtype=torch.float64))] * (count + 1)
    return GroupProblem(
        denoise=lambda x, call: slopes[call] * x + θ[call - first],
        plan=plan,
        first=first,
        start=start,
        references=ends,
        noises=[None] * count,
        spectrum=torch.ones(1, 2, 2, dtype=torch.float64),
    ), θ


def test_of_a_linear_network_identity_lacks_exactly_the_product_of_its_steps():
    """exact_i = b_i Π_{j>i} (a_j + b_j c_j) Σr and identity_i = b_i Σr."""
    plan = build_plan(SamplerSpec("ddim", 8), SCHEDULE)
    slopes = [0.9 - 0.15 * call for call in range(8)]
    problem, θ = linear_problem(plan, 1, 6, slopes)
    x = drawn(2)
    for call in range(1, 7):
        x = plan.calls[call].a * x + plan.gains[call] * slopes[call] * x
    residual = float((2 * x / x.numel()).sum())
    steps = [plan.calls[call].a + plan.gains[call] * slopes[call] for call in range(1, 7)]
    through = [math.prod(steps[i + 1 :]) for i in range(6)]
    for name in ("exact", "replayed", "identity", "linear"):
        found = torch.stack(gradients(ALL[name], problem, θ)[1])
        factors = {
            "identity": [1.0] * 6,
            "linear": [math.prod(call.carry for call in plan.calls[2 + i : 7]) for i in range(6)],
        }
        expected = [plan.gains[1 + i] * factors.get(name, through)[i] * residual for i in range(6)]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)


def test_of_data_of_unit_variance_identity_differs_by_the_cosine_of_each_step():
    """ε* = √(1−ᾱ) x, ᾱ = cos²θ: Φ = Π cos(θ_t − θ_s), and over N equal angles about 1 − π²/(8N)."""
    schedule = NoiseSchedule(1000, beta_schedule="squaredcos_cap_v2")
    calls = 50
    plan = build_plan(SamplerSpec("ddim", calls, steps_offset=19), schedule)
    alphas = schedule.alphas_cumprod()
    slopes = [math.sqrt(1 - alphas[timestep]) for timestep in plan.timesteps]
    problem, θ = linear_problem(plan, 0, calls, slopes)
    ratio = torch.stack(gradients(RULES["replayed"], problem, θ)[1]) / torch.stack(
        gradients(RULES["identity"], problem, θ)[1]
    )
    angles = [*(math.acos(math.sqrt(alphas[timestep])) for timestep in plan.timesteps), 0.0]
    turns = [math.cos(before - after) for before, after in itertools.pairwise(angles)]
    expected = [math.prod(turns[call + 1 :]) for call in range(calls)]
    torch.testing.assert_close(ratio, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)
    assert float(ratio[0]) == pytest.approx(1 - math.pi**2 / (8 * calls), abs=2e-3)


@pytest.mark.parametrize("variance", VARIANCES.tolist())
@pytest.mark.parametrize(("kind", "solver"), [("flow", "euler"), ("edm", "euler"), ("edm", "heun")])
def test_over_noise_levels_the_correction_is_that_of_the_exact_network(kind, solver, variance):
    """Over many small steps of E[ε - x0 | x] and its like. Of unit variance, identity between states over their size is
    as good; between states as they are it is not: EDM's differ in size by ten, here."""
    process = PROCESSES[kind]
    plan = build_plan(SamplerSpec(kind, 80, spacing="trailing", solver=solver), process)
    ones, place = torch.ones(3, dtype=torch.float64), VARIANCES.tolist().index(variance)
    sigmas = call_sigmas(plan.spec, process)
    slopes = [float(exact_output(process, sigma, ones)[place]) for sigma in sigmas]
    problem, θ = linear_problem(plan, 0, plan.network_calls, slopes)
    problem = replace(problem, spectrum=variance * problem.spectrum)
    exact, scalar, identity = (
        torch.stack(gradients(RULES[name], problem, θ)[1]) for name in ("replayed", "scalar", "identity")
    )
    torch.testing.assert_close(scalar / exact, torch.ones_like(exact), rtol=0, atol=0.1)
    if variance == 1:
        torch.testing.assert_close(identity, scalar)
        residual = mean_square_gradient(problem.run()[0][-1].x, problem.target).sum()
        between_states_as_they_are = torch.tensor(plan.gains, dtype=torch.float64) * residual
        assert (between_states_as_they_are / exact - 1).abs().max() > 0.2


def test_the_linear_control_blows_up_where_the_others_do_not():
    schedule = NoiseSchedule()
    plan = build_plan(SamplerSpec("ddim", 20, spacing="trailing"), schedule)
    slopes = [math.sqrt(1 - schedule.alphas_cumprod()[timestep]) for timestep in plan.timesteps]
    problem, θ = linear_problem(plan, 0, 20, slopes)
    first = {name: float(gradients(ALL[name], problem, θ)[1][0]) for name in ("exact", "identity", "scalar", "linear")}
    assert first["identity"] == pytest.approx(first["exact"], rel=0.1)
    assert first["scalar"] == pytest.approx(first["identity"], rel=1e-6)  # unit variance
    assert abs(first["linear"]) > 50 * abs(first["exact"])


# ---- cost


def test_a_rule_costs_what_it_says():
    plan = build_plan(SamplerSpec("dpmpp", 7), SCHEDULE)
    for rule in (RULES | CONTROLS).values():
        problem, parameters = toy(plan, 1, 5)
        cost = 0

        def denoise(x, call, problem=problem):
            nonlocal cost
            cost += 3 if torch.is_grad_enabled() else 1  # with its backward pass, or without
            return problem.denoise(x, call)

        rule.run(replace(problem, denoise=denoise), parameters)
        assert cost == rule.forwards(5)
