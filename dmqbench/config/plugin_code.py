"""Where the code of a method, a metric or a family is, and which computes a stage from outside. Imports none of it."""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any

from dmqbench.config.errors import ConfigError
from dmqbench.config.plugins import Plugin, own_names, plugin_with, usable
from dmqbench.models.families.family import Family
from dmqbench.store.files import short_hash


def method_module(method: str) -> str | None:
    """Return the full name of a method's module, of this package or of a plug-in; None if nobody has it."""
    if (plugin := method_plugin(method)) is not None:
        return f"{plugin.package}.methods.{method}"
    own = f"dmqbench.methods.{method}"
    return own if method.isidentifier() and find_spec(own) is not None else None


def method_plugin(method: str) -> Plugin | None:
    """Return the plug-in that has a method's module; None for a method of this package, or of nobody."""
    return next((plugin for plugin in usable() if plugin.module_file(f"{plugin.package}.methods.{method}")), None)


def require_module(method: str) -> None:
    """Refuse a method of which there is a YAML and no module; ConfigError."""
    if method_module(method) is None:
        places = ", ".join(["dmqbench", *(plugin.package for plugin in usable())])
        raise ConfigError("method", method, problem=f"has no module methods/{method}.py (in: {places})")


def stage_origin(method: str, stage: str) -> dict[str, Any] | None:
    """Return what the id of a stage names besides its settings where its code is a plug-in's; None where it is ours.

    ``modules`` are sha256 of the source of the module that defines it and of those of the plug-in that this imports:
    ``stages/STAGE.py``, or otherwise the method's own.

    Raises:
        ConfigError: one of them is no Python.
    """
    plugin = method_plugin(method)
    if plugin is None or stage in own_names("stage"):
        return None
    alone = f"{plugin.package}.stages.{stage}"
    module = alone if plugin.module_file(alone) else f"{plugin.package}.methods.{method}"
    try:
        return _origin(plugin, module)
    except (SyntaxError, OSError) as error:
        problem = f"cannot be used: plug-in {plugin.name}: {module} cannot be read ({error})"
        raise ConfigError("method", method, problem=problem) from None


def family_origin(family: type[Family]) -> dict[str, Any] | None:
    """Return what ids of a family's models name besides, where its code is a plug-in's; None where it is ours.

    Raises:
        ConfigError: a module that it imports is no Python.
    """
    plugin = next((plugin for plugin in usable() if family in plugin.families), None)
    try:
        return None if plugin is None else _origin(plugin, family.__module__)
    except (SyntaxError, OSError) as error:
        problem = f"cannot be used: its code cannot be read ({error})"
        raise ConfigError("model", family.network, problem=problem) from None


def _origin(plugin: Plugin, module: str) -> dict[str, Any]:
    sources = dict(plugin_sources(plugin, module))
    return {"distribution": plugin.distribution, "version": plugin.version, "modules": sources}


def metric_origin(metric: str) -> str | None:
    """Return what stands as the tool in protocols of a plug-in's metric: whose code it is; None for one of ours."""
    plugin = plugin_with("metric", metric)
    if plugin is None:
        return None
    sources = plugin_sources(plugin, f"{plugin.package}.metrics.{metric}")
    return f"{plugin.distribution}-{plugin.version}@{short_hash(sources)}"


@cache
def plugin_sources(plugin: Plugin, module: str) -> tuple[tuple[str, str], ...]:
    """Return (name, sha256 of the source) of a module and of all modules of the plug-in that it imports, sorted."""
    hashes: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = plugin.module_file(name)
        if name in hashes or path is None:
            continue
        source = path.read_bytes()
        hashes[name] = hashlib.sha256(source).hexdigest()
        waiting += _imports(name, path, source)
    return tuple(sorted(hashes.items()))


def _imports(name: str, path: Path, source: bytes) -> Iterator[str]:
    """Full names that a module imports, be they modules or what lies in one."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(source, path.name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
