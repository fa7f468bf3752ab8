"""Families of denoisers, a file each: what their configurations say, and how they are called. Needs no torch."""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from dmqbench.models.families.family import Family
from dmqbench.models.folders import ModelError


@cache
def families() -> tuple[type[Family], ...]:
    """Return every family, by the names of its modules."""
    return tuple(_found())


def _found() -> Iterator[type[Family]]:
    for name in sorted(module.name for module in iter_modules(__path__)):
        module = import_module(f"{__name__}.{name}")
        own = (each for each in vars(module).values() if getattr(each, "__module__", None) == module.__name__)
        yield from (each for each in own if isinstance(each, type) and issubclass(each, Family) and each is not Family)


def kind_of(config: Mapping[str, Any]) -> type[Family]:
    """Return the family of a ``config.json``; ModelError if none has its class."""
    for family in families():
        if family.is_of(config):
            return family
    allowed = ", ".join(family.network for family in families())
    raise ModelError(f"model class {config.get('_class_name')} cannot be loaded (allowed: {allowed})")


def family_of(config: Mapping[str, Any], condition_channels: int = 0) -> Family:
    """Return what a ``config.json`` says of its network.

    Raises:
        ModelError: no family has its class, or it needs inputs that this project does not give.
    """
    return kind_of(config)(config, condition_channels)
