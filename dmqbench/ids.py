"""Ids of artifacts: 16 hexadecimal digits of a hash of what determines them. Computed without torch."""

import hashlib
import os
from dataclasses import asdict, dataclass
from typing import Any

from dmqbench.models.folders import (
    CONFIG,
    SCHEDULER_CONFIG,
    ModelError,
    decoder_folder,
    locate,
    network_folder,
    read_config,
    weight_files,
)
from dmqbench.models.foreign import foreign_hash
from dmqbench.quant.spec import group_size
from dmqbench.samplers.timesteps import plan_timesteps
from dmqbench.schema import DTYPE, FURTHER_SCOPE, Job, ModelConfig, SamplerConfig, StageConfig
from dmqbench.store.files import canonical_json, sha256_file, short_hash

VERSIONS = {"trajectories": 1, "quantized": 1, "samples": 1, "result": 1}
"""Raised when the numbers in an artifact of this kind change for a reason that no other version records."""

_TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True)
class JobIds:
    """Ids of what a job makes; ``stages`` are (stage name, id) in order, ``quantized`` is the last."""

    trajectories: str
    stages: tuple[tuple[str, str], ...]
    quantized: str | None
    samples: str
    result: str


def weights_hash(model: ModelConfig) -> str:
    """Sha256 over the configurations and safetensors of a model's folder, by their place in it.

    Raises:
        ModelError: the folder or a file in it is missing or not whole.
    """
    folder = locate(model.checkpoint)
    network = network_folder(folder, model.checkpoint.advice)
    parts = [part for part in (network, decoder_folder(folder)) if part is not None]
    files = [
        *(path for part in parts for path in (part / CONFIG, *weight_files(part, model.checkpoint.advice))),
        *([folder / SCHEDULER_CONFIG] if (folder / SCHEDULER_CONFIG).is_file() else []),
    ]
    try:
        listing = {os.path.relpath(path, folder): sha256_file(path) for path in files}
    except OSError as error:
        raise ModelError(f"{error.filename}: cannot be read ({error.strerror})") from None
    return hashlib.sha256(canonical_json(listing).encode()).hexdigest()


def network_config(model: ModelConfig) -> dict[str, Any]:
    """The ``config.json`` of a model's denoiser; ModelError if there is none."""
    return read_config(network_folder(locate(model.checkpoint), model.checkpoint.advice) / CONFIG)


def timesteps(sampler: SamplerConfig, model: ModelConfig, strength: float = 1.0) -> tuple[int, ...]:
    """Timestep of every network call, of the last share ``strength``; ValueError, one line, if there is none."""
    return plan_timesteps(
        sampler.name,
        sampler.steps,
        sampler.spacing,
        sampler.steps_offset,
        _train_timesteps(model),
        sampler.skip_prk,
        strength,
    )


def _train_timesteps(model: ModelConfig) -> int:
    """What the model's scheduler says; a bare network has none, and a job on it is refused elsewhere."""
    path = locate(model.checkpoint) / SCHEDULER_CONFIG
    return read_config(path).get("num_train_timesteps", _TRAIN_TIMESTEPS) if path.is_file() else _TRAIN_TIMESTEPS


def job_ids(job: Job, weights: str) -> JobIds:
    """Ids of a job on a model whose ``weights_hash`` is ``weights``."""
    if job.evaluate.samples is not None:
        from dmqbench.foreign import foreign_ids  # which itself stands on this module

        return foreign_ids(job, weights)
    model = {
        "name": job.model.name,
        "weights": weights,
        "classes": job.model.classes or 0,
    }
    trajectories = _id(
        "trajectories",
        model=model,
        sampler=_sampler_facts(job.calibration_sampler, job.model, job.strength),
        **_task_facts(job),
        dataset=job.dataset.name,
        calibration=job.budget.trajectories,
        validation=job.budget.validation,
        seed=job.seed,
    )
    stages: list[tuple[str, str]] = []
    for stage in job.method.stages:
        parent = stages[-1][1] if stages else trajectories
        stages.append((stage.name, _stage_id(job, stage, parent)))
    quantized = stages[-1][1] if stages else None
    network = {"foreign": foreign_hash(str(job.method.path)), "in": model} if job.foreign else quantized or model
    samples = _id(
        "samples",
        of=network,
        sampler=_sampler_facts(job.sampler, job.model, job.strength),
        **_task_facts(job),
        **({"match": job.calibration.match} if needs_match(job) else {}),
        labels=f"index % {job.model.classes}" if job.model.classes else None,
        seed=job.metrics.seed,
        engine=job.engine,
        dtype=DTYPE,
        device=job.device_type,
    )
    return JobIds(trajectories, tuple(stages), quantized, samples, _id("result", samples=samples))


def _sampler_facts(sampler: SamplerConfig, model: ModelConfig, strength: float) -> dict[str, Any]:
    facts = asdict(sampler)
    del facts["batch"]  # how much is computed at once where that changes no number
    return {**facts, "timesteps": timesteps(sampler, model, strength)}


def _task_facts(job: Job) -> dict[str, Any]:
    """What a job that works on images says of them."""
    from dmqbench.task_kinds import task_facts  # which itself stands on this module

    return {"task": task_facts(job)} if job.works_on_images else {}


def inputs_id(job: Job) -> str:
    """Id of the samples artifact that shows what a job on images starts from."""
    return _id("samples", inputs=_task_facts(job))


def needs_match(job: Job) -> bool:
    """Must calls of sampling find activation parameters that were calibrated at other timesteps than their own?"""
    size = group_size(job.bits.ranges) if job.has_rows else None
    calibrated = timesteps(job.calibration_sampler, job.model, job.strength)
    return size is not None and size < len(calibrated) and calibrated != timesteps(job.sampler, job.model, job.strength)


def _stage_id(job: Job, stage: StageConfig, parent: str) -> str:
    facts: dict[str, Any] = {
        "parent": parent,
        "stage": stage.name,
        "stage_version": stage.version,
        "settings": stage.id_settings,
        "scope": {"paper": _scope_facts(job.method.paper_scope)} if job.bits.scope == "paper" else job.bits.scope,
        "weight": job.bits.weight,
        **({"plan": job.plan.hash} if job.plan else {}),
    }
    if "activation" in stage.uses:
        facts |= {"activation": job.bits.activation, "ranges": job.bits.ranges}
    return _id("quantized", **facts)


def _scope_facts(scope: dict[str, bool]) -> dict[str, bool]:
    """A scope without the keys that came after scopes had ids, where their values are as before them."""
    return {key: value for key, value in scope.items() if FURTHER_SCOPE.get(key) is not value}


def _id(kind: str, **facts: Any) -> str:
    return short_hash({"kind": kind, "version": VERSIONS[kind], **facts})


def perturbed_id(samples: str, perturbation: float) -> str:
    """Id of ``samples`` drawn from x_T · (1 + perturbation): the numerical floor of paired metrics."""
    return _id("samples", of=samples, perturbation=perturbation)
