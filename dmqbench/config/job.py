"""Checking a composed configuration and turning it into a job. Imports neither torch nor Hydra."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from dmqbench.config import schema
from dmqbench.config.checked_job import Job, MethodConfig, full_precision, without_calibration
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
from dmqbench.config.names import (
    ACCELERATORS,
    ACTIVATION_BITS,
    INCEPTIONS,
    LPIPS_BACKBONES,
    MATCHES,
    RANGES,
    SCOPES,
    TASKS,
    UNCALIBRATED,
    WEIGHT_BITS,
)
from dmqbench.config.plugin_code import require_module
from dmqbench.config.plugins import left_out_with, plugin_with, shipped_with
from dmqbench.config.plugins import metrics as known_metrics
from dmqbench.config.precision_plans import given_plan
from dmqbench.config.schema import GROUPS, BitsConfig, ModelConfig
from dmqbench.quant.spec import ENGINE_NAMES, group_size
from dmqbench.samplers.timesteps import SPACINGS, SettingError
from dmqbench.store.artifacts import default_root
from dmqbench.tracking.wandb_client import MODES


def make_job(config: DictConfig) -> Job:
    """Check every value and resolve what depends on others.

    Raises:
        ConfigError: a value is not allowed, or two do not fit.
        ModelError: a model whose shape is not configured has no folder to read it from.
    """
    plain = _resolved(config)
    method = checked_method(plain["method"], OmegaConf.to_container(config.method, resolve=False))
    asked = _asked(plain, method)
    for check in CHECKS_AS_ASKED:
        check(asked)
    job = _completed(asked, plain)
    for check in CHECKS_OF_COMPLETED:
        check(job)
    if job.evaluate.samples is not None:
        return images_job(job)
    if method.name in UNCALIBRATED:
        return without_calibration(job, method)
    for check in CHECKS_OF_CALIBRATION:
        check(job)
    return job if job.bits.plan is None else replace(job, plan=given_plan(job))


def _asked(plain: Mapping[str, Any], method: MethodConfig) -> Job:
    """Return the job as it is written, nothing of it checked but the method."""
    return Job(
        **{key: plain[key] for key in ("task", "seed", "engine", "diagnose", "task_kind")},
        **{name: kind(**_frozen(plain[name])) for name, kind in (GROUPS | schema.NODES).items()},
        method=method,
        store_root=_store_root(plain["store"]["root"]),
        config={},
    )


def _completed(asked: Job, plain: Mapping[str, Any]) -> Job:
    """Return the job with what its values leave to the model, the plug-ins, the method, the sampler and the machine."""
    guidances = {"sampler.guidance": asked.sampler.guidance, "calibration.guidance": asked.calibration.guidance}
    job = replace(
        asked,
        model=checked_model(asked.model, guidances),
        dataset=_with_images(asked.dataset),
        bits=replace(asked.bits, ranges=_ranges(asked.bits, asked.method)),
        trainer=replace(asked.trainer, accelerator=_accelerator(asked.trainer.accelerator)),
        calibration=resolved_calibration(asked.calibration, asked.sampler),
    )
    return replace(job, config=_recorded(job, plain))


def _recorded(job: Job, plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return what results keep of a configuration: resolved, and without what says nothing of this job."""
    left_out = {"store"}  # where results lie is no part of what they are
    if job.calibration == schema.CalibrationConfig():
        left_out.add("calibration")
    if job.task_kind == "generate":
        left_out |= {"task_kind", "inputs", "edit"}
    resolved = {
        **plain,
        **{group: asdict(getattr(job, group)) for group in (*GROUPS, "calibration")},
        "bits": job.bits.facts,
        "method": without_limits(plain["method"]),
    }
    return _plain({key: value for key, value in resolved.items() if key not in left_out})


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


def _check_words(job: Job) -> None:
    require_one_of("task", job.task, TASKS)
    require_one_of("engine", job.engine, ENGINE_NAMES)
    require_one_of("tracker.mode", job.tracker.mode, MODES)
    require_one_of("trainer.accelerator", job.trainer.accelerator, ACCELERATORS)
    require_one_of("calibration.match", job.calibration.match, MATCHES)


def _check_module(job: Job) -> None:
    """Refuse a plug-in's method that has no module; a YAML of the user's own may be looked at without one."""
    if plugin_with("method", job.method.name) is not None:
        require_module(job.method.name)


def _check_seeds(job: Job) -> None:
    require_at_least("seed", job.seed, 0)
    require_at_least("metrics.seed", job.metrics.seed, 0)


