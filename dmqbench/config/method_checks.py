"""Whether a method's settings, order of stages and calibration can work, before anything runs."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from omegaconf import OmegaConf

from dmqbench.config.checked_job import (
    ABOUT_STAGE,
    FURTHER_SCOPE,
    METHOD_KEYS,
    OPTIONAL_METHOD_KEYS,
    PAPER_SCOPE,
    STAGE_KEYS,
    Job,
    MethodConfig,
    StageConfig,
)
from dmqbench.config.errors import ConfigError, closest, require_one_of
from dmqbench.config.ids import needs_match
from dmqbench.config.limits import LIMITS, Limits, stage_values
from dmqbench.config.model_facts import timesteps
from dmqbench.config.names import CALIBRATIONS, FOREIGN, RANGES, UNCALIBRATED
from dmqbench.config.schema import CalibrationConfig, SamplerConfig
from dmqbench.models.folders import OWN
from dmqbench.quant.spec import ENGINE_NAMES, FULL_PRECISION, GRANULARITIES, group_size

WHOSE_PARAMETERS = {
    "nearest": "the activation parameters of the calibrated call at the nearest timestep",
    "interpolate": "activation parameters between those of the two calibrated calls around its timestep",
}
"""What every sampled call has, by ``calibration.match``."""


BIAS_CORRECTION = "bias_correction"
"""The stage that any method may end with."""


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
    plans = (timesteps(sampler, job.model, job.strength) for sampler in (job.calibration_sampler, job.sampler))
    kept, wanted = (f"{len(plan)} network calls at timesteps {plan[0]:g} to {plan[-1]:g}" for plan in plans)
    problem = (
        f"calibrates {kept}, and sampler.steps={job.sampler.steps} samples with {wanted}, for which "
        f"bits.ranges={job.bits.ranges} has no parameters; calibration.match=nearest takes the nearest timestep's, "
        f"calibration.match=interpolate those between two"
    )
    raise ConfigError("calibration.steps", job.calibration.steps, [job.sampler.steps], problem)


def check_trained(job: Job) -> None:
    """Refuse a stage that would train activation scales alone where there are none."""
    for stage in job.method.stages:
        for key, words in stage.limits.needs_activations.items():
            if job.bits.activation == FULL_PRECISION and stage.settings[key] in words:
                others = [word for word in stage.limits.choices[key] if word not in words]
                problem = "trains activation scales, and bits.activation=32 has none"
                raise ConfigError(f"method.{stage.name}.{key}", stage.settings[key], others, problem)


def check_granularity(job: Job) -> None:
    """Refuse ranges of tokens where there are none, or where an engine or a stage works on those of whole tensors."""
    key, (usual, *_), granularity = "bits.granularity", GRANULARITIES, job.bits.granularity
    if granularity == usual:
        return
    if job.bits.activation == FULL_PRECISION:
        raise ConfigError(key, granularity, [usual], "is of quantized activations, and bits.activation=32 has none")
    if job.engine != ENGINE_NAMES[0]:
        problem = f"computes with ranges that are known beforehand, and those of {key}={granularity} are not"
        raise ConfigError("engine", job.engine, [ENGINE_NAMES[0]], problem)
    for stage in job.method.stages:
        if stage.limits.whole_tensors:
            problem = f"does not fit method={job.method.name}: its stage {stage.name} works on ranges of whole tensors"
            raise ConfigError(key, granularity, [usual], problem)


def check_memory(job: Job) -> None:
    """Refuse a bound on memory that is none, or that cannot be planned for."""
    key, allowed = "budget.memory_gib", job.budget.memory_gib
    if allowed is None:
        return
    if not 0 < allowed < math.inf:
        raise ConfigError(key, allowed, ["more than 0"], "is no size", nearest=None)
    if job.model.source == OWN:
        problem = "is kept by a plan, and there is none for a network of one's own"
        raise ConfigError(key, allowed, [None], problem)


def check_method_yaml(method: Mapping[str, Any]) -> None:
    """Check that a method's YAML, references as text, has all common keys, a node for every stage, and nothing else."""
    stages = [str(stage) for stage in method.get("stages", ())]
    further = [key for key, node in method.items() if isinstance(node, Mapping) and {*STAGE_KEYS} <= node.keys()]
    known = (*METHOD_KEYS, *OPTIONAL_METHOD_KEYS, *references(method))
    _check_keys("method", method, METHOD_KEYS, [*known, *stages, *further])
    for stage in dict.fromkeys([*stages, *further]):
        node = method.get(stage)
        if not isinstance(node, Mapping):
            raise ConfigError("method.stages", stage, problem="has no settings of that name in the method's YAML")
        _check_keys(f"method.{stage}", node, STAGE_KEYS, list(stage_values(stage) or node))


def _check_keys(name: str, node: Mapping[str, Any], needed: Sequence[str], known: Sequence[str]) -> None:
    for key in needed:
        if key not in node:
            raise ConfigError(f"{name}.{key}", None, problem="is missing in the method's YAML")
    for key, value in node.items():
        if key not in known:
            text = "..." if isinstance(value, Mapping) else value
            raise ConfigError(f"{name}.{key}", text, known, "in the method's YAML is not a key", closest(key, known))


