"""The chunks of a PNG file, of which Pillow reads neither all nor those behind the pixels by itself."""

import struct
from pathlib import Path

KEPT = 80
"""Bytes of a chunk's content that are read: the keyword of a text, and more than all other questions need."""


def png_chunks(path: Path) -> list[tuple[bytes, bytes]]:
    """Return name and first bytes of every chunk, in order; what follows a cut is left out."""
    chunks = []
    with path.open("rb") as file:
        file.seek(8)
        while len(start := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", start)
            content = file.read(min(length, KEPT))
            chunks.append((name, content))
            file.seek(length - len(content) + 4, 1)  # with the checksum
    return chunks
