"""From the command line to validated jobs: composing with Hydra, checking, resolving. Imports no torch.

A wrong configuration is a ``ConfigError``: one line with the key, the value and the nearest allowed one.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose as hydra_compose
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from dmqbench.config.checked_job import ABOUT_STAGE
from dmqbench.config.errors import ConfigError, closest
from dmqbench.config.method_checks import check_method_yaml
from dmqbench.config.overrides import HIDDEN, check_form, initialized, parse
from dmqbench.config.places import CONF, planned
from dmqbench.config.plugin_code import require_module
from dmqbench.config.plugins import Plugin, conf_folders, left_out_with, usable
from dmqbench.config.schema import GROUPS, OPTION_GROUPS, RootConfig
from dmqbench.config.texts import quoted
from dmqbench.config.values import copy_of, leaves, refuse_resolvers, set_values, settable

ROOT = "config"


def register_schemas() -> None:
    """Tell Hydra the schemas: ``base_config`` of the root, ``base_<group>`` of every group but ``method``."""
    for group, kind in {None: RootConfig, **GROUPS}.items():
        node = OmegaConf.structured(kind)
        _make_writable(node)
        ConfigStore.instance().store(group=group, name=f"{HIDDEN}{group or ROOT}", node=node)


def _make_writable(node: DictConfig) -> None:
    """Let the node of a frozen dataclass be written while a configuration is composed."""
    OmegaConf.set_readonly(node, None)
    for key in node:
        if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            _make_writable(node[key])


class PluginPaths(SearchPathPlugin):
    """Tells Hydra where plug-ins have their YAMLs, wherever it composes this project's configuration."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if str(CONF) in {element.path.removeprefix("file://") for element in search_path.get_path()}:
            for plugin in usable():
                search_path.append(f"plug-in {plugin.name}", f"file://{plugin.conf}")


register_schemas()
Plugins.instance().register(PluginPaths)


def search_path(config_dirs: Sequence[str]) -> list[str]:
    """Return the override that adds folders of the user's own YAMLs.

    Raises:
        ConfigError: a folder does not exist.
    """
    for folder in config_dirs:
        if not Path(folder).is_dir():
            raise ConfigError("--config-dir", folder, problem="is not a folder")
    paths = [quoted(f"file://{Path(folder).resolve()}") for folder in config_dirs]
    return [f"hydra.searchpath=[{','.join(paths)}]"] if paths else []


def _folders(hydra_own: Sequence[str]) -> list[Path]:
    """The folders that ``search_path`` put into an override."""
    values = [override.value() for override in parse(hydra_own) if override.key_or_group == "hydra.searchpath"]
    places = [place for value in values if isinstance(value, list) for place in value]
    return [Path(str(place).removeprefix("file://")) for place in places]


def compose(overrides: Sequence[str]) -> DictConfig:
    """Compose the configuration of one job from ``key=value`` overrides.

    Group choices are composed by Hydra; the remaining values must then fit what was composed, in name and
    type. The YAML of a method is its schema in the same way.

    Raises:
        ConfigError: an unknown option or key, a value of the wrong type, bad syntax, or a typo inside a YAML.
    """
    parsed = parse(overrides)
    hydra_own = [override.input_line or "" for override in parsed if override.is_hydra_override()]
    own = [override for override in parsed if not override.is_hydra_override()]
    for override in own:
        check_form(override)
    texts = tuple(override.input_line or "" for override in own if override.key_or_group in OPTION_GROUPS)
    others = hydra_own or usable()  # YAMLs of others may change while the process lives
    chosen = _chosen(_composed(tuple(hydra_own), texts)) if others else _chosen_of_package(texts)
    config = copy_of(chosen.config)
    values = [
        (key, value)
        for override in own
        if override.key_or_group not in OPTION_GROUPS
        for key, value in leaves(override.key_or_group, override.value())
    ]
    of_method = [(key, value) for key, value in values if key.startswith("method.")]
    rest = [pair for pair in values if pair not in of_method] + _preset(config.method, values)
    set_values(config, rest, chosen.names)
    for key, value in values:
        refuse_resolvers(value, key)
    if of_method:
        given, named = _settings(config), config.method.variant
        set_values(config, of_method, chosen.names)
        if config.method.variant == named:  # which a command line may set too, and then it is left so
            config.method.variant = ", ".join(filter(None, (named, variant_text(given, _settings(config)))))
    return config


