"""Packages that bring methods, stages, models, datasets, metrics and sweeps of their own. Imports no torch, no Hydra.

A plug-in is a package that a distribution names in the entry-point group ``dmqbench.plugins``. It is laid out as this
project is: ``conf/GROUP/NAME.yaml`` and ``sweeps/NAME.yaml``, and beside them ``methods/NAME.py``, ``stages/``,
``metrics/NAME.py``, ``families/NAME.py``, ``models/NAME/`` (a diffusers folder) and ``images/NAME/`` (of a dataset).
One of which something is wrong is left out as a whole, and its ``problem`` says why: nothing else may fail because of
it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

import yaml

from dmqbench.config.errors import closest
from dmqbench.config.metric_facts import OWN_METRICS, MetricFacts, read_metric
from dmqbench.config.places import CONF, PACKAGE, SWEEPS, yaml_names
from dmqbench.config.schema import GROUPS as SCHEMAS
from dmqbench.models.families import also_from, families_in, own_families
from dmqbench.models.families.family import Family
from dmqbench.models.folders import NETWORK_FOLDERS

ENTRY_POINTS = "dmqbench.plugins"
FOLDERS = ("method", "stage", "metric", *SCHEMAS)
"""What a plug-in may have in ``conf/``."""

GROUPS = (*FOLDERS, "family", "sweeps")
"""What a plug-in may bring."""


@dataclass(frozen=True)
class Plugin:
    """A declared package; ``folder`` is None where there is none, ``problem`` is why it is left out."""

    name: str
    package: str
    distribution: str
    version: str
    folder: Path | None = None
    problem: str | None = None

    @property
    def conf(self) -> Path:
        return (self.folder or Path()) / "conf"

    @property
    def title(self) -> str:
        """Its name, and where it comes from."""
        return f"{self.name} ({self.distribution} {self.version})"

    @property
    def brings(self) -> Mapping[str, tuple[str, ...]]:
        """Names of what it brings, by group."""
        if self.folder is None:
            return {}
        named = {group: self.names(group) for group in GROUPS}
        return {group: names for group, names in named.items() if names}

    @property
    def summary(self) -> str:
        """One line: what it brings, or why it is left out."""
        if self.problem is not None:
            return f"left out: {self.problem}"
        return "; ".join(f"{group} {', '.join(names)}" for group, names in self.brings.items())

    @property
    def metrics(self) -> Mapping[str, MetricFacts]:
        return {name: _metric(self.conf / "metric" / f"{name}.yaml") for name in self.names("metric")}

    def names(self, group: str) -> tuple[str, ...]:
        if self.folder is None:
            return ()
        if group == "family":
            return tuple(sorted(path.stem for path in (self.folder / "families").glob("[!_]*.py")))
        return yaml_names(self.folder / "sweeps" if group == "sweeps" else self.conf / group)

    @property
    def families(self) -> tuple[type[Family], ...]:
        """Those of its modules ``families/``; PluginError, one line, if one of these cannot be imported."""
        return tuple(family for name in self.names("family") for family in _families(self.package, name))

    def module_file(self, module: str) -> Path | None:
        """Return the file of a module of its package, by its full name; None if there is none. Imports nothing."""
        if self.folder is None or f"{module}.".partition(f"{self.package}.")[0]:
            return None
        place = self.folder.joinpath(*module.removeprefix(self.package).split("."))
        files = (place.with_suffix(".py"), place / "__init__.py")
        return next((file for file in files if file.is_file()), None)


class PluginError(Exception):
    """A plug-in cannot be used; the message says why in one line."""


@cache
def _metric(path: Path) -> MetricFacts:
    try:
        return read_metric(path)
    except ValueError as error:
        raise PluginError(f"conf/metric/{path.name}: {error}") from None


@cache
def plugins() -> tuple[Plugin, ...]:
    """Return every declared plug-in, in the order of their distributions' names, of which the first keeps a name."""
    owners = {(group, name): "dmqbench" for group in GROUPS for name in own_names(group)}
    owners |= {(_NETWORK, name): "dmqbench" for family in own_families() for name in _networks(family)}
    declared = []
    for point in sorted(entry_points(group=ENTRY_POINTS), key=_order):
        plugin = _examined(point, owners)
        if plugin.problem is None:
            owners |= {(group, name): plugin.name for group, names in plugin.brings.items() for name in names}
            owners |= {(_NETWORK, name): plugin.name for family in plugin.families for name in _networks(family)}
        declared.append(plugin)
    return tuple(declared)


def usable() -> tuple[Plugin, ...]:
    """Return the plug-ins that are not left out."""
    return tuple(plugin for plugin in plugins() if plugin.problem is None)


@cache
def own_names(group: str) -> tuple[str, ...]:
    """Return what this project itself has in a group."""
    if group == "metric":
        return tuple(OWN_METRICS)
    if group == "family":
        return tuple(dict.fromkeys(family.__module__.rpartition(".")[2] for family in own_families()))
    return yaml_names(SWEEPS if group == "sweeps" else CONF / group)


def metrics() -> dict[str, MetricFacts]:
    """Return every metric: ours, then those of plug-ins."""
    return dict(OWN_METRICS) | {name: facts for plugin in usable() for name, facts in plugin.metrics.items()}


def is_paired(metric: str) -> bool:
    """Whether a metric is over pairs of images."""
    facts = metrics().get(metric)
    return facts is not None and facts.over == "pairs"


def shipped_with(kind: str, name: str) -> Path | None:
    """Return the folder or archive NAME in ``models/`` or ``images/`` of a plug-in; None if no one has it."""
    places = (plugin.conf.parent / kind / f"{name}{end}" for plugin in usable() for end in ("", ".npz"))
    return next((place for place in places if place.exists()), None)


