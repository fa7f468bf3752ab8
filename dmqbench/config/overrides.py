"""What a command line says, word by word: parsed, and the combinations that several values make. Imports no torch."""

import itertools
from collections.abc import Sequence
from functools import lru_cache

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException

from dmqbench.config.checked_job import SET_IN_YAML_ONLY
from dmqbench.config.errors import ConfigError
from dmqbench.config.places import CONF
from dmqbench.config.texts import as_text

HIDDEN = "base_"
"""Prefix of schemas, which are no options."""


def parse(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides one by one; ConfigError names the one that cannot be read."""
    return [_parsed(text) for text in overrides]


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Override:
    """Parse one override, once a process: the jobs of a sweep share most of theirs, and each is read several times."""
    try:
        return OverridesParser.create().parse_override(as_text(text))
    except (OverrideParseException, HydraException) as error:
        key, _, value = text.partition("=")
        reason = str(error).splitlines()[0]
        raise ConfigError(key, value, problem=f"cannot be read as key=value ({reason})") from None


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """Return all combinations of the values of a multirun, in the order of the command line."""
    parse(overrides)
    choices = []
    with initialized():
        loader = GlobalHydra.instance().config_loader()
        texts = [as_text(text, several=True) for text in overrides]
        for override in OverridesParser.create(config_loader=loader).parse_overrides(texts):
            if override.is_sweep_override():
                values = [value for value in override.sweep_string_iterator() if not value.startswith(HIDDEN)]
                choices.append([f"{override.get_key_element()}={value}" for value in values])
            else:
                choices.append([override.input_line or ""])
    return [list(chosen) for chosen in itertools.product(*choices)]


def initialized() -> initialize_config_dir:
    """Hydra over this package's configuration, for as long as it is needed."""
    return initialize_config_dir(str(CONF), job_name="dmqbench", version_base="1.3")


def check_form(override: Override) -> None:
    """Refuse an override of a kind that no job takes; ConfigError."""
    key, value = override.key_or_group, override.value()
    if key.startswith("method.") and {"faithful_settings", *SET_IN_YAML_ONLY} & {*key.split(".")}:
        raise ConfigError(key, value, problem="says what the YAML means, and is set there only")
    if override.is_delete():
        raise ConfigError(f"~{key}", value, problem="removes a key, and all of them are needed")
    if override.is_sweep_override():
        raise ConfigError(key, override.get_value_string(), problem="has several values, which need -m")
    if override.package is not None:
        raise ConfigError(f"{key}@{override.package}", value, problem="is not known: groups have one place")
