"""What an integer kernel can hold."""

import torch


def fits_int8(integers: torch.Tensor) -> bool:
    """Whether a signed 8-bit kernel can hold a layer's integers, plain or shifted.

    An asymmetric 8-bit weight does not always fit; shifted ones of 4 bits do with e in −3..0.
    """
    return bool(integers.min() >= -128 and integers.max() <= 127)