def checked_method(plain: Mapping[str, Any], unresolved: Any) -> MethodConfig:
    """Return the method whose resolved YAML is ``plain``, every value of it checked.

    Args:
        unresolved: the same with references such as ``${method.faithful}`` as they are written.

    Raises:
        ConfigError: a value is not allowed, or changes nothing.
    """
    available = [key for key, value in plain.items() if isinstance(value, Mapping) and "uses" in value]
    for stage in plain["stages"]:
        require_one_of("method.stages", stage, available)
    limits = {stage: Limits.of(stage, plain[stage]) for stage in plain["stages"]}
    _check_order(plain["stages"], limits)
    if not plain["stages"] and plain["name"] not in UNCALIBRATED:
        raise ConfigError("method.stages", "[]", problem=f"leaves nothing to method={plain['name']}")
    require_one_of("method.calibration", plain["calibration"], CALIBRATIONS)
    check_ranges("method.ranges", plain["ranges"], RANGES)
    _check_scope("method.paper_scope", plain["paper_scope"])
    _check_common_keys(plain, unresolved)
    _check_own_keys(plain, unresolved)
    return MethodConfig(
        **{key: plain[key] for key in METHOD_KEYS if key != "stages"},
        variant=plain.get("variant", ""),
        stages=tuple(_stage(name, plain[name], limits[name]) for name in plain["stages"]),
    )


def with_bias_correction(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return a resolved configuration whose method ends with the stage of that name, and says so in its variant; as it
    is where the method calibrates nothing, or has the stage among its own.

    Raises:
        ConfigError: a setting of the stage is not allowed.
    """
    method = plain["method"]
    if not method["stages"] or BIAS_CORRECTION in method["stages"]:
        return dict(plain)
    made = OmegaConf.create({"budget": plain["budget"], BIAS_CORRECTION: stage_values(BIAS_CORRECTION)})
    resolved: Any = OmegaConf.to_container(made, resolve=True)
    variant = ", ".join(filter(None, (method.get("variant"), BIAS_CORRECTION.replace("_", " "))))
    stages = [*method["stages"], BIAS_CORRECTION]
    changed = {**method, "stages": stages, BIAS_CORRECTION: resolved[BIAS_CORRECTION], "variant": variant}
    return {**plain, "method": changed}


def without_limits(method: Mapping[str, Any]) -> dict[str, Any]:
    """Return the YAML of a method as results keep it: what its stages may be set to is no part of what they are."""
    stages = {key: value for key, value in method.items() if isinstance(value, Mapping)}
    return {**method, **{name: {key: value[key] for key in value if key != LIMITS} for name, value in stages.items()}}


def references(value: Any) -> set[str]:
    """Return the names of the values of the method that a YAML refers to, as in ``${method.faithful}``."""
    if isinstance(value, (Mapping, list)):
        parts = value.values() if isinstance(value, Mapping) else value
        return {name for part in parts for name in references(part)}
    return set(_REFERENCE.findall(value)) if isinstance(value, str) else set()


_REFERENCE = re.compile(r"\$\{method\.(\w+)\}")


def _check_common_keys(plain: Mapping[str, Any], unresolved: Mapping[str, Any]) -> None:
    """Refuse a value of a common key that nothing in the method's YAML reads."""
    read = references({key: value for key, value in unresolved.items() if key not in METHOD_KEYS})
    if plain.get("faithful_settings"):
        read.add("faithful")
    if plain["name"] == FOREIGN:
        read.add("path")
    for key, default in (("faithful", False), ("path", None), ("calibration", "common")):
        if plain[key] != default and key not in read:
            problem = f"changes nothing in method={plain['name']}"
            raise ConfigError(f"method.{key}", plain[key], [default], problem)


def _check_own_keys(plain: Mapping[str, Any], unresolved: Mapping[str, Any]) -> None:
    """Refuse a switch of the method's own that is on while no stage that is listed reads it."""
    for key in references(unresolved) - {*METHOD_KEYS, *OPTIONAL_METHOD_KEYS}:
        readers = [name for name, node in unresolved.items() if key in references(node)]
        if plain[key] is True and not set(readers) & set(plain["stages"]):
            problem = f"changes nothing without the stage {' or '.join(readers)}"
            raise ConfigError(f"method.{key}", True, [False], problem)


def _check_scope(key: str, value: Mapping[str, Any]) -> None:
    for name in (*PAPER_SCOPE, *(name for name in FURTHER_SCOPE if name in value)):
        if not isinstance(value.get(name), bool):
            raise ConfigError(f"{key}.{name}", value.get(name), (True, False), "is not true or false")
    for name in value:
        require_one_of(key, name, (*PAPER_SCOPE, *FURTHER_SCOPE))


def _stage(name: str, values: Mapping[str, Any], limits: Limits) -> StageConfig:
    for use in values["uses"]:
        require_one_of(f"method.{name}.uses", use, ("weight", "activation"))
    settings = {key: value for key, value in values.items() if key not in ABOUT_STAGE}
    limits.check(settings, f"method.{name}.")
    return StageConfig(
        name,
        values["version"],
        tuple(values["uses"]),
        settings,
        tuple(values.get("not_in_id", ())),
        dict(values.get("not_in_id_when", {})),
        limits,
    )


def _check_order(stages: Sequence[str], limits: Mapping[str, Limits]) -> None:
    """Refuse a list of stages that would fail, or work on what is not there yet, after an hour."""
    text = f"[{','.join(stages)}]"
    for place, stage in enumerate(stages):
        if stage in stages[:place]:
            raise ConfigError("method.stages", text, problem=f"has {stage} twice")
        for needed in limits[stage].needs_before:
            if not set(needed) & set(stages[:place]):
                raise ConfigError("method.stages", text, problem=f"needs {' or '.join(needed)} before {stage}")
        for later in limits[stage].needs_after:
            if later not in stages[place:]:
                raise ConfigError("method.stages", text, problem=f"needs {later} after {stage}")
