"""What restoration starts from: an image of which part of the detail is gone."""

import torch.nn.functional as F
from torch import Tensor


def super_resolution_condition(images: Tensor, factor: int) -> Tensor:
    """Return the images [N, C, H, W] reduced ``factor`` times by area averaging, enlarged again bilinearly.

    This is what a network for super-resolution is given beside its state: the low-resolution image at the size of the
    image it is to restore, in the range of ``images``.

    Raises:
        ValueError: ``factor`` is below 2, or does not divide height and width.
    """
    height, width = images.shape[-2:]
    if factor < 2 or height % factor or width % factor:
        raise ValueError(f"factor {factor}: allowed are 2 and more that divide {height} and {width}")
    reduced = F.avg_pool2d(images, factor)
    return F.interpolate(reduced, size=(height, width), mode="bilinear", align_corners=False)
