"""Whether what a model's ``config.json`` and ``scheduler_config.json`` state can be computed here; without torch."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dmqbench.config.errors import ConfigError, closest
from dmqbench.models.config_values import COUNT, FLAG, NULL, Kind, either, list_of, number, words
from dmqbench.models.families import kind_of
from dmqbench.models.families.family import Problem
from dmqbench.models.folders import (
    CONFIG,
    DECODER_FOLDERS,
    decoder_folder,
    network_folder,
    read_config,
    renamed,
)
from dmqbench.samplers.scheduler_config import BETA_SCHEDULES, PROCESSES, read_process, require_fit, schedule_settings
from dmqbench.samplers.spec import PREDICTIONS
from dmqbench.samplers.timesteps import SettingError

IMAGE_CHANNELS = (1, 3)
"""Of grey and of colour."""

SCHEDULER: Mapping[str, Kind] = {
    "num_train_timesteps": COUNT,
    "beta_start": number(0, 1),
    "beta_end": number(0, 1),
    "beta_schedule": words(*BETA_SCHEDULES),
    "prediction_type": words(*PREDICTIONS),
    "rescale_betas_zero_snr": either(FLAG, NULL),
}
"""Of the process that a network was trained with; how its scheduler samples is not read here."""

PROCESS: Mapping[str, Kind] = {
    "num_train_timesteps": COUNT,
    **{key: number() for key in ("shift", "base_shift", "max_shift", "s_noise", "rho")},
    **{key: number(0) for key in ("sigma_min", "sigma_max", "sigma_data")},
    **{key: COUNT for key in ("base_image_seq_len", "max_image_seq_len")},
    "use_dynamic_shifting": FLAG,
    "time_shift_type": words("exponential", "linear"),
    "sigma_schedule": words("karras", "exponential"),
}
"""Of the processes over noise levels."""

DECODER: Mapping[str, Kind] = {
    "_class_name": words("AutoencoderKL", "VQModel"),
    "out_channels": words(*IMAGE_CHANNELS),
    "latent_channels": COUNT,
    "block_out_channels": list_of(COUNT),
    "scaling_factor": number(),
    "shift_factor": either(number(), NULL),
}


def check_schedule(scheduler: Path) -> None:
    """Check the configuration of a scheduler; ConfigError with the first value that cannot be computed with."""
    over_sigmas = read_config(scheduler).get("_class_name") in PROCESSES
    _check(scheduler, PROCESS if over_sigmas else SCHEDULER, _schedule_problem)


def check_files(folder: Path, scheduler: Path) -> None:
    """Check the configurations of the network and the decoder in a model's folder, and that of its ``scheduler``.

    Raises:
        ConfigError: the first value that cannot be computed with, by the name of its file and its key.
        ModelError: a file is missing or cannot be read.
    """
    if (folder / _CONTROLS / CONFIG).is_file():
        problem = f"has {_CONTROLS}/, and no job has images for it: take it away to quantize the network alone"
        raise ConfigError("model.path", folder, problem=problem)
    network = network_folder(folder) / CONFIG
    family = kind_of(read_config(network))
    _check(network, family.kinds, family.problem)
    check_schedule(scheduler)
    if (decoder := decoder_folder(folder)) is not None:
        _check(decoder / CONFIG, DECODER)


_CONTROLS = "controlnet"


def check_decoded(folder: Path, channels: int) -> None:
    """Refuse a model whose state, of so many channels, becomes no grey or colour image; ConfigError."""
    decoder = decoder_folder(folder)
    if decoder is not None:
        _check(decoder / CONFIG, {"latent_channels": words(channels)})
    elif channels not in IMAGE_CHANNELS:
        key = f"{network_folder(folder) / CONFIG}: in_channels"
        hint = renamed(folder, *DECODER_FOLDERS)
        problem = f"makes no images, as there is no decoder beside it ({' or '.join(DECODER_FOLDERS)}){hint}"
        raise ConfigError(key, channels, IMAGE_CHANNELS, problem, nearest=None)


Relation = Callable[[Mapping[str, Any]], Problem | None]


def _check(path: Path, kinds: Mapping[str, Kind], relation: Relation = lambda config: None) -> None:
    config = read_config(path)
    for key, kind in kinds.items():
        if key in config and not kind.fits(config[key]):
            value, nearest = config[key], closest(config[key], kind.allowed)
            shown = f'"{value}"' if isinstance(value, str) and value[-1:].isdigit() else value
            nearest = None if str(nearest).startswith("a ") else nearest
            raise ConfigError(f"{path}: {key}", shown, kind.allowed, "is not possible", nearest)
    if (found := relation(config)) is not None:
        key, problem = found
        raise ConfigError(f"{path}: {key}", config.get(key), problem=problem)


def _schedule_problem(config: Mapping[str, Any]) -> Problem | None:
    """Why a scheduler's configuration gives no process of training."""
    prediction = config.get("prediction_type", "epsilon")
    try:
        if read_process(config) is None:
            schedule_settings(config)
            require_fit("ddim", prediction, None, bool(config.get("rescale_betas_zero_snr")))
    except SettingError as error:
        return "prediction_type" if error.field == "prediction" else error.field, error.args[1]
    return None
