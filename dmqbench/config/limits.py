"""What the settings of a stage may be, so that a wrong one is refused before anything is computed. Imports no torch.

They stand in the YAML of the stage, under ``limits``; nothing of them enters an id or a result.
"""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

import yaml

from dmqbench.config.errors import ConfigError, require_one_of
from dmqbench.config.plugins import conf_folders

_parsed = lru_cache(yaml.safe_load)
"""By text: a job reads the YAML of a stage several times, and parsing takes longer than all else."""


def stage_values(stage: str) -> dict[str, Any]:
    """Return what ``conf/stage/STAGE.yaml`` says, references as text; nothing for a stage of a method's YAML alone."""
    paths = (folder / "stage" / f"{stage}.yaml" for folder in conf_folders())
    path = next((path for path in paths if path.is_file()), None)
    return {} if path is None else deepcopy(_parsed(path.read_text(encoding="utf-8")))


LIMITS = "limits"
"""The key of a stage's YAML that they stand under."""


@dataclass(frozen=True)
class Limits:
    """Limits of the settings of one stage, and what it asks of the method and the job around it."""

    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Setting → the words it may be."""
    bounds: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    """Setting → its smallest and its largest value; null: there is none."""
    needs_before: Sequence[Sequence[str]] = ()
    """Sets of stages of each of which one must come before it: without ranges, say, it has nothing to work on."""
    needs_after: Sequence[str] = ()
    """Stages that must follow it: another scale, or other bits, make what they found worthless."""
    needs_activations: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Setting → words with which it trains activation scales alone, which bits.activation=32 has not."""
    finds_bits: bool = False
    """Whether it finds the bits of rows, so that no precision plan can be given."""
    whole_tensors: bool = False
    """Whether it works on ranges of whole activations, so that bits.granularity=token leaves it nothing sensible."""

    @classmethod
    def of(cls, stage: str, values: Mapping[str, Any]) -> "Limits":
        """Return those among the ``values`` of a stage's YAML.

        Raises:
            ConfigError: they are not written as they must be.
        """
        limits, name = values.get(LIMITS, {}), f"method.{stage}.{LIMITS}"
        for key in limits:
            require_one_of(name, key, [item.name for item in fields(cls)])
        for kind in ("choices", "bounds", "needs_activations"):
            of_settings = limits.get(kind, {})
            if not isinstance(of_settings, Mapping):
                raise ConfigError(f"{name}.{kind}", of_settings, problem="is not a mapping of settings to lists [...]")
            for setting, allowed in of_settings.items():
                require_one_of(f"{name}.{kind}", setting, list(values))
                if not isinstance(allowed, list) or (kind == "bounds" and len(allowed) != 2):
                    raise ConfigError(f"{name}.{kind}.{setting}", allowed, problem="is not a list [...] as it must be")
        return cls(**limits)

    def check(self, settings: Mapping[str, Any], prefix: str = "") -> None:
        """Refuse the first of ``settings`` that is none of its choices, or out of its bounds.

        Args:
            prefix: what stands before the name of a setting in the message.

        Raises:
            ConfigError: with the key, the value and the nearest allowed one.
        """
        for key, allowed in self.choices.items():
            if key in settings:
                require_one_of(f"{prefix}{key}", settings[key], allowed)
        for key, (smallest, largest) in self.bounds.items():
            if key in settings:
                _check_bounds(f"{prefix}{key}", settings[key], smallest, largest)


def limits_of(stage: str) -> Limits:
    """Return the limits of a stage's settings."""
    return Limits.of(stage, stage_values(stage))


def _check_bounds(key: str, value: Any, smallest: float | None, largest: float | None) -> None:
    low, high = -math.inf if smallest is None else smallest, math.inf if largest is None else largest
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if is_number and low <= value <= high:
        return
    allowed = f"{low:g} or more" if largest is None else f"{low:g} to {high:g}"
    nearest = high if is_number and value > high else low
    raise ConfigError(key, value, [allowed], "is out of range", f"{nearest:g}")
