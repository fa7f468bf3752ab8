"""Explicit attention inside diffusers networks, where the matrix products are to be quantized."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    JointAttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
    XFormersJointAttnProcessor,
)
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from dmqbench.quant.attention import AttentionQuantizers


def attention_modules(network: nn.Module) -> dict[str, nn.Module]:
    """Name → attention module, in the order of registration."""
    kinds: tuple[type, ...] = (Attention, AttentionModuleMixin)
    found: dict[str, nn.Module] = dict(network.named_modules())
    return {name: module for name, module in found.items() if isinstance(module, kinds)}


def set_heads_(network: Any) -> None:
    """Give the attentions of a ``UNet2DModel`` as many heads as ``num_attention_heads`` of its configuration says.

    LDM-8's have 8 at every width. diffusers knows one width of a head for all, and keeps this key unread.
    """
    heads = network.config.get("num_attention_heads") if isinstance(network, UNet2DModel) else None
    if heads is not None:
        modules: Mapping[str, Any] = attention_modules(network)
        for attention in modules.values():
            attention.heads, attention.scale = heads, (attention.inner_dim // heads) ** -0.5


def set_explicit_attention_(network: nn.Module, quantizers: Mapping[str, AttentionQuantizers]) -> None:
    """Make the named attention modules compute their products explicitly, through their quantizers.

    The others keep the fused kernel. Networks need no ``set_attn_processor`` for this, which not every diffusers model
    has.

    Raises:
        ValueError: the network has no attention of that name, or it is of a form that no processor here covers.
    """
    modules = attention_modules(network)
    for name, operands in quantizers.items():
        if name not in modules:
            raise ValueError(f"the network has no attention module {name}")
        attention: Any = modules[name]
        attention.set_processor(_explicit_form(name, attention)(operands))


def form_of(attention: Any) -> "type[ExplicitAttention] | None":
    """The processor here that computes what an attention module's own computes; None if there is none."""
    own = type(attention.processor)
    return own if issubclass(own, ExplicitAttention) else _EXPLICIT.get(own)


def _explicit_form(name: str, attention: Any) -> "type[ExplicitAttention]":
    """The processor here that computes what the module's own computes; ValueError, one line, if there is none."""
    form = form_of(attention)
    if form is None:
        known = ", ".join(kind.__name__ for kind in _EXPLICIT)
        raise ValueError(f"attention {name}: {type(attention.processor).__name__} is not known here (allowed: {known})")
    if form is ExplicitAttention and not _ordinary(attention):
        raise ValueError(f"attention {name}: spatial norms and added or absent projections are not supported")
    return form


def _ordinary(attention: Attention) -> bool:
    """Whether the module is an ordinary self- or cross-attention."""
    absent = attention.to_k is None or attention.to_v is None or attention.to_out is None
    return attention.spatial_norm is None and attention.add_k_proj is None and not absent


