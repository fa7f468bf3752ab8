"""Samplers over noise levels: σ, timesteps and whole trajectories equal diffusers' schedulers; closed forms.

The schedulers compute in float32, so that trajectories are compared to its accuracy. Timesteps of flow matching are
the same bits, because ids and calibrated ranges are found by them.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from samplers.test_parity import FLOAT32, SHARP, assert_same, network, start, step_noises

from dmqbench.samplers.plan import build_plan
from dmqbench.samplers.processes import Consistency, Edm, Flow, process_timesteps, stated
from dmqbench.samplers.schedule import NoiseSchedule, read_schedule
from dmqbench.samplers.scheduler_config import read_process
from dmqbench.samplers.spec import SamplerSpec

STEPS = (1, 2, 3, 5, 7, 20, 21, 33)
OF_PROCESS = {
    Flow: FlowMatchEulerDiscreteScheduler,
    Edm: EDMEulerScheduler,
    Consistency: CMStochasticIterativeScheduler,
}
DYNAMIC = {"use_dynamic_shifting": True}


def calculate_shift(tokens, base=256, most=4096, base_shift=0.5, max_shift=1.15):
    """As in the pipelines of SD3 and FLUX, whose import takes long."""
    slope = (max_shift - base_shift) / (most - base)
    return tokens * slope + (base_shift - slope * base)


def scheduler_of(process, **settings):
    config = {key: value for key, value in stated(process).items() if key != "_class_name"}
    return OF_PROCESS[type(process)](**config, **settings)


def followed(plan):
    """States after every call of a network that sees scaled states, from noise."""
    states, state = [], plan.initial(plan.from_noise(start()))
    for index, noise in enumerate(step_noises(plan)):
        output = network(plan.input_scales[index] * state.x, plan.timesteps[index])
        state = plan.step(state, output, index, noise)
        states.append(state.x)
    return torch.stack(states)


def driven(scheduler, plan, **settings):
    """The same by a scheduler of diffusers whose steps are set."""
    assert scheduler.timesteps.tolist() == pytest.approx(plan.timesteps, rel=1e-6, abs=1e-6)
    x = start() * getattr(scheduler, "init_noise_sigma", 1.0)
    states = []
    for index, timestep in enumerate(scheduler.timesteps):
        seen = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(seen, plan.timesteps[index]), timestep, x, **settings).prev_sample
        states.append(x)
    return torch.stack(states)


def grid(spacing, steps):
    """How a scheduler is asked for its own grid, or given the one of FLUX' pipeline."""
    return {"num_inference_steps": steps} if spacing == "linspace" else {"sigmas": np.linspace(1.0, 1 / steps, steps)}


# ---- flow matching


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
@pytest.mark.parametrize("train", [1000, 400, 7])
def test_timesteps_of_flows_are_the_same_bits(spacing, train):
    for shift in (1.0, 3.0, 2.05, 0.5, 6.7):
        scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=train, shift=shift)
        for steps in (*STEPS, 28, 49, 50, 1000):
            scheduler.set_timesteps(**grid(spacing, steps))
            found = process_timesteps(SamplerSpec("flow", steps, spacing=spacing), Flow(train, shift))
            assert found == tuple(scheduler.timesteps.tolist()), (shift, steps)


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_a_shift_that_grows_with_the_image_is_that_of_the_pipelines(spacing, kind):
    process = Flow(use_dynamic_shifting=True, time_shift_type=kind)
    scheduler = scheduler_of(process)
    for tokens in (64, 256, 1024, 4096):
        mu = calculate_shift(tokens)
        for steps in STEPS:
            scheduler.set_timesteps(**grid(spacing, steps), mu=mu)
            spec = SamplerSpec("flow", steps, spacing=spacing, image_tokens=tokens)
            assert process_timesteps(spec, process) == tuple(scheduler.timesteps.tolist()), (tokens, steps)


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
@pytest.mark.parametrize(("process", "tokens"), [(Flow(), None), (Flow(shift=3.0), None), (Flow(**DYNAMIC), 1024)])
@pytest.mark.parametrize("steps", STEPS)
def test_flow(spacing, process, tokens, steps):
    plan = build_plan(SamplerSpec("flow", steps, spacing=spacing, image_tokens=tokens), process)
    scheduler = scheduler_of(process)
    scheduler.set_timesteps(**grid(spacing, steps), **({"mu": calculate_shift(tokens)} if tokens else {}))
    assert_same(followed(plan), driven(scheduler, plan), FLOAT32)


