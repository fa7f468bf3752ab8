"""The original's autoencoders as diffusers': all that makes their configuration is in the shapes of their weights."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from dmqbench.models.compvis.renaming import ATTENTION, Block, renamed

_RESNET = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"nin_shortcut": "conv_shortcut"}
_LAYER = {"": ""}
_CODES = "quantize.embedding.weight"
_TRAINING = "loss."


def autoencoder_config(tensors: Mapping[str, Tensor], sample_size: int, scaling_factor: float) -> dict[str, Any]:
    """Return diffusers' configuration.

    Args:
        tensors: by the original's names.
        sample_size: of its latents.
        scaling_factor: what latents are multiplied with before the denoiser sees them.
    """
    depth = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("encoder.down."))
    widths = [len(tensors[f"encoder.down.{level}.block.0.conv1.weight"]) for level in range(depth)]
    kinds = {
        side: ["Attn" if f"{place}.{level}.attn.0.q.weight" in tensors else "" for level in range(depth)]
        for side, place in (("Down", "encoder.down"), ("Up", "decoder.up"))
    }
    config = {
        "_class_name": "VQModel" if _CODES in tensors else "AutoencoderKL",
        "in_channels": tensors["encoder.conv_in.weight"].shape[1],
        "out_channels": len(tensors["decoder.conv_out.weight"]),
        "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
        "block_out_channels": widths,
        "down_block_types": [f"{kind}DownEncoderBlock2D" for kind in kinds["Down"]],
        "up_block_types": [f"{kind}UpDecoderBlock2D" for kind in reversed(kinds["Up"])],
        "layers_per_block": sum(f"encoder.down.0.block.{layer}.conv1.weight" in tensors for layer in range(9)),
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in tensors,
        "norm_num_groups": 32,
        "act_fn": "silu",
        "sample_size": sample_size * 2 ** (depth - 1),
        "scaling_factor": scaling_factor,
    }
    if _CODES in tensors:
        config["num_vq_embeddings"], config["vq_embed_dim"] = tensors[_CODES].shape
    return config


def converted_autoencoder(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights of the autoencoder that ``config`` makes, by diffusers' names; what trained it is left out.

    Raises:
        ModelError: a tensor belongs to no block of it.
    """
    network = {name: tensor for name, tensor in tensors.items() if not name.startswith(_TRAINING)}
    return renamed(network, _blocks(config))


def _blocks(config: Mapping[str, Any]) -> Iterator[Block]:
    yield from (Block(name, name, _LAYER) for name in ("quant_conv", "post_quant_conv", "quantize.embedding"))
    depth, layers = len(config["block_out_channels"]), config["layers_per_block"]
    for side in ("encoder", "decoder"):
        yield Block(f"{side}.conv_in", f"{side}.conv_in", _LAYER)
        yield Block(f"{side}.mid.block_1", f"{side}.mid_block.resnets.0", _RESNET)
        yield Block(f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0", ATTENTION)
        yield Block(f"{side}.mid.block_2", f"{side}.mid_block.resnets.1", _RESNET)
        yield Block(f"{side}.norm_out", f"{side}.conv_norm_out", _LAYER)
        yield Block(f"{side}.conv_out", f"{side}.conv_out", _LAYER)
    for level in range(depth):
        yield from _level(f"encoder.down.{level}", f"encoder.down_blocks.{level}", "down", layers)
        # The original counts levels of its decoder from the image, diffusers from the latent.
        yield from _level(f"decoder.up.{level}", f"decoder.up_blocks.{depth - 1 - level}", "up", layers + 1)


def _level(original: str, name: str, side: str, layers: int) -> Iterator[Block]:
    for layer in range(layers):
        yield Block(f"{original}.block.{layer}", f"{name}.resnets.{layer}", _RESNET)
        yield Block(f"{original}.attn.{layer}", f"{name}.attentions.{layer}", ATTENTION)
    yield Block(f"{original}.{side}sample", f"{name}.{side}samplers.0", {"conv": "conv"})
