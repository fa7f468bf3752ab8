"""Whole trajectories equal diffusers' schedulers, driven by the same nonlinear network in float64.

The schedulers compute coefficients in float32. Where their table can be replaced by its float64 copy,
formulas are compared without that rounding (SHARP); as they come, only to the accuracy of float32 (FLOAT32).
"""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, PNDMScheduler

from dmqbench.samplers.plan import build_plan
from dmqbench.samplers.schedule import NoiseSchedule
from dmqbench.samplers.spec import SamplerSpec

SHARP, FLOAT32 = 1e-9, 3e-6
LINEAR = NoiseSchedule()
STABLE = NoiseSchedule(1000, 0.00085, 0.012, "scaled_linear")
ZERO_SNR = NoiseSchedule(1000, 0.00085, 0.012, "scaled_linear", rescale_betas_zero_snr=True)
COSINE = NoiseSchedule(1000, beta_schedule="squaredcos_cap_v2")
STEP_COUNTS = (5, 20, 30)
SPACINGS = ("leading", "trailing", "linspace")
PREDICTIONS = ("epsilon", "v_prediction", "sample")


def network(x, timestep):
    """A smooth function of state and timestep that mixes neighbours."""
    return torch.tanh(0.9 * x + 0.2 * x.roll(1, -1)) + 0.3 * torch.sin(2 * x.roll(2, -1) + timestep / 150)


def start(seed=0):
    return torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step_noises(plan):
    """One noise tensor per call that adds noise, drawn in the order of the calls."""
    generator = torch.Generator().manual_seed(1)
    shape = start().shape
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in plan.calls]


def run_plan(plan):
    states, state = [], plan.initial(start())
    for index, noise in enumerate(step_noises(plan)):
        state = plan.step(state, network(state.x, plan.timesteps[index]), index, noise)
        states.append(state.x)
    return torch.stack(states)


def run_scheduler(scheduler, steps, settings_of_call=lambda index: {}):
    scheduler.set_timesteps(steps)
    states, x = [], start()
    for index, timestep in enumerate(scheduler.timesteps.tolist()):
        x = scheduler.step(network(x, timestep), timestep, x, **settings_of_call(index)).prev_sample
        states.append(x)
    return torch.stack(states)


def scheduler_like(scheduler_class, spec, schedule, **settings):
    scheduler = scheduler_class(
        num_train_timesteps=schedule.num_train_timesteps,
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        beta_schedule=schedule.beta_schedule,
        prediction_type=spec.prediction,
        timestep_spacing=spec.spacing,
        steps_offset=spec.steps_offset,
        **({"rescale_betas_zero_snr": True} if schedule.rescale_betas_zero_snr else {}),
        **settings,
    )
    if not isinstance(scheduler, DPMSolverMultistepScheduler):
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    return scheduler


def clipping(spec):
    return {"clip_sample": spec.clip_sample is not None, "clip_sample_range": spec.clip_sample or 1.0}


def assert_same(actual, expected, tolerance):
    """Compare relative to the largest value of each state, whose size changes along the trajectory."""
    size = expected.abs().amax(dim=(1, 2, 3), keepdim=True)
    assert ((actual - expected).abs() / size).max() < tolerance


def assert_ddim(spec, schedule, tolerance=SHARP, exact_table=True):
    plan = build_plan(spec, schedule)
    noises = step_noises(plan)
    scheduler = scheduler_like(DDIMScheduler, spec, schedule, set_alpha_to_one=spec.final_alpha_one, **clipping(spec))
    if exact_table:
        scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    else:
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.float()
    expected = run_scheduler(
        scheduler,
        spec.steps,
        lambda index: {"eta": spec.eta, "variance_noise": noises[index] if spec.eta else None},
    )
    assert_same(run_plan(plan), expected, tolerance)


