"""Checking a composed configuration and turning it into a job. Imports neither torch nor Hydra."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from operator import attrgetter
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from dmqbench.config import method_checks, names, schema
from dmqbench.config.checked_job import Job, MethodConfig, full_precision, without_calibration
from dmqbench.config.errors import ConfigError, require_at_least, require_one_of
from dmqbench.config.input_checks import (
    check_foreign,
    check_inputs,
    check_kind,
    check_labels,
    check_prompts,
    check_reference,
)
from dmqbench.config.model_checks import (
    check_dtype,
    check_foreign_network,
    check_images_of_model,
    check_sampler_fits,
    check_weights,
    checked_model,
)
from dmqbench.config.model_facts import timesteps, with_image_tokens
from dmqbench.config.planted import with_planted
from dmqbench.config.plugin_code import require_module
from dmqbench.config.plugins import left_out_with, plugin_with, shipped_with
from dmqbench.config.plugins import metrics as known_metrics
from dmqbench.config.precision_plans import given_plan
from dmqbench.quant.spec import ENGINE_NAMES, GRANULARITIES, group_size
from dmqbench.samplers.timesteps import SPACINGS, SettingError
from dmqbench.store.artifacts import store_root
from dmqbench.tracking.record import plain as in_json
from dmqbench.tracking.wandb_client import MODES

ONE_OF: Mapping[str, Sequence[Any]] = {
    "task": names.TASKS,
    "engine": ENGINE_NAMES,
    "tracker.mode": MODES,
    "trainer.accelerator": names.ACCELERATORS,
    "calibration.match": names.MATCHES,
    "inputs.labels": names.LABELS,
    "bits.weight": names.WEIGHT_BITS,
    "bits.activation": names.ACTIVATION_BITS,
    "bits.scope": names.SCOPES,
    "bits.granularity": GRANULARITIES,
    "metrics.inception": names.INCEPTIONS,
    "metrics.lpips": names.LPIPS_BACKBONES,
}
"""Key → its values, where no other decides them."""

AT_LEAST: Mapping[str, int] = {
    **{"seed": 0, "metrics.seed": 0, "metrics.samples": 1, "metrics.pairs": 1},
    **{f"budget.{item.name}": 1 for item in fields(schema.BudgetConfig) if item.type is int},
}
"""Key → its smallest value."""


def make_job(config: DictConfig) -> Job:
    """Check every value and resolve what depends on others.

    Raises:
        ConfigError: a value is not allowed, or two do not fit.
        ModelError: a model whose shape is not configured has no folder to read it from.
    """
    plain = _resolved(config)
    if plain["calibration"]["bias_correction"]:
        plain = method_checks.with_bias_correction(plain)
    method = method_checks.checked_method(plain["method"], OmegaConf.to_container(config.method, resolve=False))
    asked = _asked(plain, method)
    for check in CHECKS_AS_ASKED:
        check(asked)
    job = _completed(asked, plain)
    for check in CHECKS_OF_COMPLETED:
        check(job)
    if job.evaluate.samples is not None:
        return images_job(job)
    if method.name in names.UNCALIBRATED:
        return without_calibration(job, method)
    for check in CHECKS_OF_CALIBRATION:
        check(job)
    return job if job.bits.plan is None else replace(job, plan=given_plan(job))


def _asked(plain: Mapping[str, Any], method: MethodConfig) -> Job:
    """Return the job as it is written, nothing of it checked but the method."""
    groups = {name: _typed(kind, plain[name]) for name, kind in (schema.GROUPS | schema.NODES).items()}
    words = {key: plain[key] for key in ("task", "seed", "engine", "diagnose", "task_kind")}
    return Job(**words, **groups, method=method, store_root=store_root(plain["store"]["root"]), config={})


def _typed(kind: Any, values: Mapping[str, Any]) -> Any:
    """Return a schema's dataclass, and those inside it, with values as a configuration has them."""
    made: dict[str, Any] = {item.name: item.default_factory for item in fields(kind)}
    inner = {name: factory for name, factory in made.items() if is_dataclass(factory)}

    def typed(key: str, value: Any) -> Any:
        if key in inner:
            return _typed(inner[key], value)
        return tuple(value) if isinstance(value, list) else value

    return kind(**{key: typed(key, value) for key, value in values.items()})


def _completed(asked: Job, plain: Mapping[str, Any]) -> Job:
    """Return the job with what its values leave to the model, the plug-ins, the method, the sampler and the machine."""
    guidances = {"sampler.guidance": asked.sampler.guidance, "calibration.guidance": asked.calibration.guidance}
    dataset, accelerator = asked.dataset, asked.trainer.accelerator
    if dataset.reference is None and (images := shipped_with("images", dataset.name)) is not None:
        dataset = replace(dataset, reference=str(images))
    if accelerator == "auto":
        accelerator = "gpu" if cuda_expected() else "cpu"
    model = with_planted(checked_model(asked.model, guidances))
    ranges = asked.method.ranges if asked.bits.ranges == "method" else asked.bits.ranges
    job = replace(
        asked,
        model=model,
        sampler=with_image_tokens(asked.sampler, model),
        dataset=dataset,
        bits=replace(asked.bits, ranges="step" if group_size(ranges) == 1 else ranges),
        trainer=replace(asked.trainer, accelerator=accelerator),
        calibration=method_checks.resolved_calibration(asked.calibration, asked.sampler),
    )
    return replace(job, config=_recorded(job, plain))