# ---- EDM


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("process", [Edm(), Edm(sigma_schedule="exponential"), Edm(1000, 0.01, 50.0, 1.0, 5.0)])
def test_edm_by_eulers_method(steps, prediction, process):
    if steps == 1 and process.sigma_schedule == "exponential":
        return  # diffusers would take σ_min for the only level; see below
    plan = build_plan(SamplerSpec("edm", steps, prediction=prediction), process)
    scheduler = scheduler_of(process, prediction_type=prediction)
    scheduler.set_timesteps(steps)
    found, expected = followed(plan), driven(scheduler, plan)
    largest = max(plan.noise_scale * start().abs().max(), expected.abs().max())  # is rounded first, and then taken away
    assert (found - expected).abs().max() < FLOAT32 * largest


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_by_heuns_method(steps, prediction):
    """Diffusers has the method and the preconditioning apart: the one steps along what the other makes of outputs."""
    process = Edm()
    plan = build_plan(SamplerSpec("edm", steps, prediction=prediction, solver="heun"), process)
    assert plan.network_calls == 2 * steps - 1
    preconditioned, stepping = scheduler_of(process, prediction_type=prediction), HeunDiscreteScheduler()
    preconditioned.set_timesteps(steps)
    stepping.register_to_config(prediction_type="sample")
    stepping.set_timesteps(steps)
    levels = preconditioned.sigmas.double()
    stepping.sigmas = torch.cat([levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]])
    of_calls = [levels[0], *(level for level in levels[1:-1] for _ in range(2))]
    x, states = start() * preconditioned.init_noise_sigma, []
    for index, sigma in enumerate(of_calls):
        output = network(preconditioned.precondition_inputs(x, sigma), plan.timesteps[index])
        denoised = preconditioned.precondition_outputs(x, output, sigma)
        x = stepping.step(denoised, stepping.timesteps[index], x).prev_sample
        states.append(x)
    assert_same(followed(plan), torch.stack(states), SHARP)


# ---- consistency models


@pytest.mark.parametrize("steps", (*STEPS, 40))
@pytest.mark.parametrize("clip", [None, 1.0])
def test_consistency(steps, clip):
    process = Consistency(s_noise=1.003)
    plan = build_plan(SamplerSpec("consistency", steps, clip_sample=clip), process)
    scheduler = scheduler_of(process, clip_denoised=clip is not None)
    scheduler.set_timesteps(steps)
    expected = driven(scheduler, plan, generator=torch.Generator().manual_seed(1))
    assert_same(followed(plan), expected, FLOAT32)
    assert [call.sigma > 0 for call in plan.calls] == [True] * (steps - 1) + [False]


# ---- closed forms

VARIANCES = torch.tensor([0.09, 1.0, 4.0], dtype=torch.float64)


def exact_output(process, sigma, x):
    """What a network predicts best of x0 ~ N(0, λ), from the conditional means; ``x`` is the state, not scaled."""
    if isinstance(process, Flow):
        covariance = sigma - (1 - sigma) * VARIANCES  # of ε - x0 with x
        return covariance * x / ((1 - sigma) ** 2 * VARIANCES + sigma**2)
    total, data = sigma**2 + process.sigma_data**2, process.sigma_data
    denoised = VARIANCES * x / (VARIANCES + sigma**2)
    return (denoised - data**2 / total * x) * math.sqrt(total) / (sigma * data)


def flow_error(process, steps, **settings):
    """Distance to the end of the probability flow, which keeps x / √(variance of x_t) constant."""
    spec = SamplerSpec(process.samplers[0], steps, **settings)
    plan = build_plan(spec, process)
    first = torch.tensor([0.8, -1.1, 0.6], dtype=torch.float64)
    x = plan.levels[0].signal * VARIANCES.sqrt() * first + plan.levels[0].noise * first
    marginal = plan.levels[0].signal ** 2 * VARIANCES + plan.levels[0].noise ** 2
    state = plan.initial(x)
    for call, level in enumerate(plan.levels[:-1]):
        sigma = level.noise / (1 if isinstance(process, Flow) else level.signal)
        state = plan.step(state, exact_output(process, sigma, state.x), call)
    return (state.x - x * (VARIANCES / marginal).sqrt()).abs().max().item()


@pytest.mark.parametrize(
    ("process", "settings", "order"),
    [
        (Flow(shift=2.0), {"spacing": "trailing"}, 1),
        (Edm(sigma_max=20.0), {}, 1),
        (Edm(sigma_max=20.0), {"solver": "heun"}, 2),
    ],
)
def test_samplers_converge_at_their_order(process, settings, order):
    errors = [flow_error(process, steps, **settings) for steps in (40, 80, 160)]
    assert errors[2] < 0.03
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.2)


def test_an_exact_consistency_function_arrives_in_one_call():
    """The flow of x0 ~ N(0, λ) to σ_min is linear; F is what the preconditioning leaves of it to the network."""
    process = Consistency()
    plan = build_plan(SamplerSpec("consistency", 1), process)
    call, x = plan.calls[0], plan.from_noise(VARIANCES)
    to_end = ((VARIANCES + process.sigma_min**2) / (VARIANCES + process.sigma_max**2)).sqrt() * x
    above = process.sigma_max - process.sigma_min
    skip = 0.25 / (above**2 + 0.25)
    output = (to_end - skip * x) * math.sqrt(process.sigma_max**2 + 0.25) / (0.5 * above)
    torch.testing.assert_close(plan.step(plan.initial(x), output, 0).x, to_end)
    assert call.input_scale == pytest.approx(1 / math.sqrt(80**2 + 0.25))


