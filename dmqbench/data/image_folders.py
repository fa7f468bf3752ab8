"""Images in a folder: PNG, JPEG or WebP files of one size, in natural order. Needs no torch.

Pixels are those that a viewer shows: turned as the file says, and refused where bytes alone do not say what is shown.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from dmqbench.data.archive_info import LARGEST_SIDE, ArchiveError, ArchiveInfo, Images, require_size, times
from dmqbench.data.image_colours import other_colours
from dmqbench.data.png_chunks import png_chunks
from dmqbench.store.files import once_per_state

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

OTHER_SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".dib", ".exr", ".gif", ".hdr", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl"),
    *(".pbm", ".pgm", ".pnm", ".ppm", ".tga", ".tif", ".tiff"),
)
"""Of pictures that are not read: one among others would be missing without a word."""

_FORMATS = ("PNG", "JPEG", "WEBP")

_CHANNELS = {"1": 1, "L": 1, "RGB": 3, "P": 3}
"""Channels by the mode that Pillow reads from a file's header."""

_TELLING = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
"""How texts of a PNG file begin that hold what cameras say."""

_QUARTERS = (5, 6, 7, 8)
"""Orientations of images that lie on their side."""


def image_names(folder: Path) -> list[str]:
    """Names of the images of a folder, without suffix, in the order in which they are read."""
    return [path.stem for path in image_files(folder)]


def image_files(folder: Path) -> list[Path]:
    """Return the images of a folder in natural order; whether they can be read is not known yet.

    Raises:
        ArchiveError: there are none, or pictures of other formats are among them.
    """
    try:
        seen = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and not path.is_dir()]
    except OSError as error:
        raise ArchiveError(folder, f"cannot be read ({error.strerror})") from None
    for path in seen:
        if path.suffix.lower() in OTHER_SUFFIXES:
            raise ArchiveError(path, f"of a format that is not read; {', '.join(SUFFIXES)} files are")
    images = [path for path in seen if path.suffix.lower() in SUFFIXES]
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
def _image(path: Path) -> Iterator[ImageFile]:
    """The opened file, its header read; whatever is wrong with it becomes one line."""
    if not path.is_file():
        raise ArchiveError(path, "a link to nothing" if path.is_symlink() else "no file that can be read")
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
    except PermissionError:
        raise ArchiveError(path, "cannot be read (permission denied)") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ArchiveError(path, f"damaged ({reason})") from None


class _Described(NamedTuple):
    """The one image of a file, and how a viewer turns it, 1 to 8 as EXIF counts: not at all, 1."""

    info: ArchiveInfo
    orientation: int


@once_per_state
def _described_file(path: Path) -> _Described:
    """What is in a file, of which no pixel is read."""
    with _image(path) as image:
        chunks = png_chunks(path) if image.format == "PNG" else []
        exif = _exif(image, chunks)
        if (problem := _not_plain(image) or other_colours(image, dict(chunks), exif)) is not None:
            raise ArchiveError(path, problem)
        orientation = exif.get(ExifTags.Base.Orientation, 1)
        turned = orientation in _QUARTERS
        size = (image.width, image.height) if turned else (image.height, image.width)
        info = ArchiveInfo(path, 1, _CHANNELS[image.mode], *size, (str(image.format),))
    require_size(info)
    return _Described(info, orientation)


def _not_plain(image: ImageFile) -> str | None:
    """Why the bytes of a file are not the pixels that a viewer shows; None if they are, but for their colours."""
    if getattr(image, "n_frames", 1) > 1:
        return f"has {getattr(image, 'n_frames', 1)} frames; one image per file is needed"
    if image.has_transparency_data:
        return "has transparency, and what lies behind it would be a guess; save image.convert('RGB')"
    if image.mode not in _CHANNELS:
        return f"has pixels of kind {image.mode}; 8 bits, grey or RGB, are needed"
    if any(";16" in str(tile) for tile in image.tile):  # Pillow cuts the lower 8 bits off
        return "has 16 bits a channel; 8 bits, grey or RGB, are needed"
    return None


def _exif(image: ImageFile, chunks: Sequence[tuple[bytes, bytes]]) -> Image.Exif:
    """What a camera or an editor says of the image; nothing where nothing readable is said. ``chunks``: of a PNG file.

    What a PNG file says behind its pixels is known when they are decoded, which is done for nothing else.
    """
    telling = [number for number, (name, start) in enumerate(chunks) if name == b"eXIf" or start.startswith(_TELLING)]
    pixels = [number for number, (name, _) in enumerate(chunks) if name == b"IDAT"]
    try:
        if telling and pixels and telling[-1] > pixels[0]:
            image.load()
        return Image.Image.getexif(image)  # that of PNG files always decodes
    except Exception:  # broken tags fail in many ways, and viewers pass over them
        return Image.Exif()


def inspect_folder(folder: Path) -> ArchiveInfo:
    files = image_files(folder)
    first = _described_file(files[0]).info
    formats = set(first.formats)
    for path in files[1:]:
        info = _described_file(path).info
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
    files = image_files(folder)[:limit]
    first = _described_file(files[0]).info
    for start in range(0, len(files), batch):
        yield np.stack([_pixels(path, first) for path in files[start : start + batch]])


def _pixels(path: Path, first: ArchiveInfo) -> Images:
    """uint8 [C, H, W] of one file, which must be as large as the first."""
    described = _described_file(path)
    _require_same(described.info, first)
    with _image(path) as image:
        upright = image if described.orientation == 1 else ImageOps.exif_transpose(image)
        shown = upright.convert("L" if first.channels == 1 else "RGB")
    pixels = np.asarray(shown, np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
