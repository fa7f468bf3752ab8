"""Whether the bytes of an image are colours of sRGB, as viewers take bytes to be of which nothing is said."""

from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms
from PIL.ImageFile import ImageFile

from dmqbench.data.png_chunks import png_chunks

_GAMMA, _PRIMARIES = 0.45455, (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
"""Of sRGB, as PNG files write them."""

_CICP = bytes((1, 13, 0, 1))
"""Primaries, transfer, matrix and range of sRGB, as a PNG file's coding-independent code points."""

_SAME = 2
"""Levels by which profiles that are called sRGB differ."""

_PROBE = Image.fromarray(np.stack(np.meshgrid(*[np.arange(0, 256, 51)] * 3), -1).reshape(1, -1, 3).astype(np.uint8))
"""Every fifth of each channel."""


def other_colours(image: ImageFile, path: Path) -> str | None:
    """Return what says that an opened image is not in sRGB; None if nothing does."""
    info = image.info
    chunks = dict(png_chunks(path)) if image.format == "PNG" else {}
    if chunks.get(b"cICP", _CICP) != _CICP:
        return "has the colours of another standard than sRGB (cICP); save it in sRGB"
    if b"cICP" in chunks:
        return None
    if profile := info.get("icc_profile"):
        return None if _is_srgb(profile) else "has a colour profile that shows other colours than sRGB; convert it"
    if "srgb" in info:
        return None
    if abs(info.get("gamma", _GAMMA) - _GAMMA) > 0.01:
        return f"has gamma {1 / max(info['gamma'], 1e-6):.3g}, and sRGB has 2.2; save it in sRGB"
    if np.abs(np.subtract(info.get("chromaticity", _PRIMARIES), _PRIMARIES)).max() > 0.005:
        return "has other primaries than sRGB; save it in sRGB"
    return None


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
