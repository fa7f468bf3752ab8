"""Whether what a model's ``config.json`` and ``scheduler_config.json`` state can be computed here; without torch."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dmqbench.config.errors import ConfigError, closest
from dmqbench.models.folders import CONFIG, SCHEDULER_CONFIG, decoder_folder, network_folder, read_config
from dmqbench.samplers.scheduler_config import BETA_SCHEDULES, schedule_settings
from dmqbench.samplers.spec import PREDICTIONS
from dmqbench.samplers.timesteps import SettingError


class Kind(NamedTuple):
    """What a value may be: for people, and as a question."""

    allowed: tuple[Any, ...]
    fits: Callable[[Any], Any]


def _words(*names: Any) -> Kind:
    return Kind(names, lambda value: any(type(value) is type(name) and value == name for name in names))


def _whole(least: int) -> Kind:
    return Kind((f"a whole number from {least}",), lambda value: type(value) is int and value >= least)


def _number(least: float = -math.inf, most: float = math.inf) -> Kind:
    words = "a number" if math.isinf(least) else f"a number from {least:g}"
    return Kind(
        (words if math.isinf(most) else f"{words} to {most:g}",),
        lambda value: type(value) in (int, float) and math.isfinite(value) and least <= value <= most,
    )


def _list(kind: Kind) -> Kind:
    words = ", ".join(map(str, kind.allowed))
    return Kind(
        (f"a list of: {words}",), lambda value: isinstance(value, list) and value and all(map(kind.fits, value))
    )


def _or(kind: Kind, other: Kind) -> Kind:
    return Kind((*kind.allowed, *other.allowed), lambda value: kind.fits(value) or other.fits(value))


IMAGE_CHANNELS = (1, 3)
"""Of grey and of colour."""

_NULL, _FLAG, _COUNT = _words(None), _words(False, True), _whole(1)


def _blocks(middle: str, codec: str, sampling: str) -> Kind:
    """Names of blocks without cross-attention, which these networks lack."""
    kinds = (*(f"{kind}{middle}" for kind in ("", "Attn", "Skip", "AttnSkip", "K")), f"Resnet{sampling}")
    names = tuple(f"{kind}Block2D" for kind in (*kinds, f"{middle}{codec}", f"Attn{middle}{codec}"))
    return Kind(names, lambda value: isinstance(value, str) and value.removeprefix("UNetRes") in names)


_STYLES = _words("conv", "resnet")

NETWORK: Mapping[str, Kind] = {
    "sample_size": _or(_COUNT, Kind(("two of them",), lambda size: _list(_COUNT).fits(size) and len(size) == 2)),
    **{key: _COUNT for key in ("in_channels", "out_channels", "layers_per_block", "norm_num_groups")},
    **{key: _or(_COUNT, _NULL) for key in ("attention_head_dim", "attn_norm_num_groups", "time_embedding_dim")},
    **{key: _or(_COUNT, _NULL) for key in ("num_class_embeds", "num_train_timesteps")},
    **{key: _FLAG for key in ("center_input_sample", "flip_sin_to_cos", "add_attention")},
    **{key: _NULL for key in ("class_embed_type", "addition_embed_type", "encoder_hid_dim_type")},
    **{key: _number() for key in ("freq_shift", "mid_block_scale_factor")},
    "time_embedding_type": _words("positional", "fourier", "learned"),
    "down_block_types": _list(_blocks("Down", "Encoder", "Downsample")),
    "up_block_types": _list(_blocks("Up", "Decoder", "Upsample")),
    "mid_block_type": _words("UNetMidBlock2D", None),
    "block_out_channels": _list(_COUNT),
    "downsample_padding": _whole(0),
    "downsample_type": _STYLES,
    "upsample_type": _STYLES,
    "dropout": _number(0, 1),
    "act_fn": _words("swish", "silu", "mish", "gelu", "relu"),
    "norm_eps": _number(0),
    "resnet_time_scale_shift": _words("default", "scale_shift"),
}
"""Of a ``UNet2DModel``; a key that is absent has diffusers' default."""

SCHEDULER: Mapping[str, Kind] = {
    "num_train_timesteps": _COUNT,
    "beta_start": _number(0, 1),
    "beta_end": _number(0, 1),
    "beta_schedule": _words(*BETA_SCHEDULES),
    "prediction_type": _words(*PREDICTIONS),
}
"""Of the process that a network was trained with; how its scheduler samples is not read here."""

DECODER: Mapping[str, Kind] = {
    "_class_name": _words("AutoencoderKL", "VQModel"),
    "out_channels": _words(*IMAGE_CHANNELS),
    "latent_channels": _COUNT,
    "block_out_channels": _list(_COUNT),
    "scaling_factor": _number(),
}


def check_files(folder: Path) -> None:
    """Check the configurations of the network, the scheduler and the decoder in a model's folder.

    Raises:
        ConfigError: the first value that cannot be computed with, by the name of its file and its key.
        ModelError: a file is missing or cannot be read.
    """
    _check(network_folder(folder) / CONFIG, NETWORK, _network_problem)
    _check(folder / SCHEDULER_CONFIG, SCHEDULER, _schedule_problem)
    if (decoder := decoder_folder(folder)) is not None:
        _check(decoder / CONFIG, DECODER)


def check_decoded(folder: Path, channels: int) -> None:
    """Refuse a model whose state, of so many channels, becomes no grey or colour image; ConfigError."""
    decoder = decoder_folder(folder)
    if decoder is not None:
        _check(decoder / CONFIG, {"latent_channels": _words(channels)})
    elif channels not in IMAGE_CHANNELS:
        key = f"{network_folder(folder) / CONFIG}: in_channels"
        raise ConfigError(key, channels, IMAGE_CHANNELS, "makes no images, as there is no decoder beside it")


Problem = tuple[str, str]
"""A key, and what is wrong with its value."""
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


def _network_problem(config: Mapping[str, Any]) -> Problem | None:
    """What does not fit within the configuration of a network; keys at their defaults are diffusers' to know."""
    channels, groups = config.get("block_out_channels", ()), config.get("norm_num_groups", 32)
    down, up = config.get("down_block_types", ()), config.get("up_block_types", ())
    for key in ("down_block_types", "up_block_types"):
        if channels and key in config and len(config[key]) != len(channels):
            return key, f"are {len(config[key])} blocks, and block_out_channels are of {len(channels)}"
    if any(width % groups for width in channels) and not any("Skip" in name for name in (*down, *up)):
        return "block_out_channels", f"are not all divisible by norm_num_groups={groups}"
    size, least = config.get("sample_size"), 2 ** max(0, len(channels) - 1)
    if any(side % least for side in (size if isinstance(size, list) else [size or 0])):
        return "sample_size", f"is not divisible by {least}, and {len(channels)} blocks halve it"
    if config.get("time_embedding_type") == "learned" and config.get("num_train_timesteps") is None:
        return "num_train_timesteps", "must be given with time_embedding_type=learned"
    return None


def _schedule_problem(config: Mapping[str, Any]) -> Problem | None:
    """Why a scheduler's configuration gives no noise schedule."""
    try:
        schedule_settings(config)
    except SettingError as error:
        return error.args
    return None
