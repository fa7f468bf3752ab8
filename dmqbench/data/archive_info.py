"""Images that another program wrote: what is known of them, and what cannot be read. Needs no torch."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

LARGEST_SIDE = 8192

LARGEST_ARCHIVE = 64 * 2**30
"""Bytes of pixels that an archive may announce: 300 000 images of 3×256×256 and more."""

LEAST_IMAGES = 4
"""Of a folder or an archive that is restored or edited: fewer leave a stream without any."""

Images = np.ndarray[Any, np.dtype[np.uint8]]
"""uint8 [N, C, H, W], C = 1 or 3."""


class ArchiveError(ValueError):
    """These are not images that can be read; ``reason`` says in one line what they are and what is needed."""

    def __init__(self, path: str | Path, reason: str) -> None:
        self.path, self.reason = Path(path), " ".join(reason.split())
        super().__init__(f"{self.path}: {self.reason}")

    def __reduce__(self):
        return type(self), (self.path, self.reason)


@dataclass(frozen=True)
class ArchiveInfo:
    """What the headers say; ``formats`` are those of the files of a folder, as Pillow calls them."""

    path: Path
    count: int
    channels: int
    height: int
    width: int
    formats: tuple[str, ...] = ("NPZ",)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return self.channels, self.height, self.width

    @property
    def image_bytes(self) -> int:
        return prod(self.shape)

    @property
    def lossy(self) -> tuple[str, ...]:
        """Formats among the files that may have lost detail."""
        return tuple(name for name in self.formats if name in ("JPEG", "WEBP"))

    @property
    def note(self) -> str | None:
        """What a reader of the numbers should know of the files."""
        if not self.lossy:
            return None
        return f"{' and '.join(self.lossy)} files may have lost detail when they were written, which moves every metric"


def times(sizes: Any) -> str:
    return "×".join(map(str, sizes)) or "a scalar"


def require_size(info: ArchiveInfo) -> None:
    """Refuse what no set of samples needs, before a byte of it is unpacked."""
    if max(info.height, info.width) > LARGEST_SIDE:
        size = f"{info.height}×{info.width}"
        raise ArchiveError(info.path, f"announces images of {size}; at most {LARGEST_SIDE}×{LARGEST_SIDE} are read")
    if info.count * info.image_bytes > LARGEST_ARCHIVE:
        size = f"{info.count * info.image_bytes / 2**30:.3g} GiB of pixels"
        raise ArchiveError(info.path, f"announces {size}; at most {LARGEST_ARCHIVE >> 30} GiB are read")
