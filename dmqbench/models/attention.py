"""Explicit attention inside diffusers networks, where the matrix products are to be quantized."""

from collections.abc import Mapping
from typing import Any

from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from dmqbench.quant.attention import AttentionQuantizers


def attention_modules(network: nn.Module) -> dict[str, Attention]:
    """Name → attention module, in the order of registration."""
    return {name: module for name, module in network.named_modules() if isinstance(module, Attention)}


def set_explicit_attention_(network: nn.Module, quantizers: Mapping[str, AttentionQuantizers]) -> None:
    """Make the named attention modules compute their products explicitly, through their quantizers.

    The others keep the fused kernel. Networks need no ``set_attn_processor`` for this, which not every diffusers model
    has.

    Raises:
        ValueError: the network has no attention of that name, or it is of a form that this processor does not cover.
    """
    modules = attention_modules(network)
    for name, operands in quantizers.items():
        if name not in modules:
            raise ValueError(f"the network has no attention module {name}")
        attention: Any = modules[name]
        if not _covered(attention):
            raise ValueError(f"attention {name}: spatial norms and added or absent projections are not supported")
        attention.set_processor(ExplicitAttention(operands))


def _covered(attention: Attention) -> bool:
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
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        # diffusers reads this signature to decide what it may pass; a module's own is too general and logs warnings.
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask)

    def forward(self, attn: Any, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """Return the attention output with the shape of ``x``: [B, N, C], or [B, C, H, W] with N = H·W."""
        tokens = x.flatten(2).transpose(1, 2) if x.ndim == 4 else x
        if attn.group_norm is not None:
            tokens = attn.group_norm(tokens.transpose(1, 2)).transpose(1, 2)
        query, key, value = self._operands(attn, tokens, context)
        if mask is not None:
            keys = key.shape[2]
            mask = attn.prepare_attention_mask(mask, keys, len(x)).view(len(x), attn.heads, -1, keys)
        out = self.quantizers(query, key, value, attn.scale, mask).transpose(1, 2).flatten(2)
        for layer in attn.to_out:  # the projection and its dropout
            out = layer(out)
        if x.ndim == 4:
            out = out.transpose(1, 2).reshape(x.shape)
        if attn.residual_connection:
            out = out + x
        return out / attn.rescale_output_factor

    @staticmethod
    def _operands(attn: Any, tokens: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value as [B, heads, N, d]."""
        if context is None:
            context = tokens
        elif attn.norm_cross is not None:
            context = attn.norm_encoder_hidden_states(context)

        def heads(projected: Tensor) -> Tensor:
            return projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        query, key, value = heads(attn.to_q(tokens)), heads(attn.to_k(context)), heads(attn.to_v(context))
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        return query, key, value
