"""Explicit attention: fused attention when nothing is quantized, else products of quantized operands."""

import pytest
import torch
import torch.nn.functional as F

from dmqbench.quant.attention import AttentionQuantizers
from dmqbench.quant.context import StepContext
from dmqbench.quant.functional import affine_parameters, fake_quantize


def operands(query_tokens=5, key_tokens=7):
    shapes = ((2, 3, query_tokens, 4), (2, 3, key_tokens, 4), (2, 3, key_tokens, 4))
    return tuple(torch.randn(shape) for shape in shapes)


@pytest.mark.parametrize("masked", [False, True])
def test_switched_off_it_is_the_fused_attention(masked):
    query, key, value = operands()
    mask = torch.randn(2, 1, 1, 7) if masked else None
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3)
    off = AttentionQuantizers(StepContext(), 256)
    torch.testing.assert_close(off(query, key, value, 0.3, mask), expected, rtol=1e-5, atol=1e-5)


def test_every_operand_of_both_products_is_quantized():
    query, key, value = operands()
    attention = AttentionQuantizers(StepContext(), 8)
    ranges = {"query": (-2.0, 2.0), "key": (-1.0, 3.0), "scores": (0.0, 1.0), "value": (-3.0, 1.0)}
    grids = {name: affine_parameters(*map(torch.tensor, ends), 8) for name, ends in ranges.items()}
    for name, (scale, zero_point) in grids.items():
        attention.get_submodule(name).set_parameters_(scale.view(1, 1), zero_point.view(1, 1))
    attention.activation_on = True
    q, k, v = (
        fake_quantize(operand, *grids[name], 8) for name, operand in (("query", query), ("key", key), ("value", value))
    )
    scores = fake_quantize(torch.softmax(0.5 * q @ k.transpose(-1, -2), -1), *grids["scores"], 8)
    torch.testing.assert_close(attention(query, key, value, 0.5), scores @ v)
    assert len((scores).unique()) > 2
