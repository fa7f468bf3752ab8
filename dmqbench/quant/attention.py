"""Attention as explicit matrix products, so that their operands can be quantized."""

import torch
from torch import Tensor, nn

from dmqbench.quant.context import StepContext
from dmqbench.quant.quantizer import ActivationQuantizer
from dmqbench.quant.spec import InputGroups, StepGroups


def explicit_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    mask: Tensor | None = None,
    quantize_query: nn.Module | None = None,
    quantize_key: nn.Module | None = None,
    quantize_scores: nn.Module | None = None,
    quantize_value: nn.Module | None = None,
) -> Tensor:
    """softmax(scale · Q Kᵀ + mask) V with every operand of the two products optionally quantized.

    Args:
        query: [B, heads, N, d].
        key, value: [B, heads, M, d].
        scale: factor on the scores, usually d^-½.
        mask: added to the scores, broadcastable to [B, heads, N, M].
        quantize_*: modules applied to an operand; None leaves it in full precision.

    Returns:
        [B, heads, N, d].
    """

    def through(quantizer: nn.Module | None, operand: Tensor) -> Tensor:
        return operand if quantizer is None else quantizer(operand)

    scores = through(quantize_query, query) @ through(quantize_key, key).transpose(-1, -2) * scale
    if mask is not None:
        scores = scores + mask
    probabilities = torch.softmax(scores, dim=-1)
    return through(quantize_scores, probabilities) @ through(quantize_value, value)


class AttentionQuantizers(nn.Module):
    """The activation quantizers of one attention module, named by the operand that they quantize.

    Their channel axis is the last one (head dimension, or keys for the scores); a single range covers all heads.
    """

    def __init__(self, context: StepContext, levels: int, steps: StepGroups | None = None) -> None:
        super().__init__()
        self.activation_on = False
        for operand in ("query", "key", "scores", "value"):
            quantizer = ActivationQuantizer(context, levels, InputGroups(1), channel_axis=-1, steps=steps)
            self.add_module(operand, quantizer)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
        """Return the attention output [B, heads, N, d], with quantized operands while switched on."""
        operands = dict(self.named_children()) if self.activation_on else {}
        return explicit_attention(
            query,
            key,
            value,
            scale=scale,
            mask=mask,
            quantize_query=operands.get("query"),
            quantize_key=operands.get("key"),
            quantize_scores=operands.get("scores"),
            quantize_value=operands.get("value"),
        )