def _recorded(job: Job, plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return what results keep of a configuration: resolved, and without what says nothing of this job."""
    left_out = {"store"}  # where results lie is no part of what they are
    if job.calibration == schema.CalibrationConfig():
        left_out.add("calibration")
    inputs: dict[str, Any] = job.inputs.facts
    if job.works_on_images:
        inputs = {"images": job.inputs.images, **inputs}
    else:
        left_out |= {"task_kind", "edit"}
    if not inputs:
        left_out.add("inputs")
    resolved = {
        **plain,
        **{group: asdict(getattr(job, group)) for group in schema.GROUPS},
        "calibration": job.calibration.facts,
        "model": job.model.facts,
        "sampler": job.sampler.facts,
        "bits": job.bits.facts,
        "budget": job.budget.facts,
        "inputs": inputs,
        "method": method_checks.without_limits(plain["method"]),
    }
    return in_json({key: value for key, value in resolved.items() if key not in left_out})


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


def _check_values(job: Job) -> None:
    for key, allowed in ONE_OF.items():
        value = attrgetter(key)(job)
        require_one_of(key, value, allowed, "is not allowed" if isinstance(value, int) else "is not known")
    for key, least in AT_LEAST.items():
        require_at_least(key, attrgetter(key)(job), least)
    method_checks.check_ranges("bits.ranges", job.bits.ranges, ("method", *names.RANGES))
    if plugin_with("method", job.method.name) is not None:  # a YAML of the user's own may be looked at without code
        require_module(job.method.name)


def _check_metrics(job: Job) -> None:
    metrics = job.metrics
    for name in metrics.names:
        if (plugin := left_out_with("metric", name)) is not None:
            raise ConfigError("metrics.names", name, problem=f"is of the plug-in {plugin.name}, {plugin.summary}")
        require_one_of("metrics.names", name, tuple(known_metrics()))
    if metrics.weights is not None and not Path(metrics.weights).is_dir():
        raise ConfigError("metrics.weights", metrics.weights, problem="is not a folder")
    if metrics.pairs > metrics.samples:
        problem = "is more than metrics.samples, of which pairs are the first"
        raise ConfigError("metrics.pairs", metrics.pairs, [metrics.samples], problem)


def _check_dataset(job: Job) -> None:
    dataset = job.dataset
    require_one_of("dataset", dataset.name, job.model.datasets, problem=f"does not fit model={job.model.name}")
    if dataset.reference is not None and not Path(dataset.reference).exists():
        raise ConfigError("dataset.reference", dataset.reference, problem="does not exist")


def _check_samplers(job: Job) -> None:
    for node, sampler in (("sampler", job.sampler), ("calibration", job.calibration_sampler)):
        for key, least in (("chunk", 1), ("batch", 1), ("guidance", 0), ("steps", 1)):
            require_at_least(f"{node}.{key}", getattr(sampler, key), least)
        if not 0 <= sampler.eta <= 1:
            raise ConfigError(f"{node}.eta", sampler.eta, ["0 to 1"], "is out of range", 0 if sampler.eta < 0 else 1)
        require_one_of("sampler.spacing", sampler.spacing, SPACINGS)
        try:
            sampler.spec()
            timesteps(sampler, job.model)
        except SettingError as error:
            known, otherwise = (asdict(sampler), "name") if node == "sampler" else (("steps", "eta"), "steps")
            field = error.field.removeprefix("sampler ")
            name = field if field in known else otherwise
            raise ConfigError(f"{node}.{name}", getattr(sampler, name), problem=f"is not possible: {error}") from None


def _check_calls(job: Job) -> None:
    calls = len(timesteps(job.calibration_sampler, job.model, job.strength))
    method_checks.check_points(job.budget.samples, job.bits.ranges, calls)
    method_checks.check_windows(job.method, calls)


def _check_evaluate(job: Job) -> None:
    for key, value in asdict(job.evaluate).items():
        if value is not None and job.task != "evaluate":
            raise ConfigError(f"evaluate.{key}", value, problem="is read by task=evaluate only")
    check_foreign(job.evaluate, job.model, job.metrics.samples)


Check = Callable[[Job], None]

CHECKS_AS_ASKED: tuple[Check, ...] = (_check_values, check_dtype, check_weights, _check_metrics, _check_dataset)
"""What can be said of a job as it is written: a first mistake is told in this order."""

CHECKS_OF_COMPLETED: tuple[Check, ...] = (
    *(check_images_of_model, check_foreign_network, check_sampler_fits, _check_samplers, check_kind, _check_calls),
    *(_check_evaluate, check_inputs, check_labels, check_prompts, check_reference),
)
"""What needs the files of the model, or values that depend on others. Each may rely on those before it."""

CHECKS_OF_CALIBRATION: tuple[Check, ...] = (
    method_checks.check_plans,
    method_checks.check_trained,
    method_checks.check_granularity,
    method_checks.check_memory,
)
"""What a job that calibrates must fulfil besides."""


def cuda_expected() -> bool:
    """Whether there is an NVIDIA driver, a visible device and a torch built for it. Needs no import of torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return False
    try:
        built = not version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False
    return built and Path("/proc/driver/nvidia/version").exists()


def images_job(job: Job) -> Job:
    """The same job on images made elsewhere, without what they do not depend on: method, bits, seed, engine.

    What its configuration then says of method and bits is that of the full-precision samples it may have to draw.
    """
    base = full_precision(job)
    return replace(base, evaluate=job.evaluate, config={**base.config, "evaluate": asdict(job.evaluate)})
