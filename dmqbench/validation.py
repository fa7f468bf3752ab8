"""Checking a composed configuration and turning it into a job. Imports neither torch nor Hydra."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from dmqbench import schema
from dmqbench.calibration_checks import (
    check_plans,
    check_points,
    check_ranges,
    check_trained,
    check_windows,
    resolved_calibration,
)
from dmqbench.config_error import ConfigError
from dmqbench.foreign import ForeignError, check_foreign, images_job
from dmqbench.ids import network_config, timesteps
from dmqbench.models.folders import SCHEDULER_CONFIG, ModelError, locate
from dmqbench.models.foreign import require_fit
from dmqbench.precision_plans import SEARCH, given_plan
from dmqbench.quant.spec import group_size
from dmqbench.samplers.timesteps import SPACINGS
from dmqbench.schema import (
    GROUPS,
    METHOD_KEYS,
    BitsConfig,
    Job,
    MethodConfig,
    ModelConfig,
    StageConfig,
    without_calibration,
)
from dmqbench.stage_limits import BOUNDS, CHOICES, NEEDS_AFTER, NEEDS_BEFORE
from dmqbench.store.files import safe_name
from dmqbench.task_kinds import check_condition, check_inputs, check_kind

_NEEDED = {"embedded": (), "architecture": (), "local": ("path",), "hub": ("path", "revision")}

T = TypeVar("T")


def make_job(config: DictConfig) -> Job:
    """Check every value and resolve what depends on others.

    Raises:
        ConfigError: a value is not allowed, or two do not fit.
        ModelError: a model whose shape is not configured has no folder to read it from.
    """
    plain = _resolved(config)
    for key, allowed in (("task", schema.TASKS), ("engine", schema.ENGINES)):
        _one_of(key, plain[key], allowed)
    groups = {group: kind(**_frozen(plain[group])) for group, kind in GROUPS.items()}
    _check_weights(plain["task"], groups["model"])
    method = _method(plain["method"], OmegaConf.to_container(config.method, resolve=False))
    _check_seeds(plain)
    _check_bits(groups["bits"])
    _check_metrics(groups["metrics"])
    _check_counts(groups["budget"])
    _one_of("tracker.mode", groups["tracker"].mode, schema.TRACKER_MODES)
    _one_of(
        "dataset",
        groups["dataset"].name,
        groups["model"].datasets,
        problem=f"does not fit model={groups['model'].name}",
    )
    calibration = schema.CalibrationConfig(**plain["calibration"])
    _one_of("calibration.match", calibration.match, schema.MATCHES)
    guidances = {"sampler.guidance": groups["sampler"].guidance, "calibration.guidance": calibration.guidance}
    groups["model"] = _model(groups["model"], guidances)
    reference = groups["dataset"].reference
    if reference is not None and not Path(reference).exists():
        raise ConfigError("dataset.reference", reference, problem="does not exist")
    if method.name == schema.FOREIGN:
        _check_foreign_network(method.path, groups["model"])
    _check_sampler(groups["sampler"], groups["model"])
    calibration = resolved_calibration(calibration, groups["sampler"])
    calibrated_on = replace(groups["sampler"], **calibration.changes)
    _check_sampler(calibrated_on, groups["model"], "calibration")
    groups["bits"] = _with(groups["bits"], ranges=_ranges(groups["bits"], method))
    inputs, edit = schema.InputsConfig(**plain["inputs"]), schema.EditConfig(**plain["edit"])
    check_kind(plain["task_kind"], edit, groups["sampler"])
    strength = edit.strength if plain["task_kind"] == "edit" else 1.0
    calls = len(timesteps(calibrated_on, groups["model"], strength))
    check_points(groups["budget"].samples, groups["bits"].ranges, calls)
    check_windows(method, calls)
    groups["trainer"] = _with(groups["trainer"], accelerator=_accelerator(groups["trainer"].accelerator))
    evaluate = schema.EvaluateConfig(**plain["evaluate"])
    _check_evaluate(plain["task"], evaluate, groups["model"], groups["metrics"])
    resolved = {**plain, **{group: asdict(value) for group, value in groups.items()}, "bits": groups["bits"].facts}
    del resolved["store"]  # where results lie is no part of what they are
    if calibration == schema.CalibrationConfig():
        del resolved["calibration"]
    else:
        resolved["calibration"] = asdict(calibration)
    if plain["task_kind"] == "generate":
        for key in ("task_kind", "inputs", "edit"):
            del resolved[key]
    job = Job(
        task=plain["task"],
        seed=plain["seed"],
        engine=plain["engine"],
        diagnose=plain["diagnose"],
        method=method,
        **groups,
        evaluate=evaluate,
        store_root=_store_root(plain["store"]["root"]),
        config=_plain(resolved),
        calibration=calibration,
        task_kind=plain["task_kind"],
        inputs=inputs,
        edit=edit,
    )
    check_inputs(job)
    if evaluate.samples is not None:
        return images_job(job)
    if method.name in schema.UNCALIBRATED:
        return without_calibration(job, method)
    if job.bits.plan is not None:
        job = replace(job, plan=given_plan(job))
    check_plans(job)
    check_trained(job)
    return job


def _check_weights(task: str, model: ModelConfig) -> None:
    if model.shapes_only and task not in schema.COUNTING_TASKS:
        problem = f"needs weights, and those of {model.name} are not shipped; take another model"
        raise ConfigError("task", task, schema.COUNTING_TASKS, problem, nearest="cost")


def _resolved(config: DictConfig) -> dict[str, Any]:
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(str(error.full_key), "???", problem="must be given") from None
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(str(error.full_key), error.value, problem=f"does not fit: {reason}") from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _frozen(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _plain(value: Any) -> Any:
    """The same value in what JSON has."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def _with(config: T, **changes: Any) -> T:
    return type(config)(**{**{item.name: getattr(config, item.name) for item in fields(config)}, **changes})  # type: ignore[arg-type]


