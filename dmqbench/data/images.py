"""The one image type that every metric accepts, uint8 [N, C, H, W] with C = 1 or 3, and its conversions."""

import math

import torch
from torch import Tensor

IMAGE_CHANNELS = (1, 3)
"""Of grey images, and of those in colour."""


class ImageError(ValueError):
    """The tensor is not a batch of images; the message says in one line what it is instead."""


def require_images(images: Tensor, what: str = "images") -> Tensor:
    """Return ``images`` if they are uint8 [N, C, H, W], N ≥ 1, C in {1, 3}, else raise ``ImageError``."""
    if not isinstance(images, Tensor):
        raise ImageError(f"{what}: expected a tensor of uint8 N×C×H×W images, got {type(images).__name__}")
    if images.dtype != torch.uint8:
        raise ImageError(f"{what}: expected uint8 images, got {_described(images)}; convert with to_uint8")
    _require_shape(images, what)
    return images


def require_pair(images: Tensor, reference: Tensor) -> None:
    """Check that both are images and that they pair one to one: the same N, C, H and W."""
    require_images(images, "images")
    require_images(reference, "reference")
    if images.shape != reference.shape:
        raise ImageError(f"images {_shape(images)} and reference {_shape(reference)} do not pair one to one")


def to_uint8(x: Tensor) -> Tensor:
    """Return uint8 images of floats [N, C, H, W] in [-1, 1]: clamp, round (x + 1) / 2 · 255 half to even.

    Values outside [-1, 1] are clamped, as a sampler's last step leaves them; NaN and infinity are refused.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = str(x.dtype).removeprefix("torch.") if isinstance(x, Tensor) else type(x).__name__
        raise ImageError(f"to_uint8: expected floats in [-1, 1], got {got}")
    _require_shape(x, "to_uint8")
    broken = int((~torch.isfinite(x)).flatten(1).any(dim=1).sum())
    if broken:
        raise ImageError(f"to_uint8: {broken} of {len(x)} images hold NaN or infinity")
    return ((x.float().clamp(-1, 1) + 1) / 2 * 255).round().to(torch.uint8)


def to_float01(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the images as floats in [0, 1]."""
    return require_images(images).to(dtype) / 255


def to_signed(images: Tensor) -> Tensor:
    """Return the images as float32 in [-1, 1], the range of the models and of feature extractors."""
    return to_float01(images) * 2 - 1


def _require_shape(images: Tensor, what: str) -> None:
    if images.ndim != 4 or images.shape[1] not in IMAGE_CHANNELS:
        raise ImageError(f"{what}: expected N×C×H×W with C = 1 or 3, got {_shape(images)}")
    if images.numel() == 0:
        raise ImageError(f"{what}: no images ({_shape(images)})")


def _shape(images: Tensor) -> str:
    return "×".join(str(size) for size in images.shape) or "a scalar"


def _described(images: Tensor) -> str:
    dtype = str(images.dtype).removeprefix("torch.")
    if images.numel() == 0 or images.is_complex():
        return dtype
    low, high = images.min().item(), images.max().item()
    return f"{dtype} holding NaN" if math.isnan(low) else f"{dtype} in [{low:g}, {high:g}]"