class _Chosen(NamedTuple):
    """What YAMLs say before values of a command line are set; ``names``: of the values that can be."""

    config: DictConfig
    names: tuple[str, ...]


def _chosen(config: DictConfig) -> _Chosen:
    """Check what was composed; ConfigError."""
    check_method_yaml(dict(OmegaConf.to_container(config.method, resolve=False)))  # type: ignore[arg-type]
    OmegaConf.update(config, "method.variant", config.method.get("variant", ""), force_add=True)
    plain = OmegaConf.to_container(config, resolve=False)
    refuse_resolvers(plain, "")
    return _Chosen(config, settable(plain))


@lru_cache(maxsize=256)
def _chosen_of_package(texts: tuple[str, ...]) -> _Chosen:
    """Compose and check choices among the package's own YAMLs, each once a process."""
    return _chosen(_of_package(texts))


def _composed(hydra_own: tuple[str, ...], choices: tuple[str, ...], alone: bool = False) -> DictConfig:
    """Compose choices of groups with Hydra: the whole configuration, or what one choice ``alone`` says."""
    parsed = parse(choices)
    root, overrides = ROOT, [*hydra_own, *choices]
    if alone:
        root, overrides = f"{parsed[0].key_or_group}/{parsed[0].value()}", []
    with initialized():
        for choice in parsed:
            _check_choice(choice, hydra_own)
        try:
            return hydra_compose(root, overrides)
        except (HydraException, OmegaConfBaseException) as error:
            raise _translated(error, [*conf_folders(), *_folders(hydra_own)]) from None


TOGETHER = ("model", "sampler")
"""Groups whose YAMLs Hydra has to put together, as a model's gives values of the sampler; each other has its node."""

_composed_once = lru_cache(maxsize=256)(partial(_composed, ()))


def _of_package(texts: tuple[str, ...]) -> DictConfig:
    """Compose choices among the package's own YAMLs one by one: all together take Hydra a quarter of a second."""
    choices = {choice.key_or_group: choice for choice in parse(texts)}
    if len(choices) < len(texts) or any(choice.type is not OverrideType.CHANGE for choice in choices.values()):
        return _composed((), texts)
    together = [choice.input_line or "" for group, choice in choices.items() if group in TOGETHER]
    config = copy_of(_composed_once(tuple(together)))
    for group, choice in choices.items():
        if group not in TOGETHER:
            config[group] = _composed_once((choice.input_line or "",), alone=True)[group]
    return config


def wrong_options(plugin: Plugin) -> list[str]:
    """Return what is wrong with options of a usable plug-in, one line each; such a one is refused where it is used."""
    chosen = [f"{group}={name}" for group in OPTION_GROUPS for name in plugin.names(group)]
    problems = []
    for option in chosen if plugin.problem is None else ():
        try:
            require_module(compose([option]).method.name)
        except ConfigError as error:
            problems.append(f"{option} cannot be used: {error}")
    return problems


