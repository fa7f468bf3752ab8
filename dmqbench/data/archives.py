"""Images that another program wrote: an npz archive or a folder. Nothing of them is trusted; needs no torch.

An archive is what ADM's evaluation suite reads and writes: one uint8 array N×H×W×C (N×C×H×W is understood too), called
``arr_0``, ``samples`` or ``images``, or else the first one. A folder holds PNG, JPEG or WebP files of one size, in the
order in which a reader counts (img2 before img10). Pixels are what a viewer shows: an image that is to be turned is
turned, nothing is scaled, cut, flattened or converted, and what would need it is refused.
"""

import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dmqbench.data.archive_info import ArchiveError, ArchiveInfo, Images, times
from dmqbench.data.image_folders import folder_batches, image_files, inspect_folder
from dmqbench.data.npz_images import inspect_npz, npz_batches

LARGEST_READ = 16 * 2**30
"""Bytes of pixels that are held at once."""

_BATCH = 64


def inspect(path: str | Path) -> ArchiveInfo:
    """Return how many images of which size are there, reading headers only.

    Raises:
        ArchiveError: there are none, or they are not all uint8 images of one size with 1 or 3 channels.
    """
    path = Path(path)
    if path.is_dir():
        return inspect_folder(path)
    if not path.exists():
        raise ArchiveError(path, "there is no such file or folder")
    return inspect_npz(path)


def read_batches(path: str | Path, batch: int = _BATCH, limit: int | None = None) -> Iterator[Images]:
    """Yield the first ``limit`` images in parts of ``batch``, of which the last may be smaller.

    Raises:
        ArchiveError: as ``inspect``; or the file is damaged behind its header.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: at least one image")
    yield from (folder_batches if path.is_dir() else npz_batches)(path, batch, limit)


def read_images(path: str | Path, limit: int | None = None) -> Images:
    """Return the first ``limit`` images as uint8 [N, C, H, W] in memory.

    Raises:
        ArchiveError: as ``read_batches``; or they would take more than 16 GiB.
    """
    info = inspect(path)
    count = info.count if limit is None else min(limit, info.count)
    if count * info.image_bytes > LARGEST_READ:
        fitting = LARGEST_READ // info.image_bytes
        raise ArchiveError(path, f"{count} images of {times(info.shape)} do not fit into memory; at most {fitting} do")
    images = np.empty((count, *info.shape), np.uint8)
    start = 0
    for part in read_batches(path, limit=count):
        images[start : start + len(part)] = part
        start += len(part)
    return images


def content_hash(images: Images) -> str:
    """Return the sha256 of the pixels of uint8 [N, C, H, W] and the shape of one, whatever file they came from."""
    return _content_hash([images])


def archive_hash(path: str | Path) -> str:
    """Return ``content_hash`` of all images in ``path``, holding a few at a time."""
    return _content_hash(read_batches(path))


def stored_hash(path: str | Path) -> str:
    """Return ``archive_hash``, every pixel being read once as long as no file changes: a plan and its job both ask.

    Raises:
        ArchiveError: the images cannot be read.
    """
    path = Path(path)
    try:
        files = image_files(path) if path.is_dir() else [path]
        state = tuple((file.name, *_size_and_time(file)) for file in files)
    except OSError as error:
        raise ArchiveError(path, f"cannot be read ({error.strerror})") from None
    return _hash_once(path, state)


def _size_and_time(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


@cache
def _hash_once(path: Path, state: tuple[Any, ...]) -> str:
    return archive_hash(path)


def _content_hash(parts: Any) -> str:
    digest = hashlib.sha256()
    for number, part in enumerate(parts):
        if number == 0:
            digest.update(f"uint8 {times(part.shape[1:])}\n".encode())
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()