@pytest.mark.parametrize("steps", STEP_COUNTS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("clip", [None, 0.7])
def test_ddim(steps, spacing, prediction, eta, clip):
    spec = SamplerSpec("ddim", steps, eta=eta, spacing=spacing, clip_sample=clip, prediction=prediction)
    assert_ddim(spec, LINEAR)


@pytest.mark.parametrize("schedule", [STABLE, COSINE], ids=["stable", "cosine"])
@pytest.mark.parametrize("final_alpha_one", [True, False])
def test_ddim_with_offset_and_other_end(schedule, final_alpha_one):
    spec = SamplerSpec("ddim", 20, eta=0.5, steps_offset=1, final_alpha_one=final_alpha_one)
    assert_ddim(spec, schedule)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("clip", [None, 0.7])
def test_ddim_of_diffusers_as_it_comes(eta, clip):
    assert_ddim(SamplerSpec("ddim", 20, eta=eta, clip_sample=clip), LINEAR, FLOAT32, exact_table=False)


def assert_ddpm(spec, schedule, tolerance=SHARP, exact_table=True):
    plan = build_plan(spec, schedule)
    scheduler = scheduler_like(DDPMScheduler, spec, schedule, variance_type="fixed_small", **clipping(spec))
    if not exact_table:
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.float()
    generator = torch.Generator().manual_seed(1)
    expected = run_scheduler(scheduler, spec.steps, lambda index: {"generator": generator})
    assert_same(run_plan(plan), expected, tolerance)


@pytest.mark.parametrize("steps", STEP_COUNTS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("clip", [None, 0.7])
def test_ddpm(steps, spacing, prediction, clip):
    assert_ddpm(SamplerSpec("ddpm", steps, spacing=spacing, clip_sample=clip, prediction=prediction), LINEAR)


def test_ddpm_of_diffusers_as_it_comes():
    assert_ddpm(SamplerSpec("ddpm", 20, clip_sample=1.0), LINEAR, FLOAT32, exact_table=False)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 14, 15, 16, 20, 30])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_dpmpp(steps, spacing, prediction):
    spec = SamplerSpec("dpmpp", steps, spacing=spacing, prediction=prediction)
    scheduler = scheduler_like(DPMSolverMultistepScheduler, spec, STABLE)
    assert_same(run_plan(build_plan(spec, STABLE)), run_scheduler(scheduler, steps), FLOAT32)


@pytest.mark.parametrize(
    ("steps", "skip_prk"),
    [*((n, True) for n in (1, 2, 3, 4, 5, 20, 30)), *((n, False) for n in (4, 5, 20, 30))],
)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("final_alpha_one", [True, False])
def test_pndm(steps, spacing, prediction, skip_prk, final_alpha_one):
    spec = SamplerSpec(
        "pndm",
        steps,
        spacing=spacing,
        steps_offset=1,
        prediction=prediction,
        skip_prk=skip_prk,
        final_alpha_one=final_alpha_one,
    )
    scheduler = scheduler_like(PNDMScheduler, spec, STABLE, skip_prk_steps=skip_prk, set_alpha_to_one=final_alpha_one)
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    assert_same(run_plan(build_plan(spec, STABLE)), run_scheduler(scheduler, steps), SHARP)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7, 20, 25])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_a_schedule_that_ends_in_noise_alone(steps, spacing, prediction):
    """Zero terminal SNR: with "trailing" spacing the first call sees no signal (Lin et al. 2023)."""
    shared = {"spacing": spacing, "prediction": prediction}
    assert_ddim(SamplerSpec("ddim", steps, eta=0.5, **shared), ZERO_SNR)
    assert_ddim(SamplerSpec("ddim", steps, clip_sample=0.7, **shared), ZERO_SNR)
    assert_ddpm(SamplerSpec("ddpm", steps, **shared), ZERO_SNR)
    spec = SamplerSpec("dpmpp", steps, **shared)
    expected = run_scheduler(scheduler_like(DPMSolverMultistepScheduler, spec, ZERO_SNR), steps)
    assert_same(run_plan(build_plan(spec, ZERO_SNR)), expected, FLOAT32)


@pytest.mark.parametrize(("kind", "prediction"), [("ddim", "epsilon"), ("dpmpp", "epsilon"), ("pndm", "v_prediction")])
def test_what_noise_alone_leaves_undefined_is_refused(kind, prediction):
    with pytest.raises(ValueError, match=r"prediction 'epsilon' with rescale_betas|sampler kind 'pndm'"):
        build_plan(SamplerSpec(kind, 5, spacing="trailing", prediction=prediction), ZERO_SNR)
