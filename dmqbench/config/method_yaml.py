"""Whether a method's YAML has all keys that methods have, and no other."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from dmqbench.config.checked_job import METHOD_KEYS, OPTIONAL_METHOD_KEYS, STAGE_KEYS
from dmqbench.config.errors import ConfigError, closest
from dmqbench.config.method_checks import references
from dmqbench.config.stage_files import stage_values


def check_method_yaml(method: DictConfig) -> None:
    """A method's YAML has all common keys, a node for every stage, and nothing else."""
    for key in METHOD_KEYS:
        if key not in method:
            raise ConfigError(f"method.{key}", None, METHOD_KEYS, "is missing in the method's YAML", nearest=key)
    stages = [str(stage) for stage in method.stages]
    known = (*METHOD_KEYS, *OPTIONAL_METHOD_KEYS, *references(OmegaConf.to_container(method, resolve=False)))
    for key in method:
        if key not in known and key not in stages and not _is_stage(method[key]):
            allowed = (*known, *stages)
            raise ConfigError(
                f"method.{key}", "...", allowed, "in the method's YAML is not a key", closest(key, allowed)
            )
    for stage in dict.fromkeys([*stages, *(str(key) for key in method if _is_stage(method[key]))]):
        _check_stage_yaml(stage, method.get(stage))


def _is_stage(node: Any) -> bool:
    """Whether these are the settings of a stage, be it one that the method's list leaves out."""
    return isinstance(node, DictConfig) and all(key in node for key in STAGE_KEYS)


def _check_stage_yaml(stage: str, node: Any) -> None:
    if not isinstance(node, DictConfig):
        raise ConfigError("method.stages", stage, problem="has no settings of that name in the method's YAML")
    known = list(stage_values(stage) or node)
    for key in node:
        if key not in known:
            name = f"method.{stage}.{key}"
            raise ConfigError(name, node[key], known, "in the method's YAML is not a key", closest(key, known))
    for key in STAGE_KEYS:
        if key not in node:
            raise ConfigError(f"method.{stage}.{key}", None, problem="is missing in the method's YAML")