def _check_bits(job: Job) -> None:
    bits = job.bits
    require_one_of("bits.weight", bits.weight, WEIGHT_BITS, problem="is not allowed")
    require_one_of("bits.activation", bits.activation, ACTIVATION_BITS, problem="is not allowed")
    require_one_of("bits.scope", bits.scope, SCOPES)
    check_ranges("bits.ranges", bits.ranges, ("method", *RANGES))


def _check_metrics(job: Job) -> None:
    metrics = job.metrics
    for name in metrics.names:
        if (plugin := left_out_with("metric", name)) is not None:
            raise ConfigError("metrics.names", name, problem=f"is of the plug-in {plugin.name}, {plugin.summary}")
        require_one_of("metrics.names", name, tuple(known_metrics()))
    require_one_of("metrics.inception", metrics.inception, INCEPTIONS)
    require_one_of("metrics.lpips", metrics.lpips, LPIPS_BACKBONES)
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


def _check_budget(job: Job) -> None:
    for item in fields(job.budget):
        if item.name != "name":
            require_at_least(f"budget.{item.name}", getattr(job.budget, item.name), 1)


def _check_dataset(job: Job) -> None:
    problem = f"does not fit model={job.model.name}"
    require_one_of("dataset", job.dataset.name, job.model.datasets, problem=problem)


def _check_reference(job: Job) -> None:
    reference = job.dataset.reference
    if reference is not None and not Path(reference).exists():
        raise ConfigError("dataset.reference", reference, problem="does not exist")


def _check_foreign_network(job: Job) -> None:
    if job.foreign:
        check_foreign_network(job.method.path, job.model)


def _check_samplers(job: Job) -> None:
    _check_sampler(job.sampler, job.model, "sampler")
    _check_sampler(job.calibration_sampler, job.model, "calibration")


def _check_sampler(sampler: schema.SamplerConfig, model: ModelConfig, node: str) -> None:
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
    except SettingError as error:
        known, otherwise = (asdict(sampler), "name") if node == "sampler" else (("steps", "eta"), "steps")
        field = error.field.removeprefix("sampler ")
        name = field if field in known else otherwise
        raise ConfigError(f"{node}.{name}", getattr(sampler, name), problem=f"is not possible: {error}") from None


def _check_kind(job: Job) -> None:
    check_kind(job.task_kind, job.edit, job.sampler)


def _check_calls(job: Job) -> None:
    calls = len(timesteps(job.calibration_sampler, job.model, job.strength))
    check_points(job.budget.samples, job.bits.ranges, calls)
    check_windows(job.method, calls)


def _check_evaluate(job: Job) -> None:
    for key, value in asdict(job.evaluate).items():
        if value is not None and job.task != "evaluate":
            raise ConfigError(f"evaluate.{key}", value, problem="is read by task=evaluate only")
    try:
        check_foreign(job.evaluate, job.model, job.metrics.samples)
    except ForeignError as error:
        raise ConfigError(error.key, error.value, problem=error.problem) from None


Check = Callable[[Job], None]

CHECKS_AS_ASKED: tuple[Check, ...] = (
    *(_check_words, check_weights, _check_module, _check_seeds, _check_bits, _check_metrics),
    *(_check_budget, _check_dataset),
)
"""What can be said of a job as it is written: a first mistake is told in this order."""

CHECKS_OF_COMPLETED: tuple[Check, ...] = (
    *(_check_reference, _check_foreign_network, _check_samplers, _check_kind, _check_calls, _check_evaluate),
    check_inputs,
)
"""What needs the files of the model, or values that depend on others. Each may rely on those before it."""

CHECKS_OF_CALIBRATION: tuple[Check, ...] = (check_plans, check_trained)
"""What a job that calibrates must fulfil besides."""


def _with_images(dataset: schema.DatasetConfig) -> schema.DatasetConfig:
    """The same data set; the images of one that a plug-in brings are in the plug-in."""
    images = shipped_with("images", dataset.name) if dataset.reference is None else None
    return dataset if images is None else replace(dataset, reference=str(images))


def _ranges(bits: BitsConfig, method: MethodConfig) -> str:
    """The ranges of the job: groups of one call are steps."""
    ranges = method.ranges if bits.ranges == "method" else bits.ranges
    return "step" if group_size(ranges) == 1 else ranges


def _accelerator(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    return "gpu" if cuda_expected() else "cpu"


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
    return Path(configured or default_root()).expanduser().absolute()


def images_job(job: Job) -> Job:
    """The same job on images made elsewhere, without what they do not depend on: method, bits, seed, engine.

    What its configuration then says of method and bits is that of the full-precision samples it may have to draw.
    """
    base = full_precision(job)
    return replace(base, evaluate=job.evaluate, config={**base.config, "evaluate": asdict(job.evaluate)})
