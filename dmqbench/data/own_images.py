"""The images that are shipped, by dataset. Imports torch only where it hands them out."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

OWN_IMAGES: Mapping[str, tuple[int, int, int]] = {"digits": (1, 16, 16)}
"""Dataset → (C, H, W) of the images shipped for it."""

OWN_IMAGES_VERSION = 1
"""Raised when other images are shipped, or streams draw from other parts of them."""


def loaders(dataset: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return what loads the images of a dataset in ``OWN_IMAGES`` with their labels, and both in two parts."""
    from dmqbench.data.digits import load_digits, load_split

    return {"digits": (load_digits, load_split)}[dataset]


def own_images(dataset: str) -> "Tensor":
    """Return the images of a dataset in ``OWN_IMAGES``, uint8 [N, C, H, W], rounded as samples are."""
    from dmqbench.data.images import to_uint8

    return to_uint8(loaders(dataset)[0]()[0])
