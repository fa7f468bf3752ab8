"""The original's U-Net as diffusers': it counts its blocks through, where diffusers counts them in every level."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from dmqbench.models.compvis.renaming import ATTENTION, Block, renamed

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_RESAMPLER = {"op": "conv", "conv": "conv"}
_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def converted_unet(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], heads_outside: bool = False
) -> dict[str, Tensor]:
    """Return the weights of the U-Net that ``config`` makes, by diffusers' names.

    Args:
        tensors: by the original's names.
        config: diffusers'.
        heads_outside: attentions keep the queries of all heads together, then their keys, then their values; the rule
            is that they keep query, key and value of a head together. Both are of one shape.

    Raises:
        ModelError: a tensor belongs to no block of this network.
    """
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".qkv." in name:
            heads = config.get("num_attention_heads") or len(tensor) // 3 // config["attention_head_dim"]
            for letter, rows in zip("qkv", _split(tensor, heads, heads_outside), strict=True):
                split[name.replace(".qkv.", f".{letter}.")] = rows
        else:
            split[name] = tensor
    return renamed(split, _blocks(config))


def _split(rows: Tensor, heads: int, heads_outside: bool) -> Tensor:
    """Query, key and value, [3, C, …], of [3 C, …]."""
    width, rest = len(rows) // 3 // heads, rows.shape[1:]
    if not heads_outside:
        rows = rows.reshape(heads, 3, width, *rest).transpose(0, 1)
    return rows.reshape(3, heads * width, *rest)


def _blocks(config: Mapping[str, Any]) -> Iterator[Block]:
    yield from (Block(original, name, {"": ""}) for original, name in _ENDS.items())
    attention = None if config["_class_name"] == "UNet2DConditionModel" else ATTENTION
    resampler = _RESNET if config.get("downsample_type") == "resnet" else _RESAMPLER
    yield from _down(config, attention, resampler)
    yield Block("middle_block.0", "mid_block.resnets.0", _RESNET)
    yield Block("middle_block.1", "mid_block.attentions.0", attention)
    yield Block("middle_block.2", "mid_block.resnets.1", _RESNET)
    yield from _up(config, attention, resampler)


_Layers = Mapping[str, str] | None


def _down(config: Mapping[str, Any], attention: _Layers, resampler: _Layers) -> Iterator[Block]:
    kinds, count = config["down_block_types"], 1  # after the first convolution
    for level, kind in enumerate(kinds):
        for layer in range(config["layers_per_block"]):
            yield Block(f"input_blocks.{count}.0", f"down_blocks.{level}.resnets.{layer}", _RESNET)
            if "Attn" in kind:
                yield Block(f"input_blocks.{count}.1", f"down_blocks.{level}.attentions.{layer}", attention)
            count += 1
        if level < len(kinds) - 1:
            yield Block(f"input_blocks.{count}.0", f"down_blocks.{level}.downsamplers.0", resampler)
            count += 1


def _up(config: Mapping[str, Any], attention: _Layers, resampler: _Layers) -> Iterator[Block]:
    kinds, layers = config["up_block_types"], config["layers_per_block"] + 1  # one for each skip of a level
    for level, kind in enumerate(kinds):
        for layer in range(layers):
            place = f"output_blocks.{level * layers + layer}"
            yield Block(f"{place}.0", f"up_blocks.{level}.resnets.{layer}", _RESNET)
            if "Attn" in kind:
                yield Block(f"{place}.1", f"up_blocks.{level}.attentions.{layer}", attention)
        if level < len(kinds) - 1:  # behind the last block of a level, within its place
            last = f"output_blocks.{level * layers + layers - 1}.{2 if 'Attn' in kind else 1}"
            yield Block(last, f"up_blocks.{level}.upsamplers.0", resampler)
