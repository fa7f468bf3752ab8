"""Whether a method's settings, order of stages and calibration can work, before anything runs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dmqbench.config import schema
from dmqbench.config.errors import ConfigError, closest, require_one_of
from dmqbench.config.ids import needs_match
from dmqbench.config.model_facts import timesteps
from dmqbench.config.precision_plans import SEARCH
from dmqbench.config.schema import (
    FULL_PRECISION,
    METHOD_KEYS,
    CalibrationConfig,
    Job,
    MethodConfig,
    SamplerConfig,
    StageConfig,
)
from dmqbench.config.stage_limits import BOUNDS, CHOICES, NEEDS_AFTER, NEEDS_BEFORE
from dmqbench.quant.spec import group_size

WHOSE_PARAMETERS = {
    "nearest": "the activation parameters of the calibrated call at the nearest timestep",
    "interpolate": "activation parameters between those of the two calibrated calls around its timestep",
}
"""What every sampled call has, by ``calibration.match``."""


def check_ranges(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a word that is neither among ``allowed``, whose last stands for all groups, nor a group."""
    try:
        if value not in allowed[:-1]:
            group_size(value)
    except ValueError:
        digits = "".join(filter(str.isdecimal, value))[:9]
        nearest = f"group{max(1, int(digits))}" if digits else closest(value, allowed)
        raise ConfigError(key, value, allowed, nearest=nearest) from None


