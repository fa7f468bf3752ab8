"""A diffusers folder out of an original checkpoint."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dmqbench.models.class_table import CLASS_NAME, FOLDER, TABLE
from dmqbench.models.compvis.autoencoder import autoencoder_config, converted_autoencoder
from dmqbench.models.compvis.checkpoint import AUTOENCODER, CONDITION, NETWORK, averaged, part_of, read_checkpoint
from dmqbench.models.compvis.settings import Settings
from dmqbench.models.compvis.text_encoder import converted_text_encoder, text_encoder_config
from dmqbench.models.compvis.unet import converted_unet
from dmqbench.models.folders import CONFIG, DECODER_FOLDERS, NETWORK_FOLDERS, SCHEDULER_CONFIG, WEIGHTS, ModelError
from dmqbench.models.weight_fit import require_shapes_fit
from dmqbench.store.files import TEMPORARY_PREFIX, save_json

Say = Callable[[str], None]


@dataclass(frozen=True)
class Part:
    """A component of a pipeline; ``title`` says what it is, for people."""

    folder: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    title: str
    file: str = WEIGHTS


def convert(checkpoint: Path, folder: Path, settings: Settings, say: Say) -> None:
    """Write ``folder``, whole or not at all, and say of every part what it is made of.

    Raises:
        ModelError: the folder is there already; the checkpoint cannot be read, or is of another network.
    """
    if folder.exists():
        raise ModelError(f"{folder} is there already")
    state = read_checkpoint(checkpoint)
    temporary = folder.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{folder.name}")
    try:
        for part in _parts(state, settings, say):
            if part.folder in (*NETWORK_FOLDERS, *DECODER_FOLDERS):
                shapes = {name: tuple(tensor.shape) for name, tensor in part.tensors.items()}
                require_shapes_fit(checkpoint, part.config, shapes)
            (temporary / part.folder).mkdir(parents=True)
            tensors = {name: tensor.contiguous() for name, tensor in part.tensors.items()}
            save_file(tensors, temporary / part.folder / part.file, {"format": "pt"})
            save_json(temporary / part.folder / CONFIG, part.config)
            count = sum(tensor.numel() for tensor in tensors.values())
            say(f"{part.folder}: {part.title}, {count:,} parameters")
        save_json(temporary / SCHEDULER_CONFIG, _scheduler(state, settings))
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _parts(state: Mapping[str, Tensor], settings: Settings, say: Say) -> Iterator[Part]:
    average = averaged(state)
    network, weights = part_of(state, NETWORK), "its weights as they are"
    if average is not None:
        network, weights = average, "its weights averaged over training (EMA)"
    config = dict(settings.network)
    yield Part(
        NETWORK_FOLDERS[0],
        config,
        converted_unet(network, config, settings.heads_outside),
        f"{config['_class_name']}, {weights}",
    )
    if autoencoder := part_of(state, AUTOENCODER):
        yield _autoencoder(autoencoder, state, settings)
    condition = part_of(state, CONDITION)
    if TABLE in condition:
        yield Part(FOLDER, {"_class_name": CLASS_NAME}, {TABLE: condition[TABLE]}, "the table of classes")
    elif text := text_encoder_config(condition):
        tensors = converted_text_encoder(condition)
        yield Part("text_encoder", text, tensors, "CLIPTextModel", "model.safetensors")
        say("tokenizer: in no checkpoint; copy the folder tokenizer of any Stable Diffusion 1.x into it")
    elif condition:
        say(f"what makes conditions ({CONDITION}{next(iter(condition))}, …) is of no kind that can be converted")


def _autoencoder(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], settings: Settings) -> Part:
    config = autoencoder_config(tensors, settings.network["sample_size"], 1.0)
    quantizes = config["_class_name"] == "VQModel"
    # With scale_by_std the scale is measured when training begins, and saved with the weights.
    scale = float(f"{state['scale_factor'].item():.7g}") if "scale_factor" in state else settings.scale
    if scale is None and not quantizes:
        raise ModelError("the scale of its latents is not in the checkpoint: give the YAML that it was trained with")
    config["scaling_factor"] = 1.0 if scale is None else scale
    place = DECODER_FOLDERS[0 if quantizes else 1]
    return Part(place, config, converted_autoencoder(tensors, config), config["_class_name"])


def _scheduler(state: Mapping[str, Tensor], settings: Settings) -> dict[str, Any]:
    """How the original's own DDIM sampler samples, under the betas of training."""
    steps, first, last = _betas(state) or settings.betas or (None, None, None)
    if steps is None:
        raise ModelError("the noise schedule is not in the checkpoint: give the YAML that it was trained with")
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": steps,
        "beta_schedule": "scaled_linear",
        "beta_start": first,
        "beta_end": last,
        "prediction_type": settings.prediction,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }


def _betas(state: Mapping[str, Tensor]) -> tuple[int, float, float] | None:
    """Number, first and last of the betas in a checkpoint, whose square roots must be evenly spaced."""
    if "betas" not in state:
        return None
    betas = state["betas"].double()
    first, last = (float(f"{value:.6g}") for value in (betas[0].item(), betas[-1].item()))
    even = torch.linspace(first**0.5, last**0.5, len(betas), dtype=torch.float64) ** 2
    if not torch.allclose(betas, even, rtol=1e-5, atol=0):
        raise ModelError("its betas are not those of a schedule whose square roots are evenly spaced")
    return len(betas), first, last
