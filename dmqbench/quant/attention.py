"""Attention as explicit matrix products, so that their operands can be quantized."""

import torch
from torch import Tensor, nn

from dmqbench.quant.context import StepContext
from dmqbench.quant.functional import widened
from dmqbench.quant.quantizer import ActivationQuantizer
from dmqbench.quant.spec import InputGroups, StepGroups


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

    def _through(self, operand: str, values: Tensor) -> Tensor:
        return self.get_submodule(operand)(widened(values)).to(values.dtype) if self.activation_on else values

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
        """Return softmax(scale · Q Kᵀ + mask) V, [B, heads, N, d], with quantized operands while switched on.

        The softmax is in float32, as in fused attention.

        Args:
            query: [B, heads, N, d].
            key, value: [B, heads, M, d].
            scale: factor on the scores, usually d^-½.
            mask: added to the scores, broadcastable to [B, heads, N, M].
        """
        scores = self._through("query", query) @ self._through("key", key).transpose(-1, -2) * scale
        if mask is not None:
            scores = scores + mask
        shares = self._through("scores", torch.softmax(widened(scores), dim=-1))
        return shares.to(value.dtype) @ self._through("value", value)
