"""Closed forms: with the exact network of Gaussian data, samplers arrive where mathematics says."""

import itertools
import math

import pytest
import torch

from dmqbench.samplers.plan import build_plan
from dmqbench.samplers.schedule import NoiseSchedule
from dmqbench.samplers.spec import SamplerSpec

SCHEDULE = NoiseSchedule()
ALPHAS = SCHEDULE.alphas_cumprod()
VARIANCES = torch.tensor([0.25, 1.0, 4.0], dtype=torch.float64)
START = torch.tensor([0.8, -1.1, 0.6], dtype=torch.float64)


def exact_output(prediction, mean, variance):
    """Return the network that predicts x0 ~ N(mean, variance) best, expressed as ``prediction``."""

    def network(x, timestep):
        alpha = ALPHAS[timestep]
        marginal = alpha * variance + 1 - alpha
        noise = (1 - alpha).sqrt() * (x - alpha.sqrt() * mean) / marginal
        clean = (x - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        v = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        return {"epsilon": noise, "sample": clean, "v_prediction": v}[prediction]

    return network


def sample(spec, network, seed=0):
    plan = build_plan(spec, SCHEDULE)
    generator = torch.Generator().manual_seed(seed)
    state = plan.initial(START)
    for index, timestep in enumerate(plan.timesteps):
        noise = torch.randn(START.shape, generator=generator, dtype=torch.float64)
        state = plan.step(state, network(state.x, timestep), index, noise)
    return state.x


def flow_error(kind, steps, **settings):
    """Return the distance to the end of the probability flow, which keeps x / √(variance of x_t) constant."""
    spec = SamplerSpec(kind, steps, spacing="trailing", **settings)
    alpha = ALPHAS[999]
    expected = START * (VARIANCES / (alpha * VARIANCES + 1 - alpha)).sqrt()
    end = sample(spec, exact_output("epsilon", torch.zeros(3, dtype=torch.float64), VARIANCES))
    return (end - expected).abs().max().item()


def test_ddim_converges_at_first_order():
    errors = [flow_error("ddim", steps) for steps in (50, 100, 200)]
    assert errors[2] < 0.02
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("dpmpp", {}), ("pndm", {"skip_prk": True}), ("pndm", {"skip_prk": False})],
    ids=["dpmpp", "plms", "prk"],
)
def test_higher_order_samplers_beat_ddim(kind, settings):
    assert flow_error(kind, 100, **settings) < 0.25 * flow_error("ddim", 100)


@pytest.mark.parametrize(
    ("kind", "settings", "prediction"),
    [
        *itertools.product(["ddim", "ddpm", "dpmpp"], [{}], ["epsilon", "v_prediction", "sample"]),
        ("ddim", {"eta": 1.0}, "epsilon"),
        ("pndm", {}, "epsilon"),
        ("pndm", {"skip_prk": False}, "epsilon"),
    ],
)
def test_one_known_image_is_reached_exactly(kind, settings, prediction):
    """PNDM averages network outputs over steps, and only the predicted noise is the same at all of them."""
    image = torch.tensor([0.3, -0.7, 0.1], dtype=torch.float64)
    spec = SamplerSpec(kind, 10, prediction=prediction, **settings)
    end = sample(spec, exact_output(prediction, image, torch.zeros(3, dtype=torch.float64)))
    torch.testing.assert_close(end, image, rtol=0, atol=1e-10)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [("ddim", {"eta": 0.5}), ("ddim", {"clip_sample": 0.5}), ("ddpm", {"clip_sample": 0.5}), ("dpmpp", {})],
)
def test_what_the_network_predicts_does_not_matter(kind, settings, prediction):
    mean = torch.zeros(3, dtype=torch.float64)
    expected = sample(SamplerSpec(kind, 15, **settings), exact_output("epsilon", mean, VARIANCES))
    spec = SamplerSpec(kind, 15, prediction=prediction, **settings)
    end = sample(spec, exact_output(prediction, mean, VARIANCES))
    torch.testing.assert_close(end, expected, rtol=1e-9, atol=1e-9)


def test_ddim_with_full_eta_adds_the_noise_of_ddpm():
    ddim = build_plan(SamplerSpec("ddim", 50, eta=1.0), SCHEDULE)
    ddpm = build_plan(SamplerSpec("ddpm", 50), SCHEDULE)
    for left, right in zip(ddim.calls, ddpm.calls, strict=True):
        assert left.sigma == pytest.approx(right.sigma, rel=1e-12)
        assert left.a == pytest.approx(right.a, rel=1e-9)
        assert left.b[0] == pytest.approx(right.b[0], rel=1e-6)


def test_unit_variance_data_turns_by_the_angle_between_noise_levels():
    """With ᾱ = cos²θ and x0 ~ N(0, 1), one DDIM step multiplies x by cos(θ_t - θ_s)."""
    plan = build_plan(SamplerSpec("ddim", 10), SCHEDULE)
    angle = [math.acos(math.sqrt(ALPHAS[timestep])) for timestep in plan.timesteps] + [0.0]
    for index, call in enumerate(plan.calls):
        exact = math.sqrt(1 - ALPHAS[call.timestep])
        assert call.carry + call.gain * exact == pytest.approx(math.cos(angle[index] - angle[index + 1]), abs=1e-12)
