"""Images that another program wrote: an npz archive or a folder. Nothing of them is trusted; needs no torch.

An archive is what ADM's evaluation suite reads and writes: one uint8 array N×H×W×C (N×C×H×W is understood too), called
``arr_0``, ``samples`` or ``images``, or else the first one. A folder holds PNG, JPEG or WebP files of one size, in the
order in which a reader counts (img2 before img10). Pixels are taken as they are: nothing is scaled, cut or flattened.
"""

import hashlib
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from PIL import Image, UnidentifiedImageError

NAMES = ("arr_0", "samples", "images")
"""What the array of images may be called; an archive with other names gives its first array."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

LARGEST_SIDE = 8192
LARGEST_ARCHIVE = 64 * 2**30
"""Bytes of pixels that an archive may announce: 300 000 images of 3×256×256 and more."""

LARGEST_READ = 16 * 2**30
"""Bytes of pixels that are held at once."""

_FORMATS = ("PNG", "JPEG", "WEBP")
_CHANNELS = {"1": 1, "L": 1, "RGB": 3, "P": 3}
"""Channels by the mode that Pillow reads from a file's header."""

_BATCH = 64
_PREVIEW_VALUES = 2**16

_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError)

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


class ArrayHeader(NamedTuple):
    """Shape and dtype of one array of an archive."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool


def inspect(path: str | Path) -> ArchiveInfo:
    """Return how many images of which size are there, reading headers only.

    Raises:
        ArchiveError: there are none, or they are not all uint8 images of one size with 1 or 3 channels.
    """
    path = Path(path)
    if path.is_dir():
        return _inspect_folder(path)
    if not path.exists():
        raise ArchiveError(path, "there is no such file or folder")
    with _opened(path) as archive:
        name = _member(archive, path)
        with archive.open(name) as file:
            return _image_layout(path, name, _header(file), file)[0]


def arrays_in(path: str | Path) -> dict[str, ArrayHeader]:
    """Return the header of every array in an npz archive, in its order; ArchiveError if it is no such archive."""
    path = Path(path)
    headers = {}
    with _opened(path) as archive:
        for name in _members(archive):
            headers[name.removesuffix(".npy")] = _header_of(archive, name)
    return headers


def read_batches(path: str | Path, batch: int = _BATCH, limit: int | None = None) -> Iterator[Images]:
    """Yield the first ``limit`` images in parts of ``batch``, of which the last may be smaller.

    Raises:
        ArchiveError: as ``inspect``; or the file is damaged behind its header.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: at least one image")
    yield from (_folder_batches if path.is_dir() else _npz_batches)(path, batch, limit)


def read_images(path: str | Path, limit: int | None = None) -> Images:
    """Return the first ``limit`` images as uint8 [N, C, H, W] in memory.

    Raises:
        ArchiveError: as ``read_batches``; or they would take more than 16 GiB.
    """
    info = inspect(path)
    count = info.count if limit is None else min(limit, info.count)
    if count * info.image_bytes > LARGEST_READ:
        fitting = LARGEST_READ // info.image_bytes
        raise ArchiveError(path, f"{count} images of {_times(info.shape)} do not fit into memory; at most {fitting} do")
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
        files = sorted(path.iterdir()) if path.is_dir() else [path]
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
            digest.update(f"uint8 {_times(part.shape[1:])}\n".encode())
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def _times(sizes: Any) -> str:
    return "×".join(map(str, sizes)) or "a scalar"