def _one_of(
    key: str, value: Any, allowed: Sequence[Any], to_come: Sequence[Any] = (), problem: str = "is not known"
) -> None:
    if value not in allowed:
        raise ConfigError(key, value, allowed, "is not built yet" if value in to_come else problem)


def _at_least(key: str, value: float, least: float) -> None:
    if not value >= least:
        raise ConfigError(key, value, [f"{least} and more"], "is too small", nearest=least)


def _check_seeds(plain: Mapping[str, Any]) -> None:
    _at_least("seed", plain["seed"], 0)
    _at_least("metrics.seed", plain["metrics"]["seed"], 0)


def _check_bits(bits: BitsConfig) -> None:
    _one_of("bits.weight", bits.weight, schema.WEIGHT_BITS, problem="is not allowed")
    _one_of("bits.activation", bits.activation, schema.ACTIVATION_BITS, problem="is not allowed")
    _one_of("bits.scope", bits.scope, schema.SCOPES)
    check_ranges("bits.ranges", bits.ranges, ("method", *schema.RANGES))


def _ranges(bits: BitsConfig, method: MethodConfig) -> str:
    """The ranges of the job: groups of one call are steps."""
    ranges = method.ranges if bits.ranges == "method" else bits.ranges
    return "step" if group_size(ranges) == 1 else ranges


def _check_metrics(metrics: schema.MetricsConfig) -> None:
    for name in metrics.names:
        _one_of("metrics.names", name, tuple(schema.METRICS))
    _one_of("metrics.inception", metrics.inception, schema.INCEPTIONS)
    _one_of("metrics.lpips", metrics.lpips, schema.LPIPS_BACKBONES)
    if metrics.weights is not None and not Path(metrics.weights).is_dir():
        raise ConfigError("metrics.weights", metrics.weights, problem="is not a folder")
    _at_least("metrics.samples", metrics.samples, 1)
    _at_least("metrics.pairs", metrics.pairs, 1)
    if metrics.pairs > metrics.samples:
        raise ConfigError(
            "metrics.pairs",
            metrics.pairs,
            [metrics.samples],
            "is more than metrics.samples, of which pairs are the first",
        )


def _check_counts(budget: schema.BudgetConfig) -> None:
    for item in fields(budget):
        if item.name != "name":
            _at_least(f"budget.{item.name}", getattr(budget, item.name), 1)


def _check_sampler(sampler: schema.SamplerConfig, model: ModelConfig, node: str = "sampler") -> None:
    _at_least(f"{node}.chunk", sampler.chunk, 1)
    _at_least(f"{node}.batch", sampler.batch, 1)
    _at_least(f"{node}.guidance", sampler.guidance, 0)
    _at_least(f"{node}.steps", sampler.steps, 1)
    if not 0 <= sampler.eta <= 1:
        raise ConfigError(f"{node}.eta", sampler.eta, ["0 to 1"], "is out of range", 0 if sampler.eta < 0 else 1)
    _one_of("sampler.spacing", sampler.spacing, SPACINGS)
    try:
        sampler.spec()
        timesteps(sampler, model)
    except ValueError as error:
        # These messages begin with the name of the field.
        name = str(error).split()[0]
        known, otherwise = (asdict(sampler), "name") if node == "sampler" else (("steps", "eta"), "steps")
        name = name if name in known else otherwise
        raise ConfigError(f"{node}.{name}", getattr(sampler, name), problem=f"is not possible: {error}") from None


def _check_foreign_network(path: str | None, model: ModelConfig) -> None:
    if path is None:
        raise ConfigError("method.path", None, problem=f"must be given with method={schema.FOREIGN}")
    try:
        require_fit(path, network_config(model))
    except ModelError as error:
        raise ConfigError("method.path", path, problem=f"cannot be used: {error}") from None


