"""Quantization methods: one file each, made of stages."""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from dmqbench.config.checked_job import MethodConfig
from dmqbench.config.errors import ConfigError
from dmqbench.config.plugin_code import method_module, require_module, stage_origin

if TYPE_CHECKING:
    from dmqbench.calibration.stage import StageFactory


def stages_of(method: str) -> "Mapping[str, StageFactory]":
    """Return the stages that a method may use, by the names that its YAML lists, and those that any may end with.

    Raises:
        ConfigError: its module is not there or cannot be imported, or one of its stages is computed by code that ids
            do not know.
    """
    require_module(method)
    module = str(method_module(method))
    try:
        stages: Mapping[str, StageFactory] = {**_shared(), **import_module(module).STAGES}
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError("method", method, problem=f"cannot be used: {module} fails ({reason})") from None
    for name, stage in stages.items():
        _check_origin(method, name, stage.__module__)
    return stages


def _shared() -> "Mapping[str, StageFactory]":
    from dmqbench.stages.bias_correction import BiasCorrection

    return {BiasCorrection.name: BiasCorrection}


def _check_origin(method: str, stage: str, module: str) -> None:
    """Refuse a stage whose class is neither of this package nor in a module that the stage's id names."""
    origin = stage_origin(method, stage)
    if module.startswith("dmqbench.") or (origin is not None and module in origin["modules"]):
        return
    reason = "has the name of a stage of dmqbench" if origin is None else f"is defined in {module}, unknown to its id"
    problem = f"{reason}: define it under a name of its own in stages/NAME.py beside methods/{method}.py"
    raise ConfigError(f"method={method}: stage", stage, problem=problem)


def require_stages(method: MethodConfig) -> None:
    """Refuse a method one of whose stages is missing; ConfigError."""
    available = tuple(stages_of(method.name)) if method.stages else ()
    for stage in method.stages:
        if stage.name not in available:
            problem = f"is not among STAGES of {method_module(method.name)}"
            raise ConfigError("method.stages", stage.name, available, problem)
