"""Fake quantization operation by operation under autograd: the oracle of both rules for where gradients are cut off."""

import torch


def round_through(ratio):
    return ratio + (ratio.round() - ratio).detach()


def clip_inclusively(ratio, bottom, top):
    """``torch.clamp`` has no gradient at its very ends, or half of one, depending on how they are given."""
    bottom, top = bottom + 0 * ratio, top + 0 * ratio
    return torch.where(ratio < bottom, bottom, torch.where(ratio > top, top, ratio))


def chain(x, scale, zero_point, levels, clipping):
    """``after_rounding`` is what the published codes write down; ``before_rounding`` changes the order."""
    ends = -zero_point, levels - 1 - zero_point
    if clipping == "after_rounding":
        return clip_inclusively(round_through(x / scale), *ends) * scale
    return round_through(clip_inclusively(x / scale, *ends)) * scale