def _check_evaluate(
    task: str, evaluate: schema.EvaluateConfig, model: ModelConfig, metrics: schema.MetricsConfig
) -> None:
    for key, value in asdict(evaluate).items():
        if value is not None and task != "evaluate":
            raise ConfigError(f"evaluate.{key}", value, problem="is read by task=evaluate only")
    try:
        check_foreign(evaluate, model, metrics.samples)
    except ForeignError as error:
        raise ConfigError(error.key, error.value, problem=error.problem) from None


def _model(model: ModelConfig, guidances: Mapping[str, float | None]) -> ModelConfig:
    """Fill in from the model's folder what its YAML leaves open; it must know what ``guidances``, by key, need."""
    _one_of("model.source", model.source, tuple(_NEEDED))
    for key in ("path", "revision"):
        if getattr(model, key) is None and key in _NEEDED[model.source]:
            raise ConfigError(f"model.{key}", None, problem=f"must be given with model={model.name}")
    try:
        safe_name(model.name)
    except ValueError as error:
        raise ConfigError("model.name", model.name, problem=f"is not allowed: {error}") from None
    config = network_config(model)
    if model.shapes_only:
        return _with(model, sample_shape=_sample_shape(model, config))
    if config.get("_class_name") not in schema.RUNNABLE_NETWORKS:
        runnable = ", ".join(schema.RUNNABLE_NETWORKS)
        raise ConfigError("model.path", model.path, problem=f"holds a {config.get('_class_name')}; allowed: {runnable}")
    if not (locate(model.checkpoint) / SCHEDULER_CONFIG).is_file():
        raise ConfigError(
            "model.path", model.path, problem=f"has no {SCHEDULER_CONFIG}, which states the noise schedule"
        )
    shape, entries = _sample_shape(model, config), config.get("num_class_embeds")
    classes = model.classes if model.classes is not None else entries
    if classes is not None and not 0 < classes <= (entries or 0):
        raise ConfigError("model.classes", classes, problem=f"is not possible: the model knows {entries} labels")
    model = _with(model, sample_shape=shape, classes=classes)
    for key, guidance in guidances.items():
        if guidance in (None, 1):
            continue
        if classes is not None and classes == entries:
            raise ConfigError(key, guidance, [1.0], f"needs a null label, and {model.name} has none")
        if not model.classes:
            raise ConfigError(key, guidance, [1.0], f"needs a model with classes, and {model.name} has none")
    return model


def _sample_shape(model: ModelConfig, config: Mapping[str, Any]) -> tuple[Any, ...]:
    """(C, H, W) of the sampler's state; C is None where the model's file does not say it."""
    size = config.get("sample_size")
    if size is None:
        raise ConfigError("model.path", model.path, problem="holds a network whose config.json has no sample_size")
    check_condition(model, config)
    channels = None if config.get("in_channels") is None else config["in_channels"] - (model.condition_channels or 0)
    shape = (channels, *(size if isinstance(size, (list, tuple)) else (size, size)))
    if model.sample_shape and tuple(model.sample_shape) != shape:
        raise ConfigError("model.sample_shape", list(model.sample_shape), problem=f"is {list(shape)} in this model")
    return shape


def _method(plain: Mapping[str, Any], unresolved: Any) -> MethodConfig:
    for stage in plain["stages"]:
        available = [key for key in plain if key not in (*METHOD_KEYS, *schema.OPTIONAL_METHOD_KEYS)]
        _one_of("method.stages", stage, available)
    _check_order(plain["stages"])
    if not plain["stages"] and plain["name"] not in schema.UNCALIBRATED:
        raise ConfigError("method.stages", "[]", problem=f"leaves nothing to method={plain['name']}")
    _one_of("method.calibration", plain["calibration"], schema.CALIBRATIONS)
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
        _one_of(key, name, (*schema.PAPER_SCOPE, *schema.FURTHER_SCOPE))


def _stage(name: str, values: Mapping[str, Any]) -> StageConfig:
    for use in values["uses"]:
        _one_of(f"method.{name}.uses", use, ("weight", "activation"))
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
            _one_of(f"method.{stage}.{key}", settings[key], allowed)
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


def _accelerator(wanted: str) -> str:
    _one_of("trainer.accelerator", wanted, schema.ACCELERATORS)
    return wanted if wanted != "auto" else "gpu" if cuda_expected() else "cpu"


def cuda_expected() -> bool:
    """Is there an NVIDIA driver, a visible device and a torch built for it? Needs no import of torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return False
    try:
        built = not version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False
    return built and Path("/proc/driver/nvidia/version").exists()


def _store_root(configured: str | None) -> Path:
    return Path(configured or os.environ.get("DMQBENCH_RUNS") or "runs").expanduser().absolute()
