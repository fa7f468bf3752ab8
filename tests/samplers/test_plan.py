"""Laws of the plan: pure, differentiable, counted, and honest about what does not fit."""

import pytest
import torch
from examples import costly
from hypothesis import given
from hypothesis import strategies as st

from dmqbench.samplers.plan import State, build_plan
from dmqbench.samplers.processes import Consistency, Edm, Flow, process_timesteps
from dmqbench.samplers.schedule import NoiseSchedule
from dmqbench.samplers.spec import SamplerSpec
from dmqbench.samplers.timesteps import plan_timesteps

SCHEDULE = NoiseSchedule(200, 0.0005, 0.05)
PROCESSES = {"flow": Flow(shift=2.0), "edm": Edm(sigma_max=10.0), "consistency": Consistency(200, sigma_max=10.0)}
KINDS = ("ddim", "ddpm", "dpmpp", "pndm", *PROCESSES)
PREDICTIONS = {"pndm": 2, "edm": 2, "flow": 1, "consistency": 1}
"""How many of the three a sampler takes, if not all."""


@st.composite
def specs(draw):
    kind = draw(st.sampled_from(KINDS))
    return SamplerSpec(
        kind=kind,
        steps=draw(st.integers(4, 199)),
        eta=draw(st.sampled_from([0.0, 0.3, 1.0])) if kind == "ddim" else 0.0,
        spacing=draw(st.sampled_from(["trailing", "linspace"] + ["leading"] * (kind != "flow"))),
        clip_sample=draw(st.sampled_from([None, 0.5])) if kind in ("ddim", "ddpm", "consistency") else None,
        skip_prk=draw(st.booleans()),
        final_alpha_one=draw(st.booleans()),
        prediction=draw(st.sampled_from(["epsilon", "v_prediction", "sample"][: PREDICTIONS.get(kind, 3)])),
        solver=draw(st.sampled_from(["euler", "heun"])) if kind == "edm" else "euler",
    )


def planned(spec):
    """The plan of ``spec`` over what fits it."""
    return build_plan(spec, PROCESSES.get(spec.kind, SCHEDULE))


def random_state(plan, index, dtype=torch.float64):
    """Return a state, a network output and a noise that fit call ``index``."""
    generator = torch.Generator().manual_seed(index)

    def draw():
        return torch.randn(2, 4, generator=generator, dtype=torch.float64).to(dtype)

    history = tuple(draw() for _ in plan.calls[index].b[1:])
    return State(draw(), draw(), history), draw(), draw()


def tensors(state):
    return (state.x, state.anchor, *state.history)


def network(x, timestep):
    return torch.tanh(x) + 0.1 * torch.sin(3 * x + timestep)


def rollout(plan, state, first, last):
    for index in range(first, last):
        noise = torch.randn(state.x.shape, generator=torch.Generator().manual_seed(index), dtype=state.x.dtype)
        output = network(plan.input_scales[index] * state.x, plan.timesteps[index])
        state = plan.step(state, output, index, noise)
    return state


@given(specs(), st.data())
@costly(60)
def test_step_is_pure(spec, data):
    plan = planned(spec)
    index = data.draw(st.integers(0, plan.network_calls - 1))
    state, output, noise = random_state(plan, index)
    before = [value.clone() for value in (*tensors(state), output, noise)]
    first = plan.step(state, output, index, noise)
    second = plan.step(state, output, index, noise)
    assert all(torch.equal(left, right) for left, right in zip(tensors(first), tensors(second), strict=True))
    assert all(torch.equal(left, right) for left, right in zip(before, (*tensors(state), output, noise), strict=True))


