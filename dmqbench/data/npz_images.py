"""Images in an npz archive: one uint8 array N×H×W×C or N×C×H×W. Needs no torch."""

import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.lib import format as npy

from dmqbench.data.archive_info import ArchiveError, ArchiveInfo, Images, require_size, times
from dmqbench.store.files import once_per_state

NAMES = ("arr_0", "samples", "images")
"""What the array of images may be called; an archive with other names gives its first array."""

_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError)

_PREVIEW_VALUES = 2**16

_INTEGERS = {(0, 255): "x"}
_FLOATS = {(0, 1): "(x * 255).round()", (-2, 2): "((x.clip(-1, 1) + 1) / 2 * 255).round()", (0, 255): "x.round()"}
"""How images of a range become those in [0, 255]; the first range that holds all values is meant."""


class ArrayHeader(NamedTuple):
    """Shape and dtype of one array of an archive."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool


def arrays_in(path: str | Path) -> dict[str, ArrayHeader]:
    """Return the header of every array in an npz archive, in its order; ArchiveError if it is no such archive."""
    path = Path(path)
    headers = {}
    with _opened(path) as archive:
        for name in _members(archive):
            headers[name.removesuffix(".npy")] = _header_of(archive, name)
    return headers


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
        raise ArchiveError(path, f"{what} {_described(header, file)}")
    if len(header.shape) != 4:
        raise ArchiveError(path, f"{what} shape {times(header.shape)}; N×H×W×C with C = 1 or 3 is needed")
    if min(header.shape) < 1:
        raise ArchiveError(path, f"{what} no images ({times(header.shape)})")
    last, first = header.shape[3] in (1, 3), header.shape[1] in (1, 3)
    if last and first:
        raise ArchiveError(
            path, f"{what} shape {times(header.shape)}, which is N×H×W×C or N×C×H×W; save larger images, or a folder"
        )
    if not last and not first:
        alpha = 4 in (header.shape[1], header.shape[3])
        hint = "; drop the fourth channel, or flatten it on a background" if alpha else ""
        raise ArchiveError(path, f"{what} shape {times(header.shape)}; N×H×W×C with C = 1 or 3 is needed{hint}")
    if header.fortran_order:
        raise ArchiveError(path, f"{what} values in Fortran order; save np.ascontiguousarray(images)")
    count = header.shape[0]
    channels, height, width = header.shape[1:] if first else (header.shape[3], *header.shape[1:3])
    info = ArchiveInfo(path, count, channels, height, width)
    require_size(info)
    return info, last


def _described(header: ArrayHeader, file: IO[bytes]) -> str:
    """The dtype, for numbers the range of the first of them, and how to make of them what is needed."""
    needed = "uint8 in [0, 255] is needed"
    if header.dtype.kind not in "fiu" or header.dtype.itemsize > 8 or min(header.shape, default=1) < 1:
        return f"{header.dtype}; {needed}"
    count = min(prod(header.shape), _PREVIEW_VALUES)
    values = np.frombuffer(file.read(count * header.dtype.itemsize), header.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        low, high = np.nanmin(values), np.nanmax(values)
    found = f"{header.dtype} in [{low:g}, {high:g}]{' with NaN' if np.isnan(values).any() else ''}; {needed}"
    known = _INTEGERS if header.dtype.kind in "iu" else _FLOATS
    scaled = next((text for (least, most), text in known.items() if least <= low and high <= most), None)
    return found if scaled is None else f"{found}: by {scaled}.astype(np.uint8)"


@once_per_state
def inspect_npz(path: Path) -> ArchiveInfo:
    """Return what the header of the array of images says."""
    with _opened(path) as archive:
        name = _member(archive, path)
        with archive.open(name) as file:
            return _image_layout(path, name, _header(file), file)[0]


def npz_batches(path: Path, batch: int, limit: int | None) -> Iterator[Images]:
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
