"""Checking a composed configuration and turning it into a job. Imports neither torch nor Hydra."""

import os
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from dmqbench.config import schema
from dmqbench.config.errors import ConfigError, require_at_least, require_one_of
from dmqbench.config.input_checks import ForeignError, check_foreign, check_inputs, check_kind
from dmqbench.config.method_checks import (
    check_plans,
    check_points,
    check_ranges,
    check_trained,
    check_windows,
    checked_method,
    resolved_calibration,
    without_limits,
)
from dmqbench.config.model_checks import check_foreign_network, check_weights, checked_model
from dmqbench.config.model_facts import timesteps
from dmqbench.config.plugin_code import require_module
from dmqbench.config.plugins import left_out_with, plugin_with, shipped_with
from dmqbench.config.plugins import metrics as known_metrics
from dmqbench.config.precision_plans import given_plan
from dmqbench.config.schema import (
    GROUPS,
    BitsConfig,
    Job,
    MethodConfig,
    ModelConfig,
    full_precision,
    without_calibration,
)
from dmqbench.quant.spec import group_size
from dmqbench.samplers.timesteps import SPACINGS


def make_job(config: DictConfig) -> Job:
    """Check every value and resolve what depends on others.

    Raises:
        ConfigError: a value is not allowed, or two do not fit.
        ModelError: a model whose shape is not configured has no folder to read it from.
    """
    plain = _resolved(config)
    for key, allowed in (("task", schema.TASKS), ("engine", schema.ENGINES)):
        require_one_of(key, plain[key], allowed)
    groups = {group: kind(**_frozen(plain[group])) for group, kind in GROUPS.items()}
    check_weights(plain["task"], groups["model"])
    method = checked_method(plain["method"], OmegaConf.to_container(config.method, resolve=False))
    if plugin_with("method", method.name) is not None:  # a YAML of the user's own may be looked at without a module
        require_module(method.name)
    _check_seeds(plain)
    _check_bits(groups["bits"])
    _check_metrics(groups["metrics"])
    _check_counts(groups["budget"])
    require_one_of("tracker.mode", groups["tracker"].mode, schema.TRACKER_MODES)
    require_one_of(
        "dataset",
        groups["dataset"].name,
        groups["model"].datasets,
        problem=f"does not fit model={groups['model'].name}",
    )
    calibration = schema.CalibrationConfig(**plain["calibration"])
    require_one_of("calibration.match", calibration.match, schema.MATCHES)
    guidances = {"sampler.guidance": groups["sampler"].guidance, "calibration.guidance": calibration.guidance}
    groups["model"] = checked_model(groups["model"], guidances)
    groups["dataset"] = _with_images(groups["dataset"])
    reference = groups["dataset"].reference
    if reference is not None and not Path(reference).exists():
        raise ConfigError("dataset.reference", reference, problem="does not exist")
    if method.name == schema.FOREIGN:
        check_foreign_network(method.path, groups["model"])
    _check_sampler(groups["sampler"], groups["model"])
    calibration = resolved_calibration(calibration, groups["sampler"])
    calibrated_on = replace(groups["sampler"], **calibration.changes)
    _check_sampler(calibrated_on, groups["model"], "calibration")
    groups["bits"] = replace(groups["bits"], ranges=_ranges(groups["bits"], method))
    inputs, edit = schema.InputsConfig(**plain["inputs"]), schema.EditConfig(**plain["edit"])
    check_kind(plain["task_kind"], edit, groups["sampler"])
    strength = edit.strength if plain["task_kind"] == "edit" else 1.0
    calls = len(timesteps(calibrated_on, groups["model"], strength))
    check_points(groups["budget"].samples, groups["bits"].ranges, calls)
    check_windows(method, calls)
    groups["trainer"] = replace(groups["trainer"], accelerator=_accelerator(groups["trainer"].accelerator))
    evaluate = schema.EvaluateConfig(**plain["evaluate"])
    _check_evaluate(plain["task"], evaluate, groups["model"], groups["metrics"])
    resolved = {**plain, **{group: asdict(value) for group, value in groups.items()}, "bits": groups["bits"].facts}
    del resolved["store"]  # where results lie is no part of what they are
    resolved["method"] = without_limits(plain["method"])
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


