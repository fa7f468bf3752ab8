"""What a model's configurations state is checked before anything runs, by ``task=plan`` too: one line, status 2."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
from tiny import autoencoder, save_pipeline, unet

from dmqbench import cli
from dmqbench.config.compose import compose
from dmqbench.config.errors import ConfigError
from dmqbench.config.job import make_job

UNET, SCHEDULER, DECODER = "unet/config.json", "scheduler/scheduler_config.json", "vae/config.json"

NETWORKS = {
    "sample_size": [15, 0, -8, 8.0, "16", [16], [8, 8, 8], [8, "8"], [8, 7], None, True],
    "in_channels": [0, "1", 1.0, None, [1]],
    "out_channels": [0, 5, "1", None],
    "class_embed_type": ["identity", "timestep"],
    "num_class_embeds": [0, "10"],
    "block_out_channels": [[], [16], [16, 0], ["16", "32"], 16, [16, 36]],
    "down_block_types": [
        ["DownBlock2D"],
        ["DownBlock2D", "AttnDownBlck2D"],
        "DownBlock2D",
        ["CrossAttnDownBlock2D"] * 2,
    ],
    "up_block_types": [["UpBlock2D", "DownBlock2D"], [], [1, 2]],
    "mid_block_type": ["UNetMidBlock2DCrossAttn"],
    "layers_per_block": [0, [1, 1]],
    "norm_num_groups": [0, 7, None],
    "norm_eps": [-1e-5, "1e-5"],
    "act_fn": ["sillu", None],
    "dropout": [2, "0"],
    "time_embedding_type": ["fouriers", "learned"],
    "resnet_time_scale_shift": ["ada_group"],
    "attention_head_dim": [0, "8"],
    "center_input_sample": ["no", 0],
    "freq_shift": ["0", None],
    "downsample_padding": [-1],
}
SCHEDULES = {
    "num_train_timesteps": ["1000", 0, -1, 1000.5, None, True],
    "beta_start": [0, 0.5, "0.0001", 1e-9, None, [1e-4]],
    "beta_end": [1, 2, 1e-5, "0.02", 0.5],
    "beta_schedule": ["sigmoid", "Linear", None, 1],
    "trained_betas": [[0.1, 0.2], []],
    "rescale_betas_zero_snr": [True],
    "prediction_type": ["v-prediction", "flow_prediction", "x0", None, 1],
    "use_flow_sigmas": [True],
    "timestep_type": ["continuous"],
}
WRONG = [
    *((UNET, key, value) for key, values in NETWORKS.items() for value in values),
    *((SCHEDULER, key, value) for key, values in SCHEDULES.items() for value in values),
]

FITTING = [
    *(
        (UNET, key, value)
        for key, values in {
            "sample_size": [16, [8, 16]],
            "attention_head_dim": [None],
            "dropout": [0, 0.5],
            "class_embed_type": [None],
            "norm_num_groups": [8],
            "down_block_types": [["UNetResDownBlock2D", "AttnDownBlock2D"]],
            "freq_shift": [1],
            "unknown_to_this_version": ["x"],
        }.items()
        for value in values
    ),
    *(
        (SCHEDULER, key, value)
        for key, values in {
            "num_train_timesteps": [50, 4000],
            "beta_schedule": ["scaled_linear", "squaredcos_cap_v2"],
            "prediction_type": ["v_prediction", "sample"],
            "clip_sample": [True, "anything"],
            "timestep_type": ["discrete"],
        }.items()
        for value in values
    ),
]

LIKE_DDPM = (
    *("DDIM", "DDPM", "PNDM", "DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep", "LCM"),
    *("EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete", "KDPM2Discrete", "TCD", "UnCLIP"),
)
OTHERS = (
    *("ScoreSdeVe", "FlowMatchHeunDiscrete", "IPNDM", "VQDiffusion", "CosineDPMSolverMultistep", "DDPMWuerstchen"),
    *("Amused", "ConsistencyDecoder", "LTXEulerAncestralRF"),
)


OVER_NOISE_LEVELS = {
    "FlowMatchEulerDiscrete": ("flow", "flow matching"),
    "EDMEuler": ("edm", "EDM"),
    "EDMDPMSolverMultistep": ("edm", "EDM"),
    "CMStochasticIterative": ("consistency", "a consistency model"),
}
"""Scheduler → the sampler that fits it, and what is said of it."""


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    folder = save_pipeline(tmp_path_factory.mktemp("original") / "model", unet(class_entries=None))
    for weights in folder.rglob("*.safetensors"):
        shutil.copy(weights, folder / "kept")
    return folder


@pytest.fixture
def folder(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "mine"))


def edit(folder, file, **changes):
    path = folder / file
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(config))


def scheduled(folder, name):
    """Put a scheduler into the folder as diffusers makes it, or where that needs more, what it would say of betas."""
    path = folder / SCHEDULER
    try:
        getattr(diffusers, f"{name}Scheduler")().save_pretrained(path.parent)
    except (AttributeError, ImportError, TypeError):
        path.write_text(json.dumps({"_class_name": f"{name}Scheduler", "num_train_timesteps": 1000}))


def refusal(folder, capsys, task="plan") -> str:
    status = cli.main([f"task={task}", "model=local", f"model.path={folder}", "method=rtn", "bits=w8a8", "trainer=cpu"])
    captured = capsys.readouterr()
    assert (status, captured.out) == (2, "")
    [line] = captured.err.splitlines()
    assert "Error" not in line
    return line


def accepted(folder, **keys) -> None:
    options = {"task": "plan", "model": "local", "model.path": folder, "method": "rtn", "trainer": "cpu", **keys}
    make_job(compose([f"{key}={value}" for key, value in options.items()]))


@pytest.mark.parametrize(("file", "key", "value"), WRONG)
def test_a_value_that_cannot_be_computed_with(folder, capsys, file, key, value):
    edit(folder, file, **{key: value})
    line = refusal(folder, capsys)
    about_shape = key in ("sample_size", "in_channels", "out_channels")
    assert f"{folder / file}: " in line or (about_shape and "model." in line)
    assert "=" in line


@pytest.mark.parametrize(("file", "key", "value"), FITTING)
def test_a_value_that_can_be_computed_with(folder, file, key, value):
    edit(folder, file, **{key: value})
    accepted(folder)


@pytest.mark.parametrize("name", OTHERS)
def test_a_schedule_that_stands_in_no_file_is_not_invented(folder, capsys, name):
    scheduled(folder, name)
    line = refusal(folder, capsys)
    assert f"_class_name={name}Scheduler has no " in line
    assert "no noise schedule is invented" in line


@pytest.mark.parametrize("name", OVER_NOISE_LEVELS)
def test_processes_over_noise_levels_are_followed_by_the_sampler_that_fits(folder, capsys, name):
    scheduled(folder, name)
    sampler, title = OVER_NOISE_LEVELS[name]
    expected = f"sampler=ddim does not fit model=local, whose scheduler states {title}; nearest: {sampler}"
    assert expected in refusal(folder, capsys)
    accepted(folder, sampler=sampler)
    with pytest.raises(ConfigError, match=rf"^sampler=(edm|flow) does not fit .* \(allowed: {sampler}\)"):
        accepted(folder, sampler="flow" if sampler == "edm" else "edm")
    edit(folder, UNET, time_embedding_type="fourier")
    with pytest.raises(ConfigError, match="time_embedding_type=fourier takes no real timesteps"):
        accepted(folder, sampler=sampler)


def test_betas_are_followed_by_their_own_samplers(folder):
    with pytest.raises(ConfigError, match=r"^sampler=flow does not fit .* schedule of betas; nearest: ddim"):
        accepted(folder, sampler="flow")
    edit(folder, SCHEDULER, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    accepted(folder, **{"sampler.spacing": "trailing"})
    with pytest.raises(ConfigError, match=r"^sampler=pndm does not fit .* rescaled .* \(allowed: ddim, ddpm, dpmpp\)"):
        accepted(folder, sampler="pndm")


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        *(("FlowMatchEulerDiscrete", "shift", value) for value in (0, "3", None, -1)),
        ("FlowMatchEulerDiscrete", "use_karras_sigmas", True),
        ("FlowMatchEulerDiscrete", "time_shift_type", "cosine"),
        ("FlowMatchEulerDiscrete", "num_train_timesteps", 0),
        *(("EDMEuler", "sigma_max", value) for value in ("80", 0.001, None)),
        ("EDMEuler", "sigma_schedule", "linear"),
        ("EDMEuler", "prediction_type", "sample"),
        ("CMStochasticIterative", "rho", 0),
    ],
)
def test_a_process_that_cannot_be_computed_with(folder, capsys, name, key, value):
    scheduled(folder, name)
    edit(folder, SCHEDULER, **{key: value})
    assert f"{folder / SCHEDULER}: {key}=" in refusal(folder, capsys)


def test_a_shift_that_grows_with_the_image_asks_for_its_size(folder):
    scheduled(folder, "FlowMatchEulerDiscrete")
    edit(folder, SCHEDULER, use_dynamic_shifting=True)
    with pytest.raises(ConfigError, match=r"^sampler\.image_tokens=null is not possible: image_tokens must be given"):
        accepted(folder, sampler="flow")
    accepted(folder, sampler="flow", **{"sampler.image_tokens": 16})


@pytest.mark.parametrize("name", LIKE_DDPM)
def test_schedulers_that_state_betas_are_followed(folder, name):
    scheduled(folder, name)
    accepted(folder)


@pytest.mark.parametrize(
    ("lacking", "name", "fits"),
    [
        (["beta_start"], "DDIMScheduler", True),
        (["beta_start", "beta_end", "beta_schedule", "num_train_timesteps"], "DDPMScheduler", True),
        (["prediction_type"], "DDIMScheduler", True),
        (["beta_end"], "LCMScheduler", False),
        (["num_train_timesteps"], "HeunDiscreteScheduler", False),
        (["beta_schedule"], "MyScheduler", False),
        ([], "MyScheduler", True),
        (["_class_name"], None, True),
        (["_class_name", "beta_start"], None, False),
    ],
)
def test_what_may_be_left_out(folder, capsys, lacking, name, fits):
    path = folder / SCHEDULER
    config = json.loads(path.read_text()) | {"_class_name": name}
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in lacking}))
    if fits:
        accepted(folder)
    else:
        assert f"has no {lacking[-1]}, and no noise schedule" in refusal(folder, capsys)


@pytest.mark.parametrize("task", ["run", "sample", "trajectories", "calibrate", "evaluate", "anatomy", "cost"])
def test_every_task_refuses_before_it_starts(folder, capsys, task):
    edit(folder, SCHEDULER, prediction_type="v-prediction")
    line = refusal(folder, capsys, task)
    assert "prediction_type=v-prediction is not possible; nearest: v_prediction (allowed: epsilon" in line


def test_states_that_become_no_images(folder, capsys):
    unet(class_entries=None, in_channels=4, out_channels=4).save_pretrained(folder / "unet")
    assert "in_channels=4 makes no images, as there is no decoder" in refusal(folder, capsys)
    accepted(folder, task="calibrate")
    autoencoder().save_pretrained(folder / "vae")
    accepted(folder)
    for key, value in (("latent_channels", 3), ("out_channels", 2), ("_class_name", "AutoencoderTiny")):
        edit(folder, DECODER, **{key: value})
        assert f"{DECODER}: {key}={value} is not possible" in refusal(folder, capsys)
        autoencoder().save_pretrained(folder / "vae")
