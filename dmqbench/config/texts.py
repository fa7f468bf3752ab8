"""Names and paths of a command line, kept as the text that they are: ``1_0`` is no number and ``[k]`` no list."""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Optional, get_type_hints

from dmqbench.config.schema import GROUPS, NODES, StoreConfig

_OVERRIDE = re.compile(r"((?:\+\+?)?([\w.]+)=)(.+)", re.DOTALL)
_LEFT_TO_HYDRA = re.compile(r"""(['"]).*\1|.*\\.*|(choice|range|interval|glob|shuffle|sort|tag)\(.*""", re.DOTALL)
"""What is quoted or escaped already, and the functions that give several values."""
_PART = re.compile(r"""(?:'[^']*'|"[^"]*"|\[[^\]]*\]|\([^)]*\)|\{[^}]*\}|[^,])+""")


@cache
def _kinds() -> Mapping[str, Any]:
    """The type of every key by the schema, and of the texts that methods have."""
    kinds = {**GROUPS, **NODES, "store": StoreConfig}
    hints = {f"{group}.{key}": hint for group, kind in kinds.items() for key, hint in get_type_hints(kind).items()}
    return {**hints, "method.path": Optional[str], "method.variant": str}


@cache
def text_keys() -> frozenset[str]:
    """Return the keys whose values are text."""
    return frozenset(key for key, kind in _kinds().items() if kind in (str, Optional[str]))


def null_is_text(key: str) -> bool:
    """Whether ``null`` is a name too, as where one must be given, and does not say that nothing is given."""
    return key == "evaluate.name" or _kinds()[key] is str


def as_text(override: str, several: bool = False) -> str:
    """Return an override as Hydra must read it: the value of a name or path in quotes, if it has none.

    Args:
        several: whether commas separate values, as with ``-m``.
    """
    found = _OVERRIDE.fullmatch(override)
    if found is None or found[2] not in text_keys() or _LEFT_TO_HYDRA.fullmatch(found[3]):
        return override
    parts = _PART.findall(found[3]) if several else [found[3]]
    return found[1] + ",".join(_quoted(found[2], part) for part in parts)


def _quoted(key: str, value: str) -> str:
    if (value == "null" and not null_is_text(key)) or _LEFT_TO_HYDRA.fullmatch(value):
        return value
    return quoted(value)


def quoted(text: object) -> str:
    """Return text as Hydra reads it back whatever it holds."""
    return "'{}'".format(str(text).replace("'", r"\'"))