def check_points(samples: int, ranges: str, calls: int) -> None:
    """Every group of calls needs a calibration point; the bank spreads them over the calls, the first ones first."""
    size = group_size(ranges)
    if size is None:
        return
    groups = -(-calls // size)
    needed = (groups - 1) * size + 1
    if samples < needed:
        what = "network calls" if size == 1 else "groups of network calls"
        problem = f"leaves some of the {groups} {what} without a calibration point, and bits.ranges={ranges} needs one"
        raise ConfigError("budget.samples", samples, [needed], problem)


def check_windows(method: MethodConfig, calls: int) -> None:
    """Refuse a window of consecutive network calls that is longer than the trajectories."""
    for stage in method.stages:
        window = stage.settings.get("window", 1)
        if window > calls:
            problem = f"is longer than the trajectories, of {calls} network {'call' if calls == 1 else 'calls'}"
            raise ConfigError(f"method.{stage.name}.window", window, [f"1 to {calls}"], problem, calls)


def resolved_calibration(calibration: CalibrationConfig, sampler: SamplerConfig) -> CalibrationConfig:
    """The same calibration, null wherever it is what the sampler is."""
    same = {key: None for key, value in calibration.changes.items() if getattr(sampler, key) == value}
    return replace(calibration, **same)  # type: ignore[arg-type]


def check_plans(job: Job) -> None:
    """Refuse to sample at timesteps for which a calibrated model has no parameters, unless told whose to take."""
    if job.calibration.match != "refuse" or not needs_match(job):
        return
    plans = (timesteps(each, job.model, job.strength) for each in (job.calibration_sampler, job.sampler))
    kept, wanted = map(_shown, plans)
    problem = (
        f"calibrates {kept}, and sampler.steps={job.sampler.steps} samples with {wanted}, for which "
        f"bits.ranges={job.bits.ranges} has no parameters; calibration.match=nearest takes the nearest timestep's, "
        f"calibration.match=interpolate those between two"
    )
    raise ConfigError("calibration.steps", job.calibration.steps, [job.sampler.steps], problem)


def check_trained(job: Job) -> None:
    """Refuse a last stage that would be the name of the row and train nothing."""
    for stage in job.method.stages:
        scales_alone = stage.settings.get("recipe") == "scales"
        if stage.name == "trajectory_reconstruction" and scales_alone and job.bits.activation == FULL_PRECISION:
            problem = "trains activation scales, and bits.activation=32 has none"
            raise ConfigError(f"method.{stage.name}.recipe", "scales", ["joint"], problem)


def _shown(plan: tuple[int, ...]) -> str:
    return f"{len(plan)} network calls at timesteps {plan[0]} to {plan[-1]}"


def checked_method(plain: Mapping[str, Any], unresolved: Any) -> MethodConfig:
    for stage in plain["stages"]:
        available = [key for key in plain if key not in (*METHOD_KEYS, *schema.OPTIONAL_METHOD_KEYS)]
        require_one_of("method.stages", stage, available)
    _check_order(plain["stages"])
    if not plain["stages"] and plain["name"] not in schema.UNCALIBRATED:
        raise ConfigError("method.stages", "[]", problem=f"leaves nothing to method={plain['name']}")
    require_one_of("method.calibration", plain["calibration"], schema.CALIBRATIONS)
    check_ranges("method.ranges", plain["ranges"], schema.RANGES)
    _check_scope("method.paper_scope", plain["paper_scope"])
    used = str({key: value for key, value in unresolved.items() if key not in METHOD_KEYS})
    preset = {"faithful": bool(plain.get("faithful_settings")), "path": plain["name"] == schema.FOREIGN}
    for key, default in (("faithful", False), ("path", None), ("calibration", "common")):
        read = f"method.{key}}}" in used or preset.get(key, False)
        if plain[key] != default and not read:
            problem = f"changes nothing in method={plain['name']}"
            raise ConfigError(f"method.{key}", plain[key], [default], problem)
    if plain.get("plus") and SEARCH not in plain["stages"]:
        raise ConfigError("method.plus", True, [False], f"changes nothing without the stage {SEARCH}")
    return MethodConfig(
        **{key: plain[key] for key in METHOD_KEYS if key != "stages"},
        variant=plain.get("variant", ""),
        stages=tuple(_stage(name, plain[name]) for name in plain["stages"]),
    )


def _check_scope(key: str, value: Mapping[str, Any]) -> None:
    for name in (*schema.PAPER_SCOPE, *(name for name in schema.FURTHER_SCOPE if name in value)):
        if not isinstance(value.get(name), bool):
            raise ConfigError(f"{key}.{name}", value.get(name), (True, False), "is not true or false")
    for name in value:
        require_one_of(key, name, (*schema.PAPER_SCOPE, *schema.FURTHER_SCOPE))


def _stage(name: str, values: Mapping[str, Any]) -> StageConfig:
    for use in values["uses"]:
        require_one_of(f"method.{name}.uses", use, ("weight", "activation"))
    settings = {key: value for key, value in values.items() if key not in schema.ABOUT_STAGE}
    _check_settings(name, settings)
    return StageConfig(
        name,
        values["version"],
        tuple(values["uses"]),
        settings,
        tuple(values.get("not_in_id", ())),
        dict(values.get("not_in_id_when", {})),
    )


def _check_settings(stage: str, settings: Mapping[str, Any]) -> None:
    for key, allowed in CHOICES.get(stage, {}).items():
        if key in settings:
            require_one_of(f"method.{stage}.{key}", settings[key], allowed)
    for key, (low, high) in BOUNDS.get(stage, {}).items():
        value = settings.get(key, low)
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or not low <= value <= high:
            allowed = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
            nearest = high if is_number and value > high else low
            raise ConfigError(f"method.{stage}.{key}", value, [allowed], "is out of range", f"{nearest:g}")


def _check_order(stages: Sequence[str]) -> None:
    """Refuse a list of stages that would fail, or work on what is not there yet, after an hour."""
    text = f"[{','.join(stages)}]"
    for place, stage in enumerate(stages):
        if stage in stages[:place]:
            raise ConfigError("method.stages", text, problem=f"has {stage} twice")
        for needed in NEEDS_BEFORE.get(stage, ()):
            if not set(needed) & set(stages[:place]):
                raise ConfigError("method.stages", text, problem=f"needs {' or '.join(needed)} before {stage}")
        for later in NEEDS_AFTER.get(stage, ()):
            if later not in stages[place:]:
                raise ConfigError("method.stages", text, problem=f"needs {later} after {stage}")
