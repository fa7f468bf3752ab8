"""Plans that begin in the middle of a sampler's steps, as editing does."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from dmqbench.samplers.plan import build_plan
from dmqbench.samplers.schedule import NoiseSchedule
from dmqbench.samplers.spec import SamplerSpec
from dmqbench.samplers.timesteps import plan_timesteps

SCHEDULE = NoiseSchedule()
KINDS = ("ddim", "ddpm", "dpmpp", "pndm")


def plan_of(kind, steps=10, strength=1.0, schedule=SCHEDULE, **settings):
    return build_plan(SamplerSpec(kind, steps, strength=strength, spacing="trailing", **settings), schedule)


def network(x, timestep):
    return torch.tanh(0.9 * x + 0.2 * x.roll(1, -1)) + 0.3 * torch.sin(2 * x.roll(2, -1) + timestep / 150)


def start():
    return torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def followed(plan):
    state = plan.initial(start())
    generator = torch.Generator().manual_seed(1)
    for call, timestep in enumerate(plan.timesteps):
        noise = torch.randn(start().shape, generator=generator, dtype=torch.float64)
        state = plan.step(state, network(state.x, timestep), call, noise)
    return state.x


def close(a, b, tolerance):
    """Relative to the largest value: nothing here keeps the states small."""
    return (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_a_tail_is_the_whole_plan_of_a_schedule_that_ends_there(kind):
    """The first 300 betas of a linear schedule of 1000 are a linear schedule of 300, taken in strides of 100."""
    last = SCHEDULE.beta_start + (SCHEDULE.beta_end - SCHEDULE.beta_start) * 299 / 999
    short = plan_of(kind, steps=3, schedule=NoiseSchedule(300, SCHEDULE.beta_start, last))
    tail = plan_of(kind, strength=0.3)
    assert tail.timesteps == short.timesteps
    assert close(followed(tail), followed(short), 1e-4)
    assert not close(followed(tail), followed(plan_of(kind, strength=0.4)), 1e-2)


@pytest.mark.parametrize(
    ("kind", "scheduler_class", "settings"),
    [
        ("ddim", DDIMScheduler, {"clip_sample": False}),
        ("dpmpp", DPMSolverMultistepScheduler, {"final_sigmas_type": "zero", "lower_order_final": True}),
    ],
)
@pytest.mark.parametrize("strength", [0.2, 0.5, 1.0])
def test_a_tail_is_what_the_pipelines_for_editing_of_diffusers_do(kind, scheduler_class, settings, strength):
    scheduler = scheduler_class(
        beta_start=SCHEDULE.beta_start, beta_end=SCHEDULE.beta_end, timestep_spacing="trailing", **settings
    )
    scheduler.set_timesteps(10)
    first = 10 - round(10 * strength)
    timesteps = scheduler.timesteps[first:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    x = start()
    for timestep in timesteps:
        x = scheduler.step(network(x, timestep), timestep, x).prev_sample
    plan = plan_of(kind, strength=strength)
    assert plan.timesteps == tuple(timesteps.tolist())
    assert close(followed(plan), x, 1e-5)


def test_an_image_is_noised_as_diffusers_noises_it():
    clean, noise = start(), start().flip(0)
    for strength in (0.1, 0.5, 1.0):
        plan = plan_of("ddim", strength=strength)
        expected = DDPMScheduler().add_noise(clean, noise, torch.tensor([plan.timesteps[0]] * 2))
        assert torch.allclose(plan.noised(clean, noise), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_share_is_of_the_steps_and_at_least_one(kind):
    more = kind == "pndm"  # which calls the network once more, unless a single step is left
    assert [plan_of(kind, strength=strength).network_calls for strength in (1.0, 0.5, 0.25, 0.01)] == [
        10 + more, 5 + more, 2 + more, 1
    ]  # fmt: skip
    assert plan_of(kind, strength=1.0) == plan_of(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_history_begins_with_the_tail(kind):
    plan = plan_of(kind, strength=0.5)
    assert len(plan.calls[0].b) == 1


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.01])
def test_a_strength_out_of_range_is_refused(strength):
    with pytest.raises(ValueError, match=r"^strength"):
        plan_timesteps("ddim", 10, "leading", 0, 1000, strength=strength)
    with pytest.raises(ValueError, match=r"^strength"):
        SamplerSpec("ddim", 10, strength=strength)


def test_a_runge_kutta_start_cannot_be_left_out():
    with pytest.raises(ValueError, match="Runge-Kutta"):
        SamplerSpec("pndm", 10, skip_prk=False, strength=0.5)
    assert SamplerSpec("pndm", 10, skip_prk=False, strength=1.0)
