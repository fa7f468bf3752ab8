"""Files from a server: asked without waiting for one that says nothing, kept only if they are the published ones."""

import hashlib
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from dmqbench.store.files import replacing

SILENCE_S = 10.0
"""How long a server may say nothing, at first or between two blocks, before a download is given up."""

MIB = 2**20
_BLOCK = 2**18
_MAX_BYTES = 2**30


class WrongContent(Exception):
    """What was served is not the published file."""


def unanswered(url: str) -> str | None:
    """Why there is no answer from ``url`` within ``SILENCE_S``, or None if there is any, be it a refusal."""
    try:
        urllib.request.urlopen(url, timeout=SILENCE_S).close()
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError, HTTPException) as error:
        return in_one_line(error)
    return None


def in_one_line(error: Exception) -> str:
    """What went wrong in a download, without line breaks."""
    wrapped = getattr(error, "reason", None)
    reason = wrapped if isinstance(wrapped, Exception) else error
    if isinstance(reason, TimeoutError):
        return f"no answer within {SILENCE_S:g} s"
    return " ".join(str(reason).split()) or type(error).__name__


def fetch(url: str, path: Path, sha256: str, advance: Callable[[], None]) -> None:
    """Write what ``url`` serves to ``path``, whole or not at all; ``advance`` is called once a MiB.

    Raises:
        WrongContent: it has another ``sha256``, or more than a GiB.
        OSError, HTTPException: there is no answer, or no place to write.
    """
    content = hashlib.sha256()
    received = 0
    with (
        urllib.request.urlopen(url, timeout=SILENCE_S) as answer,
        replacing(path) as temporary,
        open(temporary, "wb") as out,
    ):
        while block := answer.read1(_BLOCK):
            out.write(block)
            content.update(block)
            for _ in range((received + len(block)) // MIB - received // MIB):
                advance()
            received += len(block)
            if received > _MAX_BYTES:
                raise WrongContent(f"it serves more than {_MAX_BYTES // MIB} MiB")
        out.flush()
        if content.hexdigest() != sha256:
            raise WrongContent(f"it serves {received} bytes of sha256 {content.hexdigest()[:8]}…")