def _check_seeds(plain: Mapping[str, Any]) -> None:
    require_at_least("seed", plain["seed"], 0)
    require_at_least("metrics.seed", plain["metrics"]["seed"], 0)


def _check_bits(bits: BitsConfig) -> None:
    require_one_of("bits.weight", bits.weight, schema.WEIGHT_BITS, problem="is not allowed")
    require_one_of("bits.activation", bits.activation, schema.ACTIVATION_BITS, problem="is not allowed")
    require_one_of("bits.scope", bits.scope, schema.SCOPES)
    check_ranges("bits.ranges", bits.ranges, ("method", *schema.RANGES))


def _ranges(bits: BitsConfig, method: MethodConfig) -> str:
    """The ranges of the job: groups of one call are steps."""
    ranges = method.ranges if bits.ranges == "method" else bits.ranges
    return "step" if group_size(ranges) == 1 else ranges


def _check_metrics(metrics: schema.MetricsConfig) -> None:
    for name in metrics.names:
        if (plugin := left_out_with("metric", name)) is not None:
            raise ConfigError("metrics.names", name, problem=f"is of the plug-in {plugin.name}, {plugin.summary}")
        require_one_of("metrics.names", name, tuple(known_metrics()))
    require_one_of("metrics.inception", metrics.inception, schema.INCEPTIONS)
    require_one_of("metrics.lpips", metrics.lpips, schema.LPIPS_BACKBONES)
    if metrics.weights is not None and not Path(metrics.weights).is_dir():
        raise ConfigError("metrics.weights", metrics.weights, problem="is not a folder")
    require_at_least("metrics.samples", metrics.samples, 1)
    require_at_least("metrics.pairs", metrics.pairs, 1)
    if metrics.pairs > metrics.samples:
        raise ConfigError(
            "metrics.pairs",
            metrics.pairs,
            [metrics.samples],
            "is more than metrics.samples, of which pairs are the first",
        )


def _with_images(dataset: schema.DatasetConfig) -> schema.DatasetConfig:
    """The same data set; the images of one that a plug-in brings are in the plug-in."""
    images = shipped_with("images", dataset.name) if dataset.reference is None else None
    return dataset if images is None else replace(dataset, reference=str(images))


def _check_counts(budget: schema.BudgetConfig) -> None:
    for item in fields(budget):
        if item.name != "name":
            require_at_least(f"budget.{item.name}", getattr(budget, item.name), 1)


def _check_sampler(sampler: schema.SamplerConfig, model: ModelConfig, node: str = "sampler") -> None:
    require_at_least(f"{node}.chunk", sampler.chunk, 1)
    require_at_least(f"{node}.batch", sampler.batch, 1)
    require_at_least(f"{node}.guidance", sampler.guidance, 0)
    require_at_least(f"{node}.steps", sampler.steps, 1)
    if not 0 <= sampler.eta <= 1:
        raise ConfigError(f"{node}.eta", sampler.eta, ["0 to 1"], "is out of range", 0 if sampler.eta < 0 else 1)
    require_one_of("sampler.spacing", sampler.spacing, SPACINGS)
    try:
        sampler.spec()
        timesteps(sampler, model)
    except ValueError as error:
        # These messages begin with the name of the field.
        name = str(error).split()[0]
        known, otherwise = (asdict(sampler), "name") if node == "sampler" else (("steps", "eta"), "steps")
        name = name if name in known else otherwise
        raise ConfigError(f"{node}.{name}", getattr(sampler, name), problem=f"is not possible: {error}") from None


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


def _accelerator(wanted: str) -> str:
    require_one_of("trainer.accelerator", wanted, schema.ACCELERATORS)
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


def images_job(job: Job) -> Job:
    """The same job on images made elsewhere, without what they do not depend on: method, bits, seed, engine.

    What its configuration then says of method and bits is that of the full-precision samples it may have to draw.
    """
    base = full_precision(job)
    return replace(base, evaluate=job.evaluate, config={**base.config, "evaluate": asdict(job.evaluate)})
