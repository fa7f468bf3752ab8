"""A denoiser of the user's own in a job: what is said of it is read from the folder that describes it."""

from collections.abc import Mapping
from dataclasses import replace

from dmqbench.config.errors import ConfigError
from dmqbench.config.model_facts import network_config
from dmqbench.config.model_file_checks import IMAGE_CHANNELS, check_schedule
from dmqbench.config.schema import ModelConfig
from dmqbench.models.folders import OWN_MARK
from dmqbench.models.location import locate_scheduler

OF_FILES = ("revision", "classes", "condition", "condition_channels", "condition_factor", "scheduler", "size")
"""Keys of models that are files."""


def checked_own_model(model: ModelConfig, guidances: Mapping[str, float | None]) -> ModelConfig:
    """Fill in what the denoiser itself says; it must know what ``guidances``, by key, need; ConfigError otherwise."""
    config = network_config(replace(model, size=None))
    scheduler = locate_scheduler(model.checkpoint)
    if OWN_MARK not in config or scheduler is None:
        raise ConfigError("model.source", model.source, problem="is for a script, where dmqbench.api takes a Denoiser")
    for key in OF_FILES:
        if (value := getattr(model, key)) is not None:
            raise ConfigError(f"model.{key}", value, [None], f"is for models in files, and {model.name} is an object")
    check_schedule(scheduler)
    for key, guidance in guidances.items():
        if guidance not in (None, 1) and not config[OWN_MARK]["guided"]:
            raise ConfigError(key, guidance, [1.0], f"needs null conditions, and {model.name} has none")
    return replace(model, sample_shape=(config["in_channels"], *config["sample_size"]))


def check_own_images(model: ModelConfig) -> None:
    """Refuse a state that is no image: a denoiser of one's own has no decoder."""
    channels, *_ = model.sample_shape
    if channels not in IMAGE_CHANNELS:
        problem = f"is no image, which has 1 or 3 channels: {model.name} can be quantized, but not evaluated"
        raise ConfigError("sample_shape", list(model.sample_shape), problem=problem)
