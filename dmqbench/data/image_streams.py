"""The images that are restored or edited: for each stream its own, so that no image is calibrated on and evaluated.

Sample i of a stream works on image i mod size of that stream's part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dmqbench.data.archive_info import LEAST_IMAGES, ArchiveError
from dmqbench.data.archives import read_images
from dmqbench.data.images import to_signed, to_uint8
from dmqbench.data.noise import Stream
from dmqbench.data.own_images import loaders


@dataclass(frozen=True)
class ImageStreams:
    """Images of every stream, uint8 [N, C, H, W], and their labels, int64 [N], where they are known."""

    images: Mapping[Stream, Tensor]
    labels: Mapping[Stream, Tensor] | None = None

    def pixels(self, stream: Stream, indices: Sequence[int]) -> Tensor:
        """Return the images of samples ``indices`` as uint8 [B, C, H, W]."""
        return self.images[stream][self._places(stream, indices)]

    def signed(self, stream: Stream, indices: Sequence[int]) -> Tensor:
        """Return the images of samples ``indices`` as float32 [B, C, H, W] in [-1, 1]."""
        return to_signed(self.pixels(stream, indices))

    def labels_of(self, stream: Stream, indices: Sequence[int], classes: int) -> Tensor:
        """Return the images' own labels, int64 [B]; where they are unknown, sample index mod ``classes``."""
        if self.labels is None:
            return torch.tensor([index % classes for index in indices])
        return self.labels[stream][self._places(stream, indices)]

    def _places(self, stream: Stream, indices: Sequence[int]) -> Tensor:
        return torch.tensor(list(indices)) % len(self.images[stream])


def own_streams(dataset: str) -> ImageStreams:
    """Return shipped images: held-out ones for ``eval``, every other one of the training split for ``cal``, ``val``."""
    (train, train_labels), (held_out, held_out_labels) = loaders(dataset)[1]()
    images = {"cal": train[::2], "val": train[1::2], "eval": held_out}
    labels: dict[Stream, Tensor] = {"cal": train_labels[::2], "val": train_labels[1::2], "eval": held_out_labels}
    return ImageStreams({stream: to_uint8(values) for stream, values in images.items()}, labels)  # type: ignore[misc]


def file_streams(path: str | Path) -> ImageStreams:
    """Return the images of a folder or an archive in their order: every other one for ``eval``, half the rest for each.

    Images that are equal to an earlier one are left out: they would be in two streams.

    Raises:
        ArchiveError: they cannot be read, or are fewer than four.
    """
    images = torch.from_numpy(_distinct(read_images(path)))
    if len(images) < LEAST_IMAGES:
        raise ArchiveError(path, f"holds {len(images)} different images; at least {LEAST_IMAGES} are needed")
    return ImageStreams({"eval": images[::2], "cal": images[1::4], "val": images[3::4]})


def _distinct(images: np.ndarray) -> np.ndarray:
    """Return the images [N, …] without those that equal an earlier one."""
    _, first = np.unique(images.reshape(len(images), -1), axis=0, return_index=True)
    return images[np.sort(first)]