def known_names(group: str) -> tuple[str, ...]:
    """Return what this project and all usable plug-ins have in a group."""
    return (*own_names(group), *(name for plugin in usable() for name in plugin.names(group)))


def plugin_with(group: str, name: str) -> Plugin | None:
    """Return the plug-in that brings an option; None for one of this project, or of nobody."""
    return next((plugin for plugin in usable() if name in plugin.names(group)), None)


def left_out_with(group: str, name: str) -> Plugin | None:
    """Return the plug-in that would bring an option if it were not left out."""
    return next((plugin for plugin in plugins() if plugin.problem and name in plugin.names(group)), None)


def conf_folders() -> Iterator[Path]:
    """The folders that hold configurations: this project's, then those of usable plug-ins."""
    yield CONF
    yield from (plugin.conf for plugin in usable())


def _order(point: EntryPoint) -> tuple[str, str]:
    return (point.dist.name if point.dist else "", point.name)


def _examined(point: EntryPoint, owners: Mapping[tuple[str, str], str]) -> Plugin:
    plugin = Plugin(point.name, point.value.partition(":")[0].strip(), "unknown", "0")
    try:
        if point.dist is not None:
            plugin = replace(plugin, distribution=point.dist.name, version=point.dist.version)
        plugin = replace(plugin, folder=_declared_folder(plugin.package))
        plugin = replace(plugin, folder=_imported_folder(plugin.package))
        _check_names(plugin, owners)
        _check_yamls([*plugin.conf.rglob("*.yaml"), *(plugin.conf.parent / "sweeps").glob("*.yaml")], plugin)
        _check_metrics(plugin)
        _check_families(plugin, owners)
    except PluginError as error:
        return replace(plugin, problem=str(error))
    except Exception as error:  # metadata of any kind
        return replace(plugin, problem=_told(error))
    return plugin


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _declared_folder(package: str) -> Path | None:
    """The folder of a package that is not imported, to know what it would have brought."""
    if "." in package:  # to look for it would import the package around it
        return None
    spec = find_spec(package)
    return _folder_with_conf(spec.submodule_search_locations or ()) if spec else None


def _imported_folder(package: str) -> Path:
    try:
        module = import_module(package)
    except (Exception, SystemExit) as error:
        raise PluginError(f"{package} cannot be imported ({_told(error)})") from None
    folder = _folder_with_conf(getattr(module, "__path__", ()))
    if folder is None:
        raise PluginError(f"{package} has no folder conf/ beside its __init__.py")
    return folder


def _folder_with_conf(places: Iterable[str]) -> Path | None:
    return next((Path(place) for place in places if (Path(place) / "conf").is_dir()), None)


def _check_names(plugin: Plugin, owners: Mapping[tuple[str, str], str]) -> None:
    """Refuse folders that are no group, and names that are taken, as a number would be of either."""
    for folder in sorted(path.name for path in plugin.conf.iterdir() if path.is_dir()):
        if folder not in FOLDERS:
            raise PluginError(f"conf/{folder} is no group; nearest: {closest(folder, FOLDERS)}")
    for group, names in plugin.brings.items():
        for name in names:
            if (group, name) in owners:
                raise PluginError(f"{group}={name} is taken, by {owners[group, name]}")
    for path in sorted((plugin.conf.parent / "methods").glob("[!_]*")):
        if (PACKAGE / "methods" / f"{path.stem}.py").is_file():
            raise PluginError(f"methods/{path.name} has the name of a method of dmqbench")


def _check_yamls(paths: Iterable[Path], plugin: Plugin) -> None:
    for path in sorted(paths):
        place = path.relative_to(plugin.conf.parent).as_posix()
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
            raise PluginError(f"{place} cannot be read ({' '.join(str(error).split())})") from None
        if not isinstance(content, dict):
            raise PluginError(f"{place} holds no keys")


_NETWORK = "network"
"""What stands in the place of a group where classes of networks have their owners."""


def _networks(family: type[Family]) -> tuple[str, ...]:
    """What the networks of a family are called in files."""
    return family.network, *(f"{alias} of norm_type={family.norm_type}" for alias in family.aliases)


def _families(package: str, name: str) -> tuple[type[Family], ...]:
    try:
        found = families_in(import_module(f"{package}.families.{name}"))
    except (Exception, SystemExit) as error:
        raise PluginError(f"families/{name}.py cannot be imported ({_told(error)})") from None
    if not found:
        raise PluginError(f"families/{name}.py has no class that is a Family")
    return found


def _check_families(plugin: Plugin, owners: Mapping[tuple[str, str], str]) -> None:
    for family in plugin.families:
        place = f"{family.__module__.removeprefix(f'{plugin.package}.')}.{family.__name__}"
        if not isinstance(getattr(family, "network", None), str):
            raise PluginError(f"{place} names no network")
        if family.part not in NETWORK_FOLDERS:
            raise PluginError(f"{place}.part={family.part} is not known (allowed: {', '.join(NETWORK_FOLDERS)})")
        for name in _networks(family):
            if (_NETWORK, name) in owners:
                raise PluginError(f"{place}: network {name} is taken, by {owners[_NETWORK, name]}")


def _check_metrics(plugin: Plugin) -> None:
    for name in plugin.metrics:
        if plugin.module_file(f"{plugin.package}.metrics.{name}") is None:
            raise PluginError(f"conf/metric/{name}.yaml has no module metrics/{name}.py")


also_from(lambda: (family for plugin in usable() for family in plugin.families))