@pytest.mark.parametrize(
    ("kind", "process"), [("flow", Flow(shift=3.0)), ("edm", Edm()), ("consistency", Consistency())]
)
@pytest.mark.parametrize("strength", [1.0, 0.5, 0.2])
def test_an_edit_starts_from_the_image_noised_to_the_first_step_taken(kind, process, strength):
    """As ``scale_noise`` and ``add_noise`` of diffusers do it, which the pipelines for editing call."""
    [kind] = process.samplers
    spacing = "trailing" if kind == "flow" else "leading"
    plan, whole = (
        build_plan(SamplerSpec(kind, 5, strength=share, spacing=spacing), process) for share in (strength, 1.0)
    )
    assert plan.timesteps == whole.timesteps[5 - round(5 * strength) :]
    scheduler = scheduler_of(process)
    scheduler.set_timesteps(**(grid("trailing", 5) if kind == "flow" else {"num_inference_steps": 5}))
    clean, noise, at = start(), start().flip(0), scheduler.timesteps[5 - round(5 * strength)].expand(2)
    expected = scheduler.scale_noise(clean, at, noise) if kind == "flow" else scheduler.add_noise(clean, noise, at)
    torch.testing.assert_close(plan.noised(clean, noise), expected, rtol=1e-6, atol=1e-6)


# ---- what a file states


@pytest.mark.parametrize("process", [Flow(shift=3.0), Flow(**DYNAMIC, max_shift=1.2), Edm(rho=5.0), Consistency(20)])
def test_a_process_is_read_from_what_its_scheduler_saves(process):
    name = OF_PROCESS[type(process)].__name__
    assert read_schedule({"_class_name": name, **scheduler_of(process).config}) == process
    assert read_schedule(stated(process)) == process
    assert read_process({"_class_name": "DDIMScheduler"}) is None


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        *(("FlowMatchEulerDiscrete", f"use_{kind}_sigmas", True) for kind in ("karras", "beta", "exponential")),
        ("FlowMatchEulerDiscrete", "shift_terminal", 0.1),
        ("FlowMatchEulerDiscrete", "stochastic_sampling", True),
        ("FlowMatchEulerDiscrete", "invert_sigmas", True),
        ("FlowMatchEulerDiscrete", "prediction_type", "v_prediction"),
        ("FlowMatchEulerDiscrete", "shift", 0.0),
        ("FlowMatchEulerDiscrete", "max_image_seq_len", 256),
        ("EDMEuler", "prediction_type", "sample"),
        ("EDMEuler", "sigma_max", 0.001),
        ("CMStochasticIterative", "num_train_timesteps", 1),
        ("CMStochasticIterative", "sigma_data", 0.0),
    ],
)
def test_what_would_change_a_process_is_refused(name, key, value):
    with pytest.raises(ValueError, match=f"^{key} .*allowed (is|are) "):
        read_process({"_class_name": f"{name}Scheduler", key: value})


@pytest.mark.parametrize(
    ("spec", "schedule", "message"),
    [
        (SamplerSpec("ddim", 5), Flow(), "sampler kind 'ddim': allowed are flow"),
        (SamplerSpec("edm", 5), Consistency(), "sampler kind 'edm': allowed are consistency"),
        (SamplerSpec("flow", 5, spacing="linspace"), NoiseSchedule(), "sampler kind 'flow': allowed are ddim, ddpm, "),
        (SamplerSpec("edm", 1), Edm(sigma_schedule="exponential"), "steps 1 over exponential"),
        (SamplerSpec("consistency", 41), Consistency(), "steps 41: allowed are 1 to 40"),
        (SamplerSpec("flow", 5, spacing="trailing"), Flow(**DYNAMIC), "image_tokens must be given"),
    ],
)
def test_what_does_not_fit_is_refused(spec, schedule, message):
    with pytest.raises(ValueError, match=message):
        build_plan(spec, schedule)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "flow", "spacing": "leading"}, "spacing 'leading' with flow: allowed are linspace, trailing"),
        ({"kind": "flow", "prediction": "v_prediction"}, "prediction 'v_prediction' with flow: allowed are epsilon"),
        ({"kind": "edm", "prediction": "sample"}, "prediction 'sample' with edm: allowed are epsilon, v_prediction"),
        ({"kind": "ddim", "solver": "heun"}, "solver 'heun' with ddim: allowed is euler"),
        ({"kind": "edm", "solver": "rk4"}, "solver 'rk4': allowed are euler, heun"),
        ({"kind": "edm", "clip_sample": 1.0}, "clip_sample 1.0 with edm: allowed is null"),
        ({"kind": "edm", "image_tokens": 4}, "image_tokens 4 with edm: allowed are null"),
        ({"kind": "flow", "image_tokens": 0}, "image_tokens 0 with flow: allowed are null, or 1"),
        ({"kind": "flow", "eta": 0.5}, "eta 0.5 with flow: allowed is 0"),
    ],
)
def test_settings_of_other_samplers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SamplerSpec(**{"steps": 5, "spacing": "trailing"} | arguments)
