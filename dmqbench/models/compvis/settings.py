"""What no shape of a checkpoint says: from the YAML that it was trained with, or from the network of a known name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dmqbench.models.folders import ARCHITECTURES, CONFIG, ModelError, read_config

_SCALES = {"sd14": 0.18215}
"""Of latents, where neither weights nor codes say it."""
_PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}

_READ = (
    *("in_channels", "out_channels", "model_channels", "channel_mult", "num_res_blocks", "attention_resolutions"),
    *("num_heads", "num_head_channels", "use_new_attention_order", "use_scale_shift_norm", "resblock_updown"),
    *("use_spatial_transformer", "transformer_depth", "context_dim", "use_linear_in_transformer"),
)
_CHANGES_NOTHING = ("image_size", "use_checkpoint", "use_fp16", "dropout", "legacy")
_ONLY: Mapping[str, Any] = {"dims": 2, "conv_resample": True, "num_classes": None, "n_embed": None}


@dataclass(frozen=True)
class Settings:
    """What a conversion must be told.

    Args:
        network: diffusers' configuration of the U-Net.
        heads_outside: see ``converted_unet``.
        prediction: what the network predicts, as diffusers calls it.
        scale: what latents are multiplied with, if it is known.
        betas: number, first and last of the noise schedule, if it is known.
    """

    network: Mapping[str, Any]
    heads_outside: bool = False
    prediction: str = "epsilon"
    scale: float | None = None
    betas: tuple[int, float, float] | None = None


def settings_of_architecture(name: str) -> Settings:
    """Return what is known of a network by its name; ModelError for one that has no original of this kind."""
    known = {path.name: read_config(path / CONFIG) for path in sorted(ARCHITECTURES.iterdir()) if path.is_dir()}
    originals = {each: config for each, config in known.items() if "CompVis" in config.get("_origin", "")}
    if name not in originals:
        raise ModelError(f"{name} is no network of latent diffusion that is known (allowed: {', '.join(originals)})")
    config = {key: value for key, value in originals[name].items() if not key.startswith("_") or key == "_class_name"}
    return Settings(config, scale=_SCALES.get(name))


def settings_of_yaml(path: Path) -> Settings:
    """Return what the YAML that an original was trained with says; ModelError if it is none, or of other networks."""
    try:
        model = yaml.safe_load(path.read_bytes())["model"]["params"]
        network = {key: value for key, value in model["unet_config"]["params"].items() if key not in _CHANGES_NOTHING}
        size, prediction = model["image_size"], model.get("parameterization", "eps")
        betas = (model.get("timesteps", 1000), model.get("linear_start", 1e-4), model.get("linear_end", 2e-2))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ModelError(
            f"{path}: no YAML of latent diffusion, whose model.params has unet_config.params and image_size "
            f"({type(error).__name__}: {reason})"
        ) from None
    for key, value in network.items():
        if key not in _READ and not (key in _ONLY and value == _ONLY[key]):
            raise ModelError(f"{path}: a U-Net with {key}={value} cannot be converted")
    if prediction not in _PREDICTIONS:
        raise ModelError(f"{path}: parameterization={prediction} is not known (allowed: {', '.join(_PREDICTIONS)})")
    if model.get("beta_schedule", "linear") != "linear":
        raise ModelError(f"{path}: beta_schedule={model['beta_schedule']} cannot be converted (allowed: linear)")
    outside = bool(network.get("use_new_attention_order"))
    scale = None if model.get("scale_by_std") else model.get("scale_factor", 1.0)
    return Settings(_network_config(path, network, size), outside, _PREDICTIONS[prediction], scale, betas)


def _network_config(path: Path, given: Mapping[str, Any], size: int) -> dict[str, Any]:
    """diffusers' configuration of a U-Net of the original."""
    multiples, resampled = given["channel_mult"], bool(given.get("resblock_updown"))
    attends = [2**level in given["attention_resolutions"] for level in range(len(multiples))]
    shared = {
        "sample_size": size,
        "in_channels": given["in_channels"],
        "out_channels": given["out_channels"],
        "layers_per_block": given["num_res_blocks"],
        "block_out_channels": [given["model_channels"] * multiple for multiple in multiples],
    }
    if not given.get("use_spatial_transformer"):
        return {"_class_name": "UNet2DModel", **shared, **_of_pixels(given, attends, resampled)}
    if resampled or given.get("use_scale_shift_norm"):
        raise ModelError(f"{path}: a U-Net with spatial transformers and other than plain blocks cannot be converted")
    return {"_class_name": "UNet2DConditionModel", **shared, **_of_tokens(given, attends)}


def _of_pixels(given: Mapping[str, Any], attends: list[bool], resampled: bool) -> dict[str, Any]:
    kinds = ["Attn" if attention else "" for attention in attends]
    # A level without attention whose resampling is a block of its own is of another class, unless it has none.
    inner = ["Resnet" if resampled and not kind else kind for kind in kinds]
    last = len(kinds) - 1
    sampling = {"downsample_type": "resnet", "upsample_type": "resnet"} if resampled else {}
    width, heads = given.get("num_head_channels", -1), given.get("num_heads", -1)
    return {
        "down_block_types": [_kind(kind, "Down") for kind in (*inner[:last], kinds[last])],
        "up_block_types": [_kind(kind, "Up") for kind in (*reversed(inner[1:]), kinds[0])],
        **({"attention_head_dim": width} if width != -1 else {"num_attention_heads": heads}),
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "scale_shift" if given.get("use_scale_shift_norm") else "default",
        **sampling,
        "act_fn": "silu",
        "norm_num_groups": 32,
        "attn_norm_num_groups": 32,
        "mid_block_scale_factor": 1,
        "center_input_sample": False,
        "time_embedding_type": "positional",
    }


def _kind(kind: str, side: str) -> str:
    return f"Resnet{side}sampleBlock2D" if kind == "Resnet" else f"{kind}{side}Block2D"


def _of_tokens(given: Mapping[str, Any], attends: list[bool]) -> dict[str, Any]:
    kinds = ["CrossAttn" if attention else "" for attention in attends]
    widths = [given["model_channels"] * multiple for multiple in given["channel_mult"]]
    width, heads, depth = given.get("num_head_channels", -1), given.get("num_heads", -1), given.get("transformer_depth")
    return {
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
        "cross_attention_dim": given["context_dim"],
        # diffusers' name for the number of heads
        "attention_head_dim": heads if width == -1 else [each // width for each in widths],
        **({"use_linear_projection": True} if given.get("use_linear_in_transformer") else {}),
        **({"transformer_layers_per_block": depth} if depth not in (None, 1) else {}),
    }
