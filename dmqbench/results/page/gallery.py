"""Samples of a store as data URIs, within a budget: the page holds them, however many jobs there are."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError

from dmqbench.results.stored import first_images
from dmqbench.store.artifact import StoreError
from dmqbench.store.artifacts import Store

MOST_IMAGES, FEWEST_IMAGES = 24, 4
LONGEST_SIDE = 128
"""Larger images are reduced to it."""
PIXEL_BUDGET = 12 * 2**20
"""Values of all images together; as PNG and base64 they take at most about 4/3 of that in bytes."""

UNREADABLE = (OSError, ValueError, SafetensorError, StoreError)
"""What reading the samples of a store may raise, where they are gone or damaged."""

Pixels = NDArray[np.uint8]


class Strip(NamedTuple):
    """``count`` images of one size below each other, in one PNG as a data URI: one is read faster than many."""

    source: str
    count: int
    width: int
    height: int


@dataclass(frozen=True)
class Gallery:
    """The first images of each samples artifact, and one line for each that has none."""

    strips: dict[str, "Strip"] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    reduced: bool = False


def gallery_of(root: Path, samples: Iterable[str], budget: int = PIXEL_BUDGET) -> Gallery:
    """Read the first images of the ``samples`` artifacts of the store: as many of each as the budget allows.

    Each gets 24 where that fits, and no fewer than 4; artifacts for which that is too many get none.
    """
    store, wanted = Store(root), list(dict.fromkeys(samples))
    strips: dict[str, Strip] = {}
    missing: dict[str, str] = {}
    reduced, left = False, budget
    for place, id in enumerate(wanted):
        try:
            pixels = first_images(store, id, MOST_IMAGES)
            _check(id, pixels)
        except UNREADABLE as error:
            missing[id] = f"no images: {error}"
            continue
        pictures = [_picture(image) for image in pixels]
        size = max(1, pictures[0].width * pictures[0].height * pixels.shape[1])
        count = min(MOST_IMAGES, max(FEWEST_IMAGES, left // (len(wanted) - place) // size))
        if count * size > left:
            missing[id] = f"images are left out: the page holds those of {len(strips)} jobs; --sweep chooses others"
            continue
        left -= min(count, len(pictures)) * size
        reduced = reduced or max(pixels.shape[2:]) > LONGEST_SIDE
        strips[id] = _strip(pictures[:count])
    return Gallery(strips, missing, reduced)


def _check(id: str, pixels: Pixels) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or pixels.size == 0:
        raise ValueError(f"samples {id} hold {pixels.dtype} {pixels.shape}, not uint8 N×C×H×W")


def _picture(image: Pixels) -> Image.Image:
    picture = Image.fromarray(image[0] if len(image) == 1 else np.moveaxis(image, 0, -1))
    if max(picture.size) > LONGEST_SIDE:
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return picture


def _strip(pictures: Sequence[Image.Image]) -> Strip:
    width, height = pictures[0].size
    whole = Image.new(pictures[0].mode, (width, height * len(pictures)))
    for place, picture in enumerate(pictures):
        whole.paste(picture, (0, place * height))
    data = io.BytesIO()
    whole.save(data, format="PNG")
    source = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    return Strip(source, len(pictures), width, height)
