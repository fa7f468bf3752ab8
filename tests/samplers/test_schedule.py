"""The noise schedule has diffusers' values, and the values of its definition."""

import math

import pytest
import torch
from diffusers import DDIMScheduler

from dmqbench.samplers.schedule import NoiseSchedule, read_schedule, stated
from dmqbench.samplers.scheduler_config import BETA_SCHEDULES

TRAINED = {
    "ddpm": NoiseSchedule(1000, 0.0001, 0.02, "linear"),
    "latent": NoiseSchedule(1000, 0.0015, 0.0195, "scaled_linear"),
    "stable": NoiseSchedule(1000, 0.00085, 0.012, "scaled_linear"),
    "cosine": NoiseSchedule(1000, 0.0001, 0.02, "squaredcos_cap_v2"),
    "short": NoiseSchedule(50, 0.001, 0.3, "linear"),
}
RESCALED = {
    "stable": NoiseSchedule(1000, 0.00085, 0.012, "scaled_linear", rescale_betas_zero_snr=True),
    "cosine": NoiseSchedule(1000, beta_schedule="squaredcos_cap_v2", rescale_betas_zero_snr=True),
    "short": NoiseSchedule(50, 0.001, 0.3, rescale_betas_zero_snr=True),
}


@pytest.mark.parametrize(
    "schedule", [*TRAINED.values(), *RESCALED.values()], ids=[*TRAINED, *map("zero {}".format, RESCALED)]
)
def test_table_is_exactly_diffusers(schedule):
    reference = DDIMScheduler(
        num_train_timesteps=schedule.num_train_timesteps,
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        beta_schedule=schedule.beta_schedule,
        rescale_betas_zero_snr=schedule.rescale_betas_zero_snr,
    )
    table = schedule.alphas_cumprod()
    assert table.dtype == torch.float64
    assert torch.equal(table, reference.alphas_cumprod.double())


def test_linear_table_follows_its_definition():
    table, expected = TRAINED["ddpm"].alphas_cumprod().tolist(), 1.0
    for timestep in range(1000):
        expected *= 1 - (0.0001 + (0.02 - 0.0001) * timestep / 999)
        assert table[timestep] == pytest.approx(expected, rel=5e-6)


def test_cosine_table_follows_its_definition():
    table = TRAINED["cosine"].alphas_cumprod().tolist()
    at_start = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    for timestep in range(0, 990, 37):
        level = math.cos(((timestep + 1) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2
        assert table[timestep] == pytest.approx(level / at_start, rel=1e-5)


@pytest.mark.parametrize("name", TRAINED)
def test_table_decreases_between_one_and_zero(name):
    table = TRAINED[name].alphas_cumprod()
    assert table[0] < 1
    assert table[-1] > 0
    assert (table.diff() < 0).all()


def test_read_from_a_scheduler_configuration():
    config = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").config
    assert NoiseSchedule.from_scheduler_config(config) == TRAINED["stable"]
    assert NoiseSchedule.from_scheduler_config({"_class_name": "DDPMScheduler"}) == TRAINED["ddpm"]


@pytest.mark.parametrize("config", [{"trained_betas": [0.1, 0.2]}, {"use_flow_sigmas": True}])
def test_other_schedules_are_refused(config):
    with pytest.raises(ValueError, match=f"{next(iter(config))} is .*: allowed .* linear, scaled_linear"):
        NoiseSchedule.from_scheduler_config(config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta_schedule": "sigmoid"}, f"beta_schedule 'sigmoid': allowed are {', '.join(BETA_SCHEDULES)}"),
        ({"num_train_timesteps": 0}, "num_train_timesteps 0: allowed are 1 and more"),
        ({"beta_start": 0.0}, "beta_start 0.0, .*: allowed are 0 < beta_start"),
        ({"beta_start": 0.3, "beta_end": 0.2}, "beta_start 0.3, beta_end 0.2: allowed are"),
        ({"beta_end": 1.0}, "beta_end 1.0: allowed are"),
    ],
)
def test_impossible_values_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        NoiseSchedule(**arguments)


@pytest.mark.parametrize("betas", [(1e-9, 1e-9), (0.1, 0.99)])
def test_betas_that_leave_nothing_to_predict_are_refused(betas):
    with pytest.raises(ValueError, match="allowed are those that keep"):
        NoiseSchedule(1000, *betas).alphas_cumprod()


def test_one_training_timestep_is_allowed():
    assert len(NoiseSchedule(1).alphas_cumprod()) == 1


def test_every_key_of_a_configuration_is_read():
    config = {"num_train_timesteps": 7, "beta_start": 0.1, "beta_end": 0.2, "beta_schedule": "scaled_linear"}
    config["rescale_betas_zero_snr"] = True
    assert vars(NoiseSchedule.from_scheduler_config(config)) == config


@pytest.mark.parametrize("name", RESCALED)
def test_a_rescaled_schedule_starts_where_it_did_and_ends_in_noise(name):
    """√ᾱ is moved linearly, which keeps its first value and takes its last to 0 (Lin et al. 2023, algorithm 1)."""
    rescaled = RESCALED[name]
    before = TRAINED[name].alphas_cumprod().sqrt()
    roots = rescaled.alphas_cumprod().sqrt()
    assert roots[-1] == 0
    torch.testing.assert_close(roots, (before - before[-1]) * before[0] / (before[0] - before[-1]), rtol=0, atol=1e-5)


def test_what_is_stated_is_read_and_says_nothing_new_of_schedules_as_before():
    assert [*stated(TRAINED["ddpm"])] == ["num_train_timesteps", "beta_start", "beta_end", "beta_schedule"]
    for schedule in (*TRAINED.values(), *RESCALED.values()):
        assert read_schedule(stated(schedule)) == schedule
