"""Timesteps equal diffusers', decrease, are counted, and need no torch."""

import subprocess
import sys
from itertools import pairwise

import pytest
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, PNDMScheduler

from dmqbench.samplers.timesteps import SPACINGS, SettingError, plan_timesteps

SCHEDULERS = {
    "ddim": (DDIMScheduler, {}),
    "ddpm": (DDPMScheduler, {}),
    "dpmpp": (DPMSolverMultistepScheduler, {}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
    "pndm-prk": (PNDMScheduler, {"skip_prk_steps": False}),
}
STEPS = (*range(4, 60), 62, 77, 100, 128, 150, 200, 250, 333, 400, 499, 500, 501, 600, 777, 998, 999)
SURPLUS = -1


def planned(name, steps, spacing, offset=0, train=1000):
    return plan_timesteps(name.removesuffix("-prk"), steps, spacing, offset, train, skip_prk=name == "pndm")


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_equal_to_diffusers(name, spacing):
    scheduler_class, settings = SCHEDULERS[name]
    scheduler = scheduler_class(timestep_spacing=spacing, **settings)
    for steps in STEPS:
        scheduler.set_timesteps(steps)
        expected = tuple(timestep for timestep in scheduler.timesteps.tolist() if timestep != SURPLUS)
        assert planned(name, steps, spacing) == expected, steps


@pytest.mark.parametrize("name", SCHEDULERS)
def test_offset_and_other_training_lengths_equal_diffusers(name):
    scheduler_class, settings = SCHEDULERS[name]
    scheduler = scheduler_class(num_train_timesteps=400, steps_offset=1, **settings | {"timestep_spacing": "leading"})
    for steps in (4, 7, 20, 50):
        scheduler.set_timesteps(steps)
        assert planned(name, steps, "leading", 1, 400) == tuple(scheduler.timesteps.tolist())


def test_surplus_trailing_timestep_of_diffusers_is_dropped():
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(61)
    assert scheduler.timesteps.tolist() == [*plan_timesteps("ddim", 61, "trailing", 0, 1000), SURPLUS]


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_order_range_and_count_for_every_number_of_steps(name, spacing):
    surplus = {"pndm": 1, "pndm-prk": 9}.get(name, 0)
    for steps in range(4, 1000):
        timesteps = planned(name, steps, spacing)
        assert len(timesteps) == steps + surplus
        assert timesteps[0] <= 999
        assert timesteps[-1] >= 0
        if name.startswith("pndm"):
            assert all(earlier >= later for earlier, later in pairwise(timesteps)), steps
        else:
            assert all(earlier > later for earlier, later in pairwise(timesteps)), steps


def test_twenty_steps_of_pndm():
    assert len(plan_timesteps("pndm", 20, "leading", 0, 1000, skip_prk=True)) == 21
    assert len(plan_timesteps("pndm", 20, "leading", 0, 1000, skip_prk=False)) == 29


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ddmi", 20, "leading", 0, 1000), "sampler kind 'ddmi': allowed are ddim, ddpm, dpmpp, pndm"),
        (("ddim", 20, "even", 0, 1000), "spacing 'even': allowed are leading, trailing, linspace"),
        (("ddim", 0, "leading", 0, 1000), "steps 0: allowed are 1 to 1000"),
        (("pndm", 1001, "leading", 0, 1000), "steps 1001: allowed are 1 to 1000"),
        (("ddim", 20, "leading", -1, 1000), "steps_offset -1: allowed are 0 and more"),
        (
            ("ddim", 1000, "leading", 1, 1000),
            "steps_offset 1 with 1000 steps: .* would be 1000, allowed are 0 to 999",
        ),
        (
            ("dpmpp", 1000, "linspace", 0, 1000),
            "steps 1000 with dpmpp .* repeat, allowed are fewer than 1000",
        ),
        (("dpmpp", 1000, "leading", 0, 1000), "steps 1000 with dpmpp .* repeat, allowed are fewer than 1000"),
        (("pndm", 3, "leading", 0, 1000, False), "steps 3 without skip_prk: allowed are 4 and more"),
    ],
)
def test_impossible_arguments_are_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        plan_timesteps(*arguments)
    assert "\n" not in str(error.value)


def test_needs_neither_torch_nor_numpy():
    program = (
        "import sys, dmqbench.samplers.timesteps, dmqbench.samplers.spec;"
        "print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_a_wrong_setting_names_its_field():
    error = SettingError("steps", "0: allowed are 1 and more")
    assert (error.field, str(error)) == ("steps", "steps 0: allowed are 1 and more")
