"""Families of denoisers, a file each: what their configurations say, and how they are called. Needs no torch."""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from dmqbench.models.families.family import Family
from dmqbench.models.folders import ModelError

_elsewhere: list[Callable[[], Iterable[type[Family]]]] = []


def also_from(source: Callable[[], Iterable[type[Family]]]) -> None:
    """Have the families that ``source`` finds be known beside ours: those of other packages."""
    _elsewhere.append(source)


def families() -> tuple[type[Family], ...]:
    """Return every family: ours, by the names of its modules, then those of other packages."""
    return (*own_families(), *(family for source in _elsewhere for family in source()))


@cache
def own_families() -> tuple[type[Family], ...]:
    """Return the families of this package, by the names of its modules."""
    names = sorted(module.name for module in iter_modules(__path__))
    return tuple(family for name in names for family in families_in(import_module(f"{__name__}.{name}")))


def families_in(module: ModuleType) -> tuple[type[Family], ...]:
    """Return the families that a module defines."""
    own = (each for each in vars(module).values() if getattr(each, "__module__", None) == module.__name__)
    return tuple(each for each in own if isinstance(each, type) and issubclass(each, Family) and each is not Family)


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
