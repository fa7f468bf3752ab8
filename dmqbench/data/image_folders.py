"""Images in a folder: PNG, JPEG or WebP files of one size, in natural order. Needs no torch."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from dmqbench.data.archive_info import LARGEST_SIDE, ArchiveError, ArchiveInfo, Images, require_size, times

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

_FORMATS = ("PNG", "JPEG", "WEBP")

_CHANNELS = {"1": 1, "L": 1, "RGB": 3, "P": 3}
"""Channels by the mode that Pillow reads from a file's header."""


def image_names(folder: Path) -> list[str]:
    """Names of the images of a folder, without suffix, in the order in which they are read."""
    return [path.stem for path in _files(folder)]


def _files(folder: Path) -> list[Path]:
    """The images of a folder in natural order."""
    seen = (path for path in folder.iterdir() if not path.name.startswith("."))
    images = [path for path in seen if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not images:
        deeper = any(path.suffix.lower() in SUFFIXES for child in folder.iterdir() for path in _children(child))
        hint = "; those in its subfolders are not read" if deeper else ""
        raise ArchiveError(folder, f"no {', '.join(SUFFIXES)} files in this folder{hint}")
    return sorted(images, key=_natural)


def _children(path: Path) -> list[Path]:
    return list(path.iterdir()) if path.is_dir() else []


def _natural(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    """Sorting key in which numbers inside names count as numbers: img2 before img10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", path.name)
    return [(0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part) for part in parts], path.name


@contextmanager
def _image(path: Path) -> Iterator[Image.Image]:
    """The opened file, its header read; whatever is wrong with it becomes one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                yield image
    except ArchiveError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ArchiveError(path, f"announces more than {LARGEST_SIDE}×{LARGEST_SIDE} pixels") from None
    except UnidentifiedImageError:
        raise ArchiveError(path, f"not a {', '.join(_FORMATS)} file, whatever its name says") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ArchiveError(path, f"damaged ({reason})") from None


def _described_file(path: Path) -> ArchiveInfo:
    """The one image of a file."""
    with _image(path) as image:
        if getattr(image, "n_frames", 1) > 1:
            raise ArchiveError(path, f"has {getattr(image, 'n_frames', 1)} frames; one image per file is needed")
        if image.mode in ("LA", "PA", "RGBA") or (image.mode == "P" and "transparency" in image.info):
            raise ArchiveError(
                path, "has transparency, and what lies behind it would be a guess; save image.convert('RGB')"
            )
        if image.mode not in _CHANNELS:
            raise ArchiveError(path, f"has pixels of kind {image.mode}; 8 bits, grey or RGB, are needed")
        info = ArchiveInfo(path, 1, _CHANNELS[image.mode], image.height, image.width, (str(image.format),))
    require_size(info)
    return info


def inspect_folder(folder: Path) -> ArchiveInfo:
    files = _files(folder)
    first = _described_file(files[0])
    formats = set(first.formats)
    for path in files[1:]:
        info = _described_file(path)
        _require_same(info, first)
        formats.update(info.formats)
    info = ArchiveInfo(folder, len(files), *first.shape, formats=tuple(sorted(formats)))
    require_size(info)
    return info


def _require_same(info: ArchiveInfo, first: ArchiveInfo) -> None:
    if info.shape != first.shape:
        raise ArchiveError(
            info.path, f"is {times(info.shape)} (C×H×W), and {first.path.name} before it is {times(first.shape)}"
        )


def folder_batches(folder: Path, batch: int, limit: int | None) -> Iterator[Images]:
    files = _files(folder)[:limit]
    first = _described_file(files[0])
    for start in range(0, len(files), batch):
        yield np.stack([_pixels(path, first) for path in files[start : start + batch]])


def _pixels(path: Path, first: ArchiveInfo) -> Images:
    """uint8 [C, H, W] of one file, which must be as large as the first."""
    _require_same(_described_file(path), first)
    with _image(path) as image:
        pixels = np.asarray(image.convert("L" if first.channels == 1 else "RGB"), np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