def _preset(method: DictConfig, values: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Return what ``method.faithful=true`` stands for, be it among ``values`` or in the YAML."""
    faithful = dict(values).get("method.faithful", method.faithful)
    if faithful is not True or "faithful_settings" not in method:
        return []
    return list(leaves("method", OmegaConf.to_container(method.faithful_settings)))


def _settings(config: DictConfig) -> dict[str, Any]:
    """Return every value of the method by its dotted name, references resolved where they lead somewhere."""
    try:
        return dict(leaves("", OmegaConf.to_container(config.method, resolve=True)))
    except OmegaConfBaseException:  # make_job says which reference leads nowhere
        return dict(leaves("", OmegaConf.to_container(config.method, resolve=False)))


def _options(group: str, hydra_own: tuple[str, ...]) -> list[str]:
    """Return the options of a group, while Hydra is initialized."""
    loader = GlobalHydra.instance().config_loader()
    names = loader.get_group_options(group, config_name=ROOT, overrides=list(hydra_own))
    return [name for name in names if not name.startswith(HIDDEN)]


_options_of_package = lru_cache(partial(_options, hydra_own=()))


def _check_choice(choice: Override, hydra_own: tuple[str, ...]) -> None:
    group, value = choice.key_or_group, choice.value()
    options = _options(group, hydra_own) if hydra_own or usable() else _options_of_package(group)
    if value in options:
        return
    if (plugin := left_out_with(group, str(value))) is not None:
        raise ConfigError(group, value, options, f"is of the plug-in {plugin.name}, {plugin.summary}")
    if value in planned(group):
        raise ConfigError(group, value, options, "is not built yet", nearest=None)
    raise ConfigError(group, value, options)


def _translated(error: Exception, folders: Sequence[Path]) -> ConfigError:
    """Return what Hydra and OmegaConf say in ten lines, in one; YAMLs are looked for in ``folders``."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        options = [option for option in error.options if not option.startswith(HIDDEN)]
        return ConfigError(group or "config", name, options)
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__ or error.__context__
    place = re.match(r"In '([^']+)'", str(error))
    where = f"in {place.group(1)}.yaml" if place else ""
    if isinstance(cause, ConfigKeyError) and cause.key is not None:
        kind = cause.object_type
        keys = [item.name for item in fields(kind)] if is_dataclass(kind) else []
        key = str(cause.full_key or cause.key)
        value = _yaml_value(place.group(1), (key, str(cause.key)), folders) if place else None
        return ConfigError(key, value, keys, f"{where} is not a key", nearest=closest(cause.key, keys))
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        return ConfigError(str(cause.full_key), cause.value, problem=f"{where}: {str(cause).splitlines()[0]}")
    text = [line for line in (*str(error).splitlines(), *str(cause or "").splitlines()) if line.strip()]
    return ConfigError("config", "?", problem=f"cannot be composed: {' '.join(text[:2])}")


def _yaml_value(name: str, keys: Sequence[str], folders: Sequence[Path]) -> Any:
    """Return what a YAML on the search path gives for one of ``keys``, for the message alone."""
    path = next((path for folder in folders if (path := folder / f"{name}.yaml").is_file()), None)
    content = OmegaConf.load(path) if path is not None else None
    values = [OmegaConf.select(content, key) for key in keys if isinstance(content, DictConfig)]
    return next((value for value in values if value is not None), None)


def variant_text(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return in a few words what sets ``after`` apart from the YAML or preset ``before``: part of a row's name.

    What changes no number is not named: settings of stages that are not listed, and those that enter no id.
    """
    usual, chosen = before["stages"], after["stages"]
    words = ["faithful"] if after.get("faithful") and not before.get("faithful") else []
    words += [f"no {stage}" for stage in usual if stage not in chosen]
    words += [f"with {stage}" for stage in chosen if stage not in usual]
    if not words and usual != chosen:
        words.append("stages=" + ">".join(chosen))
    for name, value in after.items():
        stage, _, key = name.partition(".")
        no_number = (*ABOUT_STAGE, *after.get(f"{stage}.not_in_id", ()))
        if before.get(name) == value or stage not in chosen or key.partition(".")[0] in no_number:
            continue
        shared = sum(f"{other}.{key}" in after for other in chosen) > 1
        text = str(value).lower() if isinstance(value, bool) else value  # as on the command line
        words.append(f"{stage + '.' if shared else ''}{key}={text}")
    return ", ".join(words)
