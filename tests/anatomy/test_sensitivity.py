"""Sensitivity to an error at one call: closed forms with a linear network, brute force with a real one."""

import hashlib
import itertools
import json
import math

import pytest
import torch
from torch import nn
from workbench import SCHEDULE, adapter_of, sampler, workbench

from dmqbench.anatomy.sensitivity import sensitivity
from dmqbench.data.bank import Trajectories
from dmqbench.data.images import to_uint8
from dmqbench.data.noise import initial_noise, step_noise
from dmqbench.models.adapter import Adapter
from dmqbench.models.conditioning import PixelDecoder, Unconditional
from dmqbench.models.rollout import Denoising
from dmqbench.quant.layers import quant_layers
from dmqbench.store.files import json_text

SHAPE = (1, 2, 3)
VARIANCES = torch.tensor([0.25, 0.5, 1.0, 1.5, 2.0, 4.0], dtype=torch.float64).view(SHAPE)
ALPHAS = SCHEDULE.alphas_cumprod()


def slope(timestep: int) -> torch.Tensor:
    """∂ε/∂x of the best predictor for x0 ~ N(0, VARIANCES): √(1 − ᾱ) / (ᾱ v + 1 − ᾱ)."""
    alpha = ALPHAS[timestep]
    return (1 - alpha).sqrt() / (alpha * VARIANCES + 1 - alpha)


class Gaussian(nn.Module):
    """The best noise predictor for Gaussian data; linear in the state."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x, timestep, return_dict):
        return (torch.stack([slope(int(time)) * one for time, one in zip(timestep, x, strict=True)]).to(x),)


def gaussian() -> Adapter:
    return Adapter(
        Gaussian(),
        sample_shape=SHAPE,
        schedule=SCHEDULE,
        prediction="epsilon",
        conditioner=Unconditional(),
        decoder=PixelDecoder(),
    )


PLANS = {
    "ddim": sampler("ddim", 6),
    "ddim, eta 1": sampler("ddim", 6, eta=1.0),
    "ddim, clipped": sampler("ddim", 6, clip_sample=0.5),
    "ddpm": sampler("ddpm", 6),
    "dpmpp": sampler("dpmpp", 6),
    "pndm": sampler("pndm", 6),
    "pndm with Runge-Kutta": sampler("pndm", 6, skip_prk=False),
}


def recorded(adapter: Adapter, plan, count: int = 5, guidance: float = 1.0) -> Trajectories:
    return Denoising(adapter, plan, guidance).follow(stream="val", seed=3, indices=range(count))


def precise(plan, count: int = 5) -> Trajectories:
    """Trajectories of the Gaussian network in float64, so that closed forms hold to many digits."""
    indices, network = range(count), Gaussian()
    state = plan.initial(initial_noise("val", 3, indices, SHAPE).double())
    states, outputs = [state.x], []
    for call, timestep in enumerate(plan.timesteps):
        [output] = network(state.x, torch.full((count,), timestep), return_dict=False)
        state = plan.step(state, output, call, step_noise("val", 3, indices, call, SHAPE).double())
        states.append(state.x)
        outputs.append(output)
    return Trajectories(torch.stack(states, 1), torch.stack(outputs, 1), {}, plan.timesteps)


@pytest.mark.parametrize("kind", ["ddim", "ddim, eta 1", "ddpm"])
def test_an_error_of_a_linear_network_grows_by_the_product_of_the_steps(kind):
    """δ_end = gain_k Π_{j>k} (carry_j + gain_j slope_j) δ_k in each pixel."""
    plan, bank = PLANS[kind], precise(PLANS[kind])
    found = sensitivity(Denoising(gaussian(), plan), bank, seed=3, chunk=2, relative_rms=0.1)
    assert found.calls == tuple(range(6)) and found.timesteps == plan.timesteps
    factors = [call.carry + call.gain * slope(call.timestep) for call in plan.calls]
    for call, gain in enumerate(plan.gains):
        rms = bank.output[:, call].square().flatten(1).mean(1).sqrt().view(-1, 1, 1, 1)
        error = gain * 0.1 * rms * noise_directions(SHAPE, range(5))
        assert found.injected[call] == pytest.approx(mean_square(error), rel=1e-6)
        for factor in factors[call + 1 :]:
            error = error * factor
        assert found.mse[call] == pytest.approx(mean_square(error), rel=1e-6)


def mean_square(values: torch.Tensor) -> list[float]:
    return values.square().flatten(1).mean(1).tolist()


@pytest.mark.parametrize("kind", PLANS)
def test_every_sampler_is_followed_as_from_its_beginning(kind):
    """Brute force: whole trajectories from noise, in which one output is changed; histories and noise included."""
    plan, adapter = PLANS[kind], adapter_of(workbench().network)
    bank = recorded(adapter, plan, count=3)
    changed: list[torch.Tensor] = []
    found = sensitivity(Denoising(adapter, plan), bank, seed=3, chunk=2, relative_rms=0.3)
    assert found.trajectories == 3
    directions = noise_directions(adapter.sample_shape, range(3))
    for call in range(plan.network_calls):
        state = plan.initial(initial_noise("val", 3, range(3), adapter.sample_shape))
        for place, timestep in enumerate(plan.timesteps):
            step = torch.full((3,), place)
            output = adapter.denoise(state.x, timestep, adapter.conditioner.conditions("val", 3, range(3)), step)
            if place == call:
                rms = output.flatten(1).square().mean(1).sqrt().view(-1, 1, 1, 1)
                output = output + 0.3 * rms * directions
            noise = step_noise("val", 3, range(3), place, adapter.sample_shape)
            state = plan.step(state, output, place, noise)
        expected = (state.x - bank.x[:, -1]).double().square().flatten(1).mean(1)
        changed.append(expected)
        assert found.mse[call] == pytest.approx(expected.tolist(), rel=1e-3)
        images, reference = (to_uint8(x).double() for x in (state.x, bank.x[:, -1]))
        decibels = 10 * torch.log10(255**2 / (images - reference).square().flatten(1).mean(1))
        finite = [None if math.isinf(value) else pytest.approx(value, abs=0.05) for value in decibels.tolist()]
        assert list(found.psnr[call]) == finite
    assert torch.stack(changed).min() > 0


def noise_directions(shape, indices) -> torch.Tensor:
    """The convention of noise, written out again: a generator per (purpose, stream, seed, index)."""
    drawn = []
    for index in indices:
        key = json.dumps(["dmqbench/1", "sensitivity", "val", 3, index], separators=(",", ":")).encode()
        seed = int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1
        noise = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))
        drawn.append(noise / noise.square().mean().sqrt())
    return torch.stack(drawn)


def test_guidance_is_followed():
    """An error of the guided prediction; with other guidance later calls would answer otherwise."""
    plan, adapter = PLANS["ddim"], adapter_of(workbench().network)
    bank = recorded(adapter, plan, count=2, guidance=3.0)
    small = sensitivity(Denoising(adapter, plan, 3.0), bank, seed=3, chunk=2, relative_rms=1e-3)
    wrong = sensitivity(Denoising(adapter, plan), bank, seed=3, chunk=2, relative_rms=1e-3)
    assert max(small.mse[0]) < 1e-3 * min(wrong.mse[0])


def test_what_is_asked_changes_no_value():
    """Batches, the number of trajectories and the choice of calls leave every trajectory's values as they are."""
    plan, adapter = PLANS["dpmpp"], gaussian()
    bank = recorded(adapter, plan)
    seen: list[int] = []
    whole = sensitivity(Denoising(adapter, plan), bank, seed=3, chunk=5, advance=lambda: seen.append(1))
    assert len(seen) == 6
    part = sensitivity(Denoising(adapter, plan), bank, seed=3, chunk=2, members=3, calls=(1, 4))
    assert part.calls == (1, 4) and part.trajectories == 3
    for row, call in enumerate(part.calls):
        assert part.mse[row] == pytest.approx(whole.mse[call][:3], rel=1e-4)
        assert part.psnr[row] == pytest.approx(whole.psnr[call][:3], abs=1e-2)


