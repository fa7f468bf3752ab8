"""Standard output and error that lose no job: what they cannot carry degrades, and nobody has to read them."""

import codecs
import errno
import io
import os
import sys
from pathlib import Path

_PLAIN = {
    **{"×": "x", "±": "+-", "·": "-", "–": "-", "−": "-", "…": "...", "→": "->", "↑": "^", "↓": "v", "†": "*"},
    **{"≥": ">=", "≤": "<=", "λ": "lambda", "ᾱ": "alpha", "₀": "0", "₁": "1", "⁹": "9", "é": "e"},
}
"""What tables and messages write beyond ASCII."""


def hold_streams() -> None:
    """Let standard output and error carry what they can, and let whoever reads them go away."""
    codecs.register_error("plain", _plain)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started the process
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _held(stream) if stream is getattr(sys, f"__{name}__") else stream)
            getattr(sys, name).reconfigure(errors="plain")


def exact(path: str | Path) -> str:
    """Return a path as standard output can write it: by the bytes that the system has where it lacks the letters."""
    try:
        str(path).encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return os.fsencode(path).decode("ascii", "surrogateescape")
    return str(path)


class _Descriptor(io.FileIO):
    """A file descriptor that is written to as long as somebody reads."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            return memoryview(data).nbytes


def _held(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """The same stream over a descriptor whose reader may go away."""
    stream.flush()
    descriptor = io.BufferedWriter(_Descriptor(stream.fileno(), "w", closefd=False))
    kept = {"encoding": stream.encoding, "line_buffering": stream.line_buffering, "newline": "\n"}
    return io.TextIOWrapper(descriptor, write_through=stream.write_through, **kept)


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """What stands for characters that an encoding lacks; bytes that are no text stay themselves."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter = error.object[error.start]
    escaped = letter.encode("ascii", "backslashreplace").decode()
    as_byte = 0xDC80 <= ord(letter) <= 0xDCFF
    return bytes([ord(letter) - 0xDC00]) if as_byte else _PLAIN.get(letter) or escaped, error.start + 1
