"""The YAMLs of stages, of this project and of plug-ins. Imports no torch."""

from typing import Any

import yaml

from dmqbench.config.limits import Limits
from dmqbench.config.plugins import conf_folders


def stage_values(stage: str) -> dict[str, Any]:
    """Return what ``conf/stage/STAGE.yaml`` says, references as text; nothing for a stage of a method's YAML alone."""
    paths = (folder / "stage" / f"{stage}.yaml" for folder in conf_folders())
    path = next((path for path in paths if path.is_file()), None)
    return {} if path is None else yaml.safe_load(path.read_text(encoding="utf-8"))


def limits_of(stage: str) -> Limits:
    """Return the limits of a stage's settings."""
    return Limits.of(stage, stage_values(stage))