@given(specs(), st.data())
@costly(60)
def test_gradients_of_one_step_are_gain_and_carry(spec, data):
    plan = planned(spec)
    index = data.draw(st.integers(0, plan.network_calls - 1))
    state, output, noise = random_state(plan, index)
    # Small values keep a clipped sample inside its range, where gain and carry are defined.
    x = (1e-6 * state.x).requires_grad_()
    output = (1e-6 * output).requires_grad_()
    anchor = state.anchor.requires_grad_()
    total = plan.step(State(x, anchor, state.history), output, index, noise).x.sum()
    by_x, by_output = torch.autograd.grad(total, (x, output), materialize_grads=True)
    torch.testing.assert_close(by_output, torch.full_like(output, plan.gains[index]))
    torch.testing.assert_close(by_x, torch.full_like(x, plan.calls[index].carry))


@given(specs())
@costly(60)
def test_calls_are_those_of_the_timesteps(spec):
    plan = planned(spec)
    if spec.kind in PROCESSES:
        expected = process_timesteps(spec, PROCESSES[spec.kind])
    else:
        expected = plan_timesteps(spec.kind, spec.steps, spec.spacing, spec.steps_offset, 200, spec.skip_prk)
    assert plan.timesteps == expected
    assert plan.network_calls == len(expected)
    assert any(call.sigma > 0 for call in plan.calls) == (spec.kind in ("ddpm", "consistency") or spec.eta > 0)
    assert len(plan.levels) == plan.network_calls + 1


