"""Values of a composed configuration: set by key, with the type that the schema or the YAML gives."""

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dmqbench.config.checked_job import ABOUT_STAGE
from dmqbench.config.errors import ConfigError, closest

_RESOLVER = re.compile(r"\$\{[^}]*:")
_CALLS_NOTHING = "calls a resolver, which configurations here must not"
_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a word",
    list: "a list [...]",
}


def leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, part in value.items():
            yield from leaves(f"{key}.{name}", part)
    else:
        yield key, value


def set_value(config: DictConfig, key: str, value: Any) -> None:
    """Give an existing key a value of its type."""
    known = list(_known_keys(config))
    if key not in known:
        siblings = OmegaConf.select(config, key.rpartition(".")[0]) if "." in key else config
        group = siblings if isinstance(siblings, DictConfig) else config
        allowed = [str(name) for name in group if name not in ABOUT_STAGE[1:]]
        similar = [name for name in known if name.startswith(key.rpartition(".")[0] + ".")] if "." in key else []
        raise ConfigError(key, value, allowed, "is not a key", closest(key, similar or [*known, *map(str, config)]))
    kind = _kind_of(config, key)
    if value is not None and kind is not None:
        default = OmegaConf.select(config, key)
        value = _converted(key, value, kind, list(default) if kind is list else default)
    try:
        OmegaConf.update(config, key, value, merge=False, force_add=False)
    except OmegaConfBaseException as error:
        raise ConfigError(key, value, problem=f"does not fit: {str(error).splitlines()[0]}") from None


def _known_keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """Dotted names of all values."""
    for key in config:
        if key in ABOUT_STAGE[1:]:
            continue
        node = config._get_node(key)
        name = f"{prefix}{key}"
        if isinstance(node, DictConfig) and not node._is_none():
            yield from _known_keys(node, f"{name}.")
        else:
            yield name


def _kind_of(config: DictConfig, key: str) -> type | None:
    """The type of a key: its schema's, or in a method its value's in the YAML; None where that is null."""
    parent, _, name = key.rpartition(".")
    group = OmegaConf.select(config, parent) if parent else config
    node = group._get_node(name)
    declared = node._metadata.ref_type if isinstance(node, Node) else None
    if declared in _KINDS:
        return declared
    value = OmegaConf.select(config, key)
    if isinstance(value, ListConfig):
        return list
    return None if value is None else type(value)


def _converted(key: str, value: Any, kind: type, default: Any) -> Any:
    fits = {
        bool: isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, (int, float)) and not isinstance(value, bool),
        list: isinstance(value, list),
        str: not isinstance(value, (list, dict)),
    }
    if isinstance(value, str) and value.startswith("${"):
        return value
    if not fits.get(kind, True):
        raise ConfigError(key, value, [_KINDS[kind]], f"is not {_KINDS[kind]}", default)
    return kind(value) if kind in (float, str) else value


def refuse_resolvers(value: Any, key: str) -> None:
    """A configuration refers to other values of itself, never to the environment or to code."""
    if isinstance(value, dict):
        for name, part in value.items():
            refuse_resolvers(part, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for part in value:
            refuse_resolvers(part, key)
    elif isinstance(value, str) and _RESOLVER.search(value):
        raise ConfigError(key, value, problem=_CALLS_NOTHING)
