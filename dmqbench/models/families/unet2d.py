"""U-Nets of pixels or latents without text: DDPM, ADM, and LDM without conditions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from dmqbench.models.config_values import (
    COUNT,
    FLAG,
    NULL,
    SIDES,
    Kind,
    either,
    list_of,
    number,
    whole,
    words,
)
from dmqbench.models.families.family import Family, Problem


def _blocks(middle: str, codec: str, sampling: str) -> Kind:
    """Names of blocks without cross-attention, which these networks lack."""
    kinds = (*(f"{kind}{middle}" for kind in ("", "Attn", "Skip", "AttnSkip", "K")), f"Resnet{sampling}")
    names = tuple(f"{kind}Block2D" for kind in (*kinds, f"{middle}{codec}", f"Attn{middle}{codec}"))
    return Kind(names, lambda value: isinstance(value, str) and value.removeprefix("UNetRes") in names)


def halvings(config: Mapping[str, Any]) -> int:
    """Return how many times smaller the smallest maps of a U-Net are; diffusers makes four blocks of it unless told."""
    return 2 ** max(0, len(config.get("block_out_channels", range(4))) - 1)


_STYLES = words("conv", "resnet")


@dataclass(frozen=True)
class UNet2D(Family):
    """``UNet2DModel``: unconditional, or with class labels."""

    network = "UNet2DModel"
    kinds: ClassVar[Mapping[str, Kind]] = {
        "sample_size": SIDES,
        **{key: COUNT for key in ("in_channels", "out_channels", "layers_per_block", "norm_num_groups")},
        **{key: either(COUNT, NULL) for key in ("attention_head_dim", "attn_norm_num_groups", "time_embedding_dim")},
        **{key: either(COUNT, NULL) for key in ("num_class_embeds", "num_train_timesteps", "num_attention_heads")},
        **{key: FLAG for key in ("center_input_sample", "flip_sin_to_cos", "add_attention")},
        **{key: NULL for key in ("class_embed_type", "addition_embed_type", "encoder_hid_dim_type")},
        **{key: number() for key in ("freq_shift", "mid_block_scale_factor")},
        "time_embedding_type": words("positional", "fourier", "learned"),
        "down_block_types": list_of(_blocks("Down", "Encoder", "Downsample")),
        "up_block_types": list_of(_blocks("Up", "Decoder", "Upsample")),
        "mid_block_type": words("UNetMidBlock2D", None),
        "block_out_channels": list_of(COUNT),
        "downsample_padding": whole(0),
        "downsample_type": _STYLES,
        "upsample_type": _STYLES,
        "dropout": number(0, 1),
        "act_fn": words("swish", "silu", "mish", "gelu", "relu"),
        "norm_eps": number(0),
        "resnet_time_scale_shift": words("default", "scale_shift"),
    }

    @property
    def label_entries(self) -> int | None:
        return self.config.get("num_class_embeds")

    @property
    def size_step(self) -> int:
        return halvings(self.config)

    @classmethod
    def problem(cls, config: Mapping[str, Any]) -> Problem | None:
        channels, groups = config.get("block_out_channels", ()), config.get("norm_num_groups", 32)
        down, up = config.get("down_block_types", ()), config.get("up_block_types", ())
        for key in ("down_block_types", "up_block_types"):
            if channels and key in config and len(config[key]) != len(channels):
                return key, f"are {len(config[key])} blocks, and block_out_channels are of {len(channels)}"
        if any(width % groups for width in channels) and not any("Skip" in name for name in (*down, *up)):
            return "block_out_channels", f"are not all divisible by norm_num_groups={groups}"
        heads = config.get("num_attention_heads") or 1
        if any(width % heads for width in channels):
            return "num_attention_heads", "does not divide each of block_out_channels"
        size, least = config.get("sample_size"), 2 ** max(0, len(channels) - 1)
        if any(side % least for side in (size if isinstance(size, list) else [size or 0])):
            return "sample_size", f"is not divisible by {least}, and {len(channels)} blocks halve it"
        if config.get("time_embedding_type") == "learned" and config.get("num_train_timesteps") is None:
            return "num_train_timesteps", "must be given with time_embedding_type=learned"
        return None
