"""What the files of a model and of images say, read without torch."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dmqbench.config.inputs import EvaluateConfig, InputsConfig
from dmqbench.config.schema import ModelConfig, SamplerConfig
from dmqbench.data.archives import inspect
from dmqbench.data.prompts import PromptStreams, read_streams
from dmqbench.models.class_table import class_table_folder
from dmqbench.models.families import family_of
from dmqbench.models.families.family import Family
from dmqbench.models.folders import (
    CONFIG,
    OWN,
    ModelError,
    decoder_folder,
    network_folder,
    read_config,
)
from dmqbench.models.location import locate, locate_scheduler
from dmqbench.models.sizes import image_scale, sized_config
from dmqbench.models.text_files import pipeline_name, pipeline_settings, text_files
from dmqbench.models.weight_files import tensor_shapes, weight_files
from dmqbench.samplers.processes import OF_SAMPLER, Process, process_timesteps
from dmqbench.samplers.scheduler_config import read_process
from dmqbench.samplers.timesteps import plan_timesteps
from dmqbench.store.files import json_hash, sha256_once


def is_of_model(evaluate: EvaluateConfig, model: ModelConfig) -> bool:
    """Whether the images can be of the model that the job names; with others, nothing of it applies."""
    return evaluate.samples is not None and inspect(evaluate.samples).shape == image_shape(model)


def image_shape(model: ModelConfig) -> tuple[int, int, int]:
    """Return (C, H, W) of the images of ``model``: its sampler's state, or what its decoder makes of that."""
    folder = locate(model.checkpoint)
    decoder, scale = decoder_folder(folder), image_scale(folder)
    channels, height, width = model.sample_shape or _state_shape(model)
    if decoder is not None:
        channels = read_config(decoder / CONFIG)["out_channels"]
    return channels, height * scale, width * scale


def _state_shape(model: ModelConfig) -> tuple[int, int, int]:
    return network_family(model).sample_shape


_TRAIN_TIMESTEPS = 1000


def weights_hash(model: ModelConfig) -> str:
    """Sha256 over the configurations and safetensors of a model's folder, by their place in it, and over the scheduler
    that it is given.

    Raises:
        ModelError: the folder or a file in it is missing or not whole.
    """
    folder = locate(model.checkpoint)
    network = network_folder(folder, model.checkpoint.advice)
    parts = [part for part in (network, decoder_folder(folder), class_table_folder(folder)) if part is not None]
    paths = [path for part in parts for path in (part / CONFIG, *weight_files(part, model.checkpoint.advice))]
    files = {os.path.relpath(path, folder): path for path in paths}
    if (scheduler := locate_scheduler(model.checkpoint)) is not None:
        given = model.scheduler is not None
        files |= {"model.scheduler" if given else os.path.relpath(scheduler, folder): scheduler}
    return json_hash(_hashes(files))


def network_family(model: ModelConfig) -> Family:
    """What the ``config.json`` of a model's denoiser says of it."""
    return family_of(network_config(model), model.condition_channels or 0)


def reads_text(model: ModelConfig) -> bool:
    """Whether prompts condition the model; those of the user's own have tensors."""
    return model.source != OWN and network_family(model).reads_text


def embeds_guidance(model: ModelConfig) -> bool:
    """Whether guidance is a condition of the network, and takes no second branch."""
    return model.source != OWN and network_family(model).embeds_guidance


def prompts_of(inputs: InputsConfig) -> PromptStreams:
    """Return the prompts of a job; PromptError if a file of them cannot be used."""
    return read_streams(inputs.prompts, inputs.calibration_prompts, column=inputs.column)


def encoder_hash(model: ModelConfig) -> str:
    """Sha256 over what makes conditions of prompts: tokenizers, encoders, and the settings of their pipeline."""
    folder, family = locate(model.checkpoint), network_family(model)
    paths = text_files(folder, family, model.checkpoint.advice)
    files = _hashes({os.path.relpath(path, folder): path for path in paths})
    return json_hash({"settings": pipeline_settings(folder), "files": files, "by": pipeline_name(folder, family)})


def _hashes(files: Mapping[str, Path]) -> dict[str, str]:
    try:
        return {name: sha256_once(path) for name, path in files.items()}
    except OSError as error:
        raise ModelError(f"{error.filename}: cannot be read ({error.strerror})") from None


def network_config(model: ModelConfig) -> dict[str, Any]:
    """The ``config.json`` of a model's denoiser; ModelError if there is none."""
    return sized_config(model.checkpoint)


def timesteps(sampler: SamplerConfig, model: ModelConfig, strength: float = 1.0) -> tuple[float, ...]:
    """Timestep of every network call, of the last share ``strength``; ValueError, one line, if there is none."""
    if sampler.name in OF_SAMPLER:
        process = process_of(model) or OF_SAMPLER[sampler.name]()
        return process_timesteps(sampler.spec(strength=strength), process)
    return plan_timesteps(
        sampler.name,
        sampler.steps,
        sampler.spacing,
        sampler.steps_offset,
        _train_timesteps(model),
        sampler.skip_prk,
        strength,
    )


def process_of(model: ModelConfig) -> Process | None:
    """The process over noise levels that the model's scheduler states, if it states one."""
    return read_process(_scheduler(model))


def with_image_tokens(sampler: SamplerConfig, model: ModelConfig) -> SamplerConfig:
    """Return the sampler with the tokens of the model's images, where its shift depends on them and nobody said any."""
    process = None if model.shapes_only else process_of(model)
    if sampler.image_tokens is not None or not getattr(process, "use_dynamic_shifting", False) or model.source == OWN:
        return sampler
    return replace(sampler, image_tokens=network_family(model).image_tokens)


def schedule_is_rescaled(model: ModelConfig) -> bool:
    """Whether the last timestep of the model's betas is noise alone."""
    return bool(_scheduler(model).get("rescale_betas_zero_snr"))


def _train_timesteps(model: ModelConfig) -> int:
    return _scheduler(model).get("num_train_timesteps", _TRAIN_TIMESTEPS)


def _scheduler(model: ModelConfig) -> dict[str, Any]:
    """What the model's scheduler says; a bare network has none, and a job on it is refused elsewhere."""
    path = locate_scheduler(model.checkpoint)
    return {} if path is None else read_config(path)


def layer_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of the weight of every module of the model's network, from the headers of its files; ModelError if none.

    A model that is shipped as shapes alone is traced, which takes torch.
    """
    if model.shapes_only:
        from dmqbench.models.sources import meta_topology

        return {layer.name: layer.weight_shape for layer in meta_topology(model.checkpoint)[0].layers}
    advice = model.checkpoint.advice
    shapes = tensor_shapes(network_folder(locate(model.checkpoint), advice), advice)
    return {name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith(".weight")}
