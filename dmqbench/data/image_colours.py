"""Whether the bytes of an image are colours of sRGB, as viewers take bytes to be of which nothing is said."""

from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image, ImageCms
from PIL.ImageFile import ImageFile

_GAMMA, _PRIMARIES = 0.45455, (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
"""Of sRGB, as PNG files write them."""

_CICP = bytes((1, 13, 0, 1))
"""Primaries, transfer, matrix and range of sRGB, as a PNG file's coding-independent code points."""

_ADOBE_RGB, _UNCALIBRATED = 2, 0xFFFF
"""Colour spaces by EXIF; the first is no standard's."""

_SAME = 2
"""Levels by which profiles that are called sRGB differ."""

_PROBE = Image.fromarray(np.stack(np.meshgrid(*[np.arange(0, 256, 51)] * 3), -1).reshape(1, -1, 3).astype(np.uint8))
"""Every fifth of each channel."""


def other_colours(image: ImageFile, chunks: Mapping[bytes, bytes], exif: Image.Exif) -> str | None:
    """Return what says that an opened image is not in sRGB; None if nothing does. ``chunks``: of a PNG file."""
    info = image.info
    if chunks.get(b"cICP", _CICP) != _CICP:
        return "has the colours of another standard than sRGB (cICP); save it in sRGB"
    if b"cICP" in chunks:
        return None
    if profile := info.get("icc_profile"):
        return None if _is_srgb(profile) else "has a colour profile that shows other colours than sRGB; convert it"
    if "srgb" in info:
        return None
    if _is_adobe_rgb(exif):
        return "is in Adobe RGB by its EXIF, without a profile; save it in sRGB"
    if abs(info.get("gamma", _GAMMA) - _GAMMA) > 0.01:
        return f"has gamma {1 / max(info['gamma'], 1e-6):.3g}, and sRGB has 2.2; save it in sRGB"
    if np.abs(np.subtract(info.get("chromaticity", _PRIMARIES), _PRIMARIES)).max() > 0.005:
        return "has other primaries than sRGB; save it in sRGB"
    return None


def _is_adobe_rgb(exif: Image.Exif) -> bool:
    """Whether a camera says so: as the standard of file names (DCF) has it, or in one number, as some do."""
    try:
        space = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace)
        index = exif.get_ifd(ExifTags.IFD.Interop).get(ExifTags.Interop.InteropIndex)
    except Exception:  # broken tags fail in many ways, and viewers pass over them
        return False
    optional = isinstance(index, str) and index.strip("\0 ") == "R03"
    return space == _ADOBE_RGB or (space in (None, _UNCALIBRATED) and optional)


@lru_cache(maxsize=64)
def _is_srgb(profile: bytes) -> bool:
    """Whether colours under an ICC profile are those of the same bytes in sRGB: whatever it is called, as measured."""
    try:
        given = ImageCms.ImageCmsProfile(BytesIO(profile))
        probe = _PROBE.convert("L") if profile[16:20] == b"GRAY" else _PROBE
        shown = ImageCms.profileToProfile(probe, given, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return False
    difference = np.asarray(shown, np.int16) - np.asarray(probe.convert("RGB"), np.int16)
    return bool(np.abs(difference).max() <= _SAME)