# ---- npz


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive; whatever is wrong with it while it is open becomes one line."""
    if path.suffix == ".npy":
        raise ArchiveError(path, "a bare array; save it with np.savez(file, images)")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except ArchiveError:
        raise
    except PermissionError:
        raise ArchiveError(path, "cannot be read (permission denied)") from None
    except _BROKEN as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise ArchiveError(path, f"damaged, or not an npz archive ({reason})") from None


def _members(archive: zipfile.ZipFile) -> list[str]:
    return [name for name in archive.namelist() if name.endswith(".npy")]


def _member(archive: zipfile.ZipFile, path: Path) -> str:
    """Name of the array of images."""
    names = _members(archive)
    if not names:
        raise ArchiveError(path, "an archive without arrays; save one with np.savez(file, images)")
    named = [f"{name}.npy" for name in NAMES if f"{name}.npy" in names]
    if named or len(names) == 1:
        return (named or names)[0]
    like_images = [name for name in names if len(_header_of(archive, name).shape) == 4]
    if len(like_images) > 1:
        listed = ", ".join(name.removesuffix(".npy") for name in like_images)
        raise ArchiveError(path, f"several arrays of images ({listed}) and none called {' or '.join(NAMES)}")
    return (like_images or names)[0]


def _header_of(archive: zipfile.ZipFile, name: str) -> ArrayHeader:
    with archive.open(name) as file:
        return _header(file)


def _header(file: IO[bytes]) -> ArrayHeader:
    version = npy.read_magic(file)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"an array in format {version}, which uint8 images never need")
    shape, fortran_order, dtype = read(file)
    return ArrayHeader(shape, dtype, fortran_order)


def _image_layout(path: Path, name: str, header: ArrayHeader, file: IO[bytes]) -> tuple[ArchiveInfo, bool]:
    """What the array holds, and whether its channels come last; ``file`` stands behind the header."""
    what = f"array {name.removesuffix('.npy')} holds"
    if header.dtype.hasobject:
        raise ArchiveError(path, f"{what} pickled objects, which are never opened; save one uint8 array N×H×W×C")
    if header.dtype != np.uint8:
        raise ArchiveError(path, f"{what} {_described(header, file)}; uint8 in [0, 255] is needed{_advice(header)}")
    if len(header.shape) != 4:
        raise ArchiveError(path, f"{what} shape {_times(header.shape)}; N×H×W×C with C = 1 or 3 is needed")
    if min(header.shape) < 1:
        raise ArchiveError(path, f"{what} no images ({_times(header.shape)})")
    last, first = header.shape[3] in (1, 3), header.shape[1] in (1, 3)
    if last and first:
        raise ArchiveError(
            path, f"{what} shape {_times(header.shape)}, which is N×H×W×C or N×C×H×W; save larger images, or a folder"
        )
    if not last and not first:
        alpha = 4 in (header.shape[1], header.shape[3])
        hint = "; drop the fourth channel, or flatten it on a background" if alpha else ""
        raise ArchiveError(path, f"{what} shape {_times(header.shape)}; N×H×W×C with C = 1 or 3 is needed{hint}")
    if header.fortran_order:
        raise ArchiveError(path, f"{what} values in Fortran order; save np.ascontiguousarray(images)")
    count = header.shape[0]
    channels, height, width = header.shape[1:] if first else (header.shape[3], *header.shape[1:3])
    info = ArchiveInfo(path, count, channels, height, width)
    _require_size(info)
    return info, last


def _require_size(info: ArchiveInfo) -> None:
    """Refuse what no set of samples needs, before a byte of it is unpacked."""
    if max(info.height, info.width) > LARGEST_SIDE:
        size = f"{info.height}×{info.width}"
        raise ArchiveError(info.path, f"announces images of {size}; at most {LARGEST_SIDE}×{LARGEST_SIDE} are read")
    if info.count * info.image_bytes > LARGEST_ARCHIVE:
        size = f"{info.count * info.image_bytes / 2**30:.3g} GiB of pixels"
        raise ArchiveError(info.path, f"announces {size}; at most {LARGEST_ARCHIVE >> 30} GiB are read")


def _described(header: ArrayHeader, file: IO[bytes]) -> str:
    """The dtype, and for numbers the range of the first of them."""
    if header.dtype.kind not in "fiu" or header.dtype.itemsize > 8 or min(header.shape, default=1) < 1:
        return str(header.dtype)
    count = min(prod(header.shape), _PREVIEW_VALUES)
    values = np.frombuffer(file.read(count * header.dtype.itemsize), header.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        low, high = np.nanmin(values), np.nanmax(values)
    return f"{header.dtype} in [{low:g}, {high:g}]" + (" with NaN" if np.isnan(values).any() else "")


def _advice(header: ArrayHeader) -> str:
    if header.dtype.kind == "f":
        return ": from [-1, 1] by ((x.clip(-1, 1) + 1) / 2 * 255).round().astype(np.uint8), from [0, 1] by * 255"
    return ": if the values are in this range, by images.astype(np.uint8)" if header.dtype.kind in "iu" else ""


def _npz_batches(path: Path, batch: int, limit: int | None) -> Iterator[Images]:
    with _opened(path) as archive:
        name = _member(archive, path)
        with archive.open(name) as file:
            info, channels_last = _image_layout(path, name, _header(file), file)
            count = info.count if limit is None else min(limit, info.count)
            for start in range(0, count, batch):
                size = min(batch, count - start)
                content = file.read(size * info.image_bytes)
                if len(content) != size * info.image_bytes:
                    raise ArchiveError(path, f"truncated: fewer than the {info.count} images that it announces")
                values = np.frombuffer(content, np.uint8)
                if channels_last:
                    images = values.reshape(size, info.height, info.width, info.channels).transpose(0, 3, 1, 2)
                else:
                    images = values.reshape(size, *info.shape)
                yield np.array(images, order="C")  # what was read is not writable


# ---- folders


def image_names(folder: Path) -> list[str]:
    """Names of the images of a folder, without suffix, in the order in which they are read."""
    return [path.stem for path in _files(folder)]


def _files(folder: Path) -> list[Path]:
    """The images of a folder in natural order."""
    found = [
        path for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    ]  # fmt: skip
    if not found:
        deeper = any(path.suffix.lower() in SUFFIXES for child in folder.iterdir() for path in _children(child))
        hint = "; those in its subfolders are not read" if deeper else ""
        raise ArchiveError(folder, f"no {', '.join(SUFFIXES)} files in this folder{hint}")
    return sorted(found, key=_natural)


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
    _require_size(info)
    return info


def _inspect_folder(folder: Path) -> ArchiveInfo:
    files = _files(folder)
    first = _described_file(files[0])
    formats = set(first.formats)
    for path in files[1:]:
        info = _described_file(path)
        _require_same(info, first)
        formats.update(info.formats)
    info = ArchiveInfo(folder, len(files), *first.shape, formats=tuple(sorted(formats)))
    _require_size(info)
    return info


def _require_same(info: ArchiveInfo, first: ArchiveInfo) -> None:
    if info.shape != first.shape:
        raise ArchiveError(
            info.path, f"is {_times(info.shape)} (C×H×W), and {first.path.name} before it is {_times(first.shape)}"
        )


def _folder_batches(folder: Path, batch: int, limit: int | None) -> Iterator[Images]:
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


LEAST_IMAGES = 4
"""Of a folder or an archive that is restored or edited: fewer leave a stream without any."""
