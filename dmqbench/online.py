"""Asking a server without waiting for one that says nothing."""

import urllib.error
import urllib.request
from http.client import HTTPException

SILENCE_S = 10.0
"""How long a server may say nothing, at first or between two blocks, before a download is given up."""


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
