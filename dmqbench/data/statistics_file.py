"""Statistics of images that another program made: means, covariances and features in an npz archive. Needs no torch."""

import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dmqbench.data.archive_info import ArchiveError
from dmqbench.data.npz_images import arrays_in
from dmqbench.store.files import once_per_state

GAUSSIANS: Mapping[str, tuple[str, str]] = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
"""Features → names of their mean and covariance in an archive."""
FEATURES = "feats"
"""Features themselves, of the images one by one."""

_NAMES = (FEATURES, *(name for names in GAUSSIANS.values() for name in names))

_MOST_NUMBERS = 2**27
"""In one array: features of 65,536 images in 2,048 dimensions."""

_BROKEN = (OSError, ValueError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)


def read_statistics(path: Path) -> dict[str, np.ndarray] | None:
    """Return the arrays of statistics in an archive; None if it holds none, as one of images.

    Raises:
        ArchiveError: it is damaged, or what it holds are no statistics.
    """
    if path.suffix != ".npz" or not path.is_file():
        return None
    headers = arrays_in(path)
    names = [name for name in headers if name in _NAMES]
    if any(math.prod(headers[name].shape) > _MOST_NUMBERS for name in names):
        raise ArchiveError(path, f"its statistics hold more than {_MOST_NUMBERS} numbers")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in names}
    except _BROKEN as error:
        raise ArchiveError(path, f"damaged ({' '.join(str(error).split())[:100] or type(error).__name__})") from None
    for name, values in arrays.items():
        if values.dtype.kind != "f" or not np.isfinite(values).all():
            raise ArchiveError(path, f"{name} must hold finite floats")
    for mean, covariance in GAUSSIANS.values():
        _check_gaussian(path, arrays, mean, covariance)
    return arrays or None


def _check_gaussian(path: Path, arrays: Mapping[str, np.ndarray], mean: str, covariance: str) -> None:
    if mean not in arrays and covariance not in arrays:
        return
    for name in (mean, covariance):
        if name not in arrays:
            raise ArchiveError(path, f"holds no {name}")
    shapes = arrays[mean].shape, arrays[covariance].shape
    if len(shapes[0]) != 1 or shapes[1] != shapes[0] * 2:
        raise ArchiveError(path, f"{mean} and {covariance} must be [d] and [d, d], got {shapes[0]} and {shapes[1]}")


@once_per_state
def holds_statistics(path: Path) -> bool:
    """Whether an archive holds statistics, each of them whole; ArchiveError as ``read_statistics``."""
    return read_statistics(path) is not None