@given(specs(), st.data())
@costly(30)
def test_history_fits_at_every_call_and_a_trajectory_can_be_cut_anywhere(spec, data):
    plan = planned(spec)
    start = plan.initial(torch.randn(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    cut = data.draw(st.integers(0, plan.network_calls))
    whole = rollout(plan, start, 0, plan.network_calls)
    joined = rollout(plan, rollout(plan, start, 0, cut), cut, plan.network_calls)
    assert torch.isfinite(whole.x).all()
    assert torch.equal(whole.x, joined.x)


@pytest.mark.parametrize(
    ("spec", "longest"),
    [
        (SamplerSpec("ddim", 20), 0),
        (SamplerSpec("ddpm", 20), 0),
        (SamplerSpec("dpmpp", 20), 1),
        (SamplerSpec("pndm", 20), 3),
        (SamplerSpec("pndm", 20, skip_prk=False), 5),
    ],
    ids=["ddim", "ddpm", "dpmpp", "plms", "prk"],
)
def test_no_more_history_is_carried_than_needed(spec, longest):
    assert max(len(call.keep) for call in build_plan(spec, SCHEDULE).calls) == longest


@pytest.mark.parametrize("skip_prk", [True, False])
def test_whole_trajectory_is_differentiable_through_the_history(skip_prk):
    plan = build_plan(SamplerSpec("pndm", 5, skip_prk=skip_prk, prediction="v_prediction"), SCHEDULE)
    x = torch.randn(1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rollout(plan, plan.initial(x), 0, plan.network_calls).x, (x,))


@pytest.mark.parametrize("kind", ["ddim", "ddpm", "dpmpp", "pndm"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept_and_values_agree(kind, dtype):
    plan = build_plan(SamplerSpec(kind, 10), SCHEDULE)
    state, output, noise = random_state(plan, 4, dtype)
    actual = plan.step(state, output, 4, noise)
    wide = State(state.x.double(), state.anchor.double(), tuple(value.double() for value in state.history))
    expected = plan.step(wide, output.double(), 4, noise.double())
    assert all(value.dtype == dtype for value in tensors(actual))
    torch.testing.assert_close(actual.x.double(), expected.x, rtol=0, atol=20 * torch.finfo(dtype).eps)


def test_gradients_of_a_clipped_sample_stop():
    plan = build_plan(SamplerSpec("ddpm", 10, clip_sample=1.0), SCHEDULE)
    output = torch.full((1, 2), -50.0, requires_grad=True)
    plan.step(plan.initial(torch.zeros(1, 2)), output, 0, torch.zeros(1, 2)).x.sum().backward()
    assert output.grad.abs().max() == 0


def test_last_call_of_ancestral_sampling_adds_no_noise():
    sigmas = [call.sigma for call in build_plan(SamplerSpec("ddpm", 10, spacing="trailing"), SCHEDULE).calls]
    assert all(sigma > 0 for sigma in sigmas[:-1])
    assert sigmas[-1] == 0


def test_arguments_that_do_not_fit_the_call_are_refused():
    ancestral, multistep = (
        build_plan(SamplerSpec("ddpm", 10), SCHEDULE),
        build_plan(SamplerSpec("dpmpp", 10), SCHEDULE),
    )
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="call 0 of ddpm adds noise"):
        ancestral.step(ancestral.initial(x), x, 0)
    with pytest.raises(ValueError, match="call 3 needs a history of 1 outputs, this state has 0"):
        multistep.step(multistep.initial(x), x, 3)
    with pytest.raises(ValueError, match=r"output of shape \[1, 1\]: allowed is the state's, \[1, 2\]"):
        ancestral.step(ancestral.initial(x), x[:, :1], 0, x)
    for index in (-1, 10):
        with pytest.raises(IndexError, match=f"call {index}: allowed are 0 to 9"):
            multistep.step(multistep.initial(x), x, index)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "euler"}, "sampler kind 'euler': allowed are ddim, ddpm, dpmpp, pndm"),
        ({"spacing": "quad"}, "spacing 'quad': allowed are leading, trailing, linspace"),
        ({"prediction": "flow"}, "prediction 'flow': allowed are epsilon, v_prediction, sample"),
        ({"steps": 0}, "steps 0: allowed are 1 and more"),
        ({"eta": -0.1}, "eta -0.1: allowed are 0 to 1"),
        ({"eta": 1.5}, "eta 1.5: allowed are 0 to 1"),
        ({"eta": float("nan")}, "eta nan: allowed are 0 to 1"),
        ({"kind": "pndm", "eta": 0.5}, "eta 0.5 with pndm: allowed is 0"),
        ({"kind": "ddpm", "eta": 1.0}, "eta 1.0 with ddpm: allowed is 0"),
        ({"clip_sample": 0.0}, "clip_sample 0.0: allowed are positive numbers"),
        ({"kind": "dpmpp", "clip_sample": 1.0}, "clip_sample 1.0 with dpmpp: allowed is null"),
        ({"kind": "pndm", "clip_sample": 1.0}, "clip_sample 1.0 with pndm: allowed is null"),
        (
            {"kind": "pndm", "prediction": "sample"},
            "prediction 'sample' with pndm: allowed are epsilon, v_prediction",
        ),
        ({"version": 99}, "sampler version 99: allowed is 1"),
    ],
)
def test_impossible_specs_are_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        SamplerSpec(**{"kind": "ddim", "steps": 20} | arguments)
    assert "\n" not in str(error.value)


def test_more_steps_than_training_timesteps_are_refused():
    with pytest.raises(ValueError, match="steps 201: allowed are 1 to 200"):
        build_plan(SamplerSpec("ddim", 201), SCHEDULE)


def state_of(*values):
    """A state of as many samples as values, with one output in its history."""
    x = torch.tensor(values)[:, None]
    return State(x, x + 10, (x + 20,))


def test_states_of_samples_are_joined_and_chosen_again():
    joined = State.joined([state_of(0.0, 1.0), state_of(2.0)])
    assert all(torch.equal(a, b) for a, b in zip(tensors(joined), tensors(state_of(0.0, 1.0, 2.0)), strict=True))
    chosen = joined.chosen(torch.tensor([2, 0]), torch.device("meta"))
    assert all(tensor.device.type == "meta" for tensor in tensors(chosen))
    chosen = joined.chosen(torch.tensor([2, 0]), torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(tensors(chosen), tensors(state_of(2.0, 0.0)), strict=True))
    with pytest.raises(ValueError, match="zip"):
        State.joined([state_of(0.0), state_of(1.0)._replace(history=())])
