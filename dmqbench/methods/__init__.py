"""Quantization methods: one file each, made of stages."""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dmqbench.calibration.stage import StageFactory


def stages_of(method: str) -> "Mapping[str, StageFactory]":
    """Return the stages that a method may use, by the names that its YAML lists."""
    return import_module(f"{__name__}.{method}").STAGES