class ExplicitAttention(nn.Module):
    """A diffusers attention processor: projections as in the network, products as in ``quant.attention``.

    It is a module, so that its quantizers move, train and are saved with the network.
    """

    def __init__(self, quantizers: AttentionQuantizers) -> None:
        super().__init__()
        self.quantizers = quantizers

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Any:
        # diffusers reads this signature to decide what it may pass; a module's own is too general and logs warnings.
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask)

    def forward(self, attn: Any, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """Return the attention output with the shape of ``x``: [B, N, C], or [B, C, H, W] with N = H·W."""
        tokens = x.flatten(2).transpose(1, 2) if x.ndim == 4 else x
        if attn.group_norm is not None:
            tokens = attn.group_norm(tokens.transpose(1, 2)).transpose(1, 2)
        read = tokens if context is None else context
        if context is not None and attn.norm_cross is not None:
            read = attn.norm_encoder_hidden_states(context)
        query = _operand(attn, attn.to_q, attn.norm_q, tokens)
        key = _operand(attn, attn.to_k, attn.norm_k, read)
        value = _operand(attn, attn.to_v, None, read)
        if mask is not None:
            keys = key.shape[2]
            mask = attn.prepare_attention_mask(mask, keys, len(x)).view(len(x), attn.heads, -1, keys)
        out = _projected(attn, self.quantizers(query, key, value, attn.scale, mask).transpose(1, 2).flatten(2))
        if x.ndim == 4:
            out = out.transpose(1, 2).reshape(x.shape)
        if attn.residual_connection:
            out = out + x
        return out / attn.rescale_output_factor


class ExplicitJointAttention(ExplicitAttention):
    """Tokens of the image and, where they are given, of the text attend to all of both (SD3)."""

    text_first = False
    """Whether the text's tokens stand before the image's; positions are counted in that order."""

    def forward(
        self,
        attn: Any,
        x: Tensor,
        text: Tensor | None,
        mask: Tensor | None,
        rotary: Any = None,
    ) -> Any:
        """Return the image's output [B, N, C], with a text [B, M, C'] also that one's.

        Args:
            rotary: cosines and sines of the positions, both [N + M, d].
        """
        if mask is not None:
            raise ValueError("masks are not supported in attention over an image and a text together")
        streams = [self._of_image(attn, x)] + ([] if text is None else [self._of_text(attn, text)])
        sizes = [query.shape[2] for query, *_ in streams]
        query, key, value = (torch.cat(parts, 2) for parts in zip(*self._ordered(streams), strict=True))
        if rotary is not None:
            query, key = (_rotated(operand, rotary) for operand in (query, key))
        out = self.quantizers(query, key, value, query.shape[-1] ** -0.5).transpose(1, 2).flatten(2)
        image, *of_text = self._ordered(out.split(self._ordered(sizes), dim=1))
        image = _projected(attn, image)
        if not of_text:
            return image
        # The last block of SD3 has no further use for its text.
        return image, of_text[0] if attn.to_add_out is None else attn.to_add_out(of_text[0])

    def _ordered(self, streams: Sequence[Any]) -> list[Any]:
        """What belongs to image and text in the order of their tokens, or back."""
        return list(reversed(streams)) if self.text_first else list(streams)

    @staticmethod
    def _of_image(attn: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value as [B, heads, N, d]."""
        query, key = _operand(attn, attn.to_q, attn.norm_q, x), _operand(attn, attn.to_k, attn.norm_k, x)
        return query, key, _operand(attn, attn.to_v, None, x)

    @staticmethod
    def _of_text(attn: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query = _operand(attn, attn.add_q_proj, attn.norm_added_q, x)
        key = _operand(attn, attn.add_k_proj, attn.norm_added_k, x)
        return query, key, _operand(attn, attn.add_v_proj, None, x)


class ExplicitFluxAttention(ExplicitJointAttention):
    """The same with positions, and where blocks have one stream without projections of the output (Flux)."""

    text_first = True

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        return nn.Module.__call__(self, attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)


def _operand(attn: Any, projection: nn.Module, norm: nn.Module | None, tokens: Tensor) -> Tensor:
    """Query, key or value as [B, heads, N, d] of tokens [B, N, C]."""
    operand = projection(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
    return operand if norm is None else norm(operand)


def _rotated(operand: Tensor, rotary: Any) -> Tensor:
    rotated: Any = apply_rotary_emb(operand, rotary, sequence_dim=2)
    return rotated


def _projected(attn: Any, out: Tensor) -> Tensor:
    """[B, N, C] through the projection of the output and its dropout, where the module has them."""
    for layer in getattr(attn, "to_out", None) or ():
        out = layer(out)
    return out


_EXPLICIT: Mapping[type[Any], type[ExplicitAttention]] = {
    **dict.fromkeys((AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor, XFormersAttnProcessor), ExplicitAttention),
    **dict.fromkeys((JointAttnProcessor2_0, XFormersJointAttnProcessor), ExplicitJointAttention),
    FluxAttnProcessor: ExplicitFluxAttention,
}
"""Of diffusers' own processors, which compute the same functions."""
