"""Networks trained over noise levels through the command: what is drawn is what diffusers draws, and methods run."""

import json
import math

import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from e2e.commands import FEW, dmqbench, result_folder
from safetensors.torch import load_file
from tiny import CLASSES, save_pipeline, smallest_unet, unet

from dmqbench.data.noise import initial_noise

SCHEDULERS = {
    "flow": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "edm": EDMEulerScheduler(sigma_max=20.0),
    "consistency": CMStochasticIterativeScheduler(sigma_max=20.0),
}
JOBS = {
    "flow": ("method=accuquant", "bits=w4a6", "method.trajectory_reconstruction.horizon=3"),
    "edm": ("method=rtn", "bits=w8a8", "diagnose=true"),
    "consistency": ("method=mpq_dm", "bits=w4a6", "method.low_rank_tuning.window=1", "sampler.steps=1"),
}
ADM = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "resnet_time_scale_shift": "scale_shift",
    **dict.fromkeys(("downsample_type", "upsample_type"), "resnet"),
}
"""The blocks of ``terrain``, whose package the tests need not have."""


def predicted(network, x, timestep):
    labels = torch.arange(len(x)) if network.config.num_class_embeds else None
    return network(x, torch.tensor([timestep] * len(x)), labels, return_dict=False)[0]


def drawn_by_flow(network, x, scheduler):
    for timestep in scheduler.timesteps:
        x = scheduler.step(predicted(network, x, timestep), timestep, x).prev_sample
    return x


def drawn_in_one_step(network, x, scheduler):
    [timestep], x = scheduler.timesteps, x * scheduler.init_noise_sigma
    output = predicted(network, scheduler.scale_model_input(x, timestep), timestep)
    return scheduler.step(output, timestep, x).prev_sample


def drawn_by_edm(network, x, scheduler):
    """Algorithm 1 of Karras et al. 2022 without its noise; the preconditioning is diffusers'."""

    def slope(x, sigma):
        seen = scheduler.precondition_inputs(x, sigma)
        output = predicted(network, seen, 0.25 * math.log(sigma))
        return (x - scheduler.precondition_outputs(x, output, sigma)) / sigma

    x = x * scheduler.init_noise_sigma
    for sigma, after in zip(scheduler.sigmas, scheduler.sigmas[1:], strict=False):
        first = slope(x, sigma)
        ahead = x + (after - sigma) * first
        x = x + (after - sigma) * (first + slope(ahead, after)) / 2 if after > 0 else ahead
    return x


@pytest.mark.parametrize("sampler", JOBS)
@torch.no_grad()
def test_a_network_trained_over_noise_levels(sampler, tmp_path):
    one_step, scheduler = sampler == "consistency", SCHEDULERS[sampler]
    network = unet(class_entries=CLASSES, **ADM) if one_step else smallest_unet(class_entries=None)
    folder = save_pipeline(tmp_path / "mine", network)
    scheduler.save_pretrained(folder / "scheduler")
    chosen = ("model=local", f"model.path={folder}", f"sampler={sampler}", *JOBS[sampler])
    status, output, errors = dmqbench(tmp_path / "runs", *FEW, *chosen, "metrics.names=[psnr,mse]", "metrics.samples=8")
    assert status == 0, errors
    result = json.loads((result_folder(output) / "result.json").read_text())
    assert 5 < result["metrics"]["psnr"]["value"] < 100
    assert result["config"]["sampler"]["solver" if sampler == "edm" else "name"] == {"edm": "heun"}.get(
        sampler, sampler
    )

    scheduler.set_timesteps(1 if one_step else 4)
    expected = {"flow": drawn_by_flow, "edm": drawn_by_edm, "consistency": drawn_in_one_step}[sampler](
        network, initial_noise("eval", 0, range(8), (1, 8, 8)), scheduler
    )
    found = [load_file(path)["state"] for path in (tmp_path / "runs" / "samples").glob("*/chunk_00000.safetensors")]
    differences = [float((state - expected).abs().max()) for state in found]
    assert len(found) >= 2
    assert min(differences) < 1e-4 * float(expected.abs().max()) < max(differences)
