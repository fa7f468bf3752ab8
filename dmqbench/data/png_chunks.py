"""The chunks of a PNG file, of which Pillow reads neither all nor those behind the pixels by itself."""

import struct
from pathlib import Path


def png_chunks(path: Path) -> list[tuple[bytes, bytes]]:
    """Return name and first four bytes of every chunk, in order; what follows a cut is left out."""
    chunks = []
    with path.open("rb") as file:
        file.seek(8)
        while len(start := file.read(12)) == 12:
            length, name, content = struct.unpack(">I4s4s", start)
            chunks.append((name, content))
            file.seek(length, 1)  # with the checksum, as four bytes of the content are read
    return chunks
