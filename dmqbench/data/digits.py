"""scikit-learn's 1,797 scanned digits as model images."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGE_SIZE = 16
CLASSES = 10


@cache
def load_digits() -> tuple[Tensor, Tensor]:
    """Return images [1797, 1, 16, 16], float32 in [-1, 1], and labels [1797], int64 in 0..9.

    The scans are 8×8 with grey values 0..16; they are enlarged bilinearly, so that the pixel UNet has three
    resolutions to work on.
    """
    from sklearn.datasets import load_digits as load_scans

    pixels, digits = load_scans(return_X_y=True)
    grey = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    images = F.interpolate(grey, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False)
    return images * 2 - 1, torch.tensor(digits, dtype=torch.int64)


@cache
def load_split() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return (train, held-out) images and labels: every fifth scan is held out (359 of 1,797)."""
    images, labels = load_digits()
    held_out = torch.arange(len(images)) % 5 == 0
    return (images[~held_out], labels[~held_out]), (images[held_out], labels[held_out])