def test_means_are_over_trajectories_and_identical_images_have_no_psnr():
    plan, adapter = PLANS["ddim"], gaussian()
    bank = recorded(adapter, plan)
    found = sensitivity(Denoising(adapter, plan), bank, seed=3, chunk=2, relative_rms=1e-7).to_json()
    assert found["psnr"] == [None] * 6 and found["per_trajectory"]["psnr"] == [[None] * 5] * 6
    found = sensitivity(Denoising(adapter, plan), bank, seed=3, chunk=2).to_json()
    for row, values in enumerate(found["per_trajectory"]["mse"]):
        assert found["mse"][row] == pytest.approx(sum(values) / 5)
    json_text(found)


def test_the_network_is_left_as_it_was():
    bench = workbench()
    sensitivity(bench.denoising, bench.bank.val, seed=0, chunk=2)
    layers = quant_layers(bench.network).values()
    assert layers and not any(itertools.chain.from_iterable((one.weight_on, one.activation_on) for one in layers))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"calls": (3, 1)}, "allowed are 0 to 5, rising"),
        ({"calls": (0, 6)}, "allowed are 0 to 5"),
        ({"calls": (-1, 2)}, "allowed are 0 to 5"),
        ({"calls": ()}, "allowed are 0 to 5"),
        ({"relative_rms": 0.0}, "positive"),
        ({"plan": PLANS["ddpm"]}, None),
        ({"plan": sampler("ddim", 5)}, "another sampler"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(changes, problem):
    adapter = gaussian()
    settings = {"plan": PLANS["ddim"], "seed": 3, "chunk": 2} | changes
    denoising = Denoising(adapter, settings.pop("plan"))
    bank = recorded(adapter, PLANS["ddim"], count=2)
    if problem is None:  # the same timesteps: what differs is how steps are made, which the record does not say
        assert sensitivity(denoising, bank, **settings).trajectories == 2
        return
    with pytest.raises(ValueError, match=problem):
        sensitivity(denoising, bank, **settings)


def test_a_final_state_that_is_not_finite_names_the_call():
    class Broken(Gaussian):
        def forward(self, x, timestep, return_dict):
            return (torch.full_like(x, float("nan")),)

    adapter = gaussian()
    bank = recorded(adapter, PLANS["ddim"], count=2)
    adapter.network = Broken()
    with pytest.raises(FloatingPointError, match="call 0"):
        sensitivity(Denoising(adapter, PLANS["ddim"]), bank, seed=3, chunk=2)
