"""Blocks of diffusers' networks by their classes, and what a layer is inside them."""

from typing import Literal

from diffusers.models.attention import BasicTransformerBlock, JointTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.normalization import (
    AdaLayerNormContinuous,
    AdaLayerNormZero,
    AdaLayerNormZeroSingle,
    SD35AdaLayerNormZeroX,
)
from diffusers.models.resnet import ResnetBlock2D, ResnetBlockCondNorm2D
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock
from diffusers.models.unets.unet_2d_blocks import KAttentionBlock
from torch import nn

TRANSFORMER_BLOCKS = (BasicTransformerBlock, JointTransformerBlock, FluxTransformerBlock, FluxSingleTransformerBlock)

BLOCKS = (ResnetBlock2D, ResnetBlockCondNorm2D, KAttentionBlock, *TRANSFORMER_BLOCKS, Attention)
"""What is reconstructed as one unit; of nested ones the outermost counts."""

_ADAPTIVE_NORMS = (AdaLayerNormZero, AdaLayerNormZeroSingle, SD35AdaLayerNormZeroX, AdaLayerNormContinuous)

_OF_TEXT = frozenset(("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "norm1_context", "ff_context"))
"""Parts of blocks with two streams, in diffusers' words, that are the text's alone."""

Tokens = Literal["image", "text", "both"]


def is_modulation(parent: nn.Module, around: nn.Module) -> bool:
    """Whether the layer of ``parent`` shifts, scales and gates the transformer block ``around`` it."""
    return isinstance(around, TRANSFORMER_BLOCKS) and isinstance(parent, _ADAPTIVE_NORMS)


def tokens_of(name: str, around: nn.Module, of_condition: bool) -> Tokens:
    """Return whose tokens a layer works on.

    Args:
        around: the block that it is part of.
        of_condition: it reads tokens, and nothing of the sample.
    """
    if isinstance(around, FluxSingleTransformerBlock):
        return "both"
    return "text" if of_condition or not _OF_TEXT.isdisjoint(name.split(".")) else "image"
