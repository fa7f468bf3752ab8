"""Ids of artifacts: 16 hexadecimal digits of a hash of what determines them. Computed without torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dmqbench.config.checked_job import FURTHER_SCOPE, Job, StageConfig, full_precision
from dmqbench.config.inputs import EvaluateConfig
from dmqbench.config.model_facts import encoder_hash, image_shape, network_config, prompts_of, timesteps
from dmqbench.config.plugin_code import family_origin, stage_origin
from dmqbench.config.schema import ModelConfig, SamplerConfig
from dmqbench.data.archives import stored_hash
from dmqbench.data.own_images import OWN_IMAGES_VERSION
from dmqbench.data.prompts import PromptStream
from dmqbench.models.families import kind_of
from dmqbench.models.folders import OWN
from dmqbench.models.foreign import foreign_hash
from dmqbench.models.precision import FLOAT32
from dmqbench.quant.spec import FULL_PRECISION, group_size
from dmqbench.store.files import short_hash

VERSIONS = {"trajectories": 1, "quantized": 1, "samples": 1, "embeddings": 1, "result": 1}
"""Raised when the numbers in an artifact of this kind change for a reason that no other version records."""


@dataclass(frozen=True)
class JobIds:
    """Ids of what a job makes; ``stages`` are (stage name, id) in order, ``quantized`` is the last."""

    trajectories: str
    stages: tuple[tuple[str, str], ...]
    quantized: str | None
    samples: str
    result: str


def job_ids(job: Job, weights: str) -> JobIds:
    """Return the ids of a job on a model whose ``weights_hash`` is ``weights``."""
    if job.evaluate.samples is not None:
        return foreign_ids(job, weights)
    model = {"name": job.model.name, "weights": weights, "classes": job.model.classes or 0, **_code_facts(job.model)}
    if job.model.dtype != FLOAT32:
        model["dtype"] = job.model.dtype
    if job.model.size is not None:
        model["size"] = job.model.size
    if job.model.planted:
        model["planted"] = asdict(job.model.planted)
    task = _task_facts(job)
    trajectories = _id(
        "trajectories",
        model=model,
        sampler=_sampler_facts(job.calibration_sampler, job.model, job.strength),
        **task,
        **_prompt_facts(job, ("cal", "val"), job.calibration_sampler.guidance),
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
        **task,
        **_prompt_facts(job, ("eval",), job.sampler.guidance),
        **({"match": job.calibration.match} if needs_match(job) else {}),
        labels=_labels(job),
        seed=job.metrics.seed,
        engine=job.engine,
        dtype=job.model.dtype,
        device=job.device_type,
    )
    return JobIds(trajectories, tuple(stages), quantized, samples, _id("result", samples=samples))


def reference_id(job: Job, weights: str) -> str:
    """Return the id of the full-precision samples that the paired metrics of ``job`` compare with."""
    return job_ids(full_precision(job), weights).samples


def _sampler_facts(sampler: SamplerConfig, model: ModelConfig, strength: float) -> dict[str, Any]:
    facts = sampler.facts
    del facts["batch"]  # how much is computed at once where that changes no number
    return {**facts, "timesteps": timesteps(sampler, model, strength)}


def _task_facts(job: Job) -> dict[str, Any]:
    """Return what of a job that restores or edits images enters ids: the kind, the images, what is done to them."""
    if not job.works_on_images:
        return {}
    path, model = job.inputs.images, job.model
    own = f"{job.dataset.name}/{OWN_IMAGES_VERSION}"
    facts: dict[str, Any] = {"kind": job.task_kind, "images": own if path is None else stored_hash(path)}
    if job.task_kind == "edit":
        return {"task": facts | {"strength": job.strength}}
    degradation = {"kind": model.condition, "channels": model.condition_channels, "factor": model.condition_factor}
    return {"task": facts | {"degradation": degradation}}


def _labels(job: Job) -> str | None:
    """How the samples of a model of classes have their labels."""
    if not job.model.classes:
        return None
    return f"index % {job.model.classes}" if job.inputs.balanced else f"drawn of {job.model.classes}"


def _prompt_facts(job: Job, streams: Sequence[PromptStream], guidance: float) -> dict[str, Any]:
    """Return what of prompts enters ids; nothing where none are given."""
    if job.inputs.prompts is None and job.inputs.calibration_prompts is None:
        return {}
    prompts, unguided = prompts_of(job.inputs), {"negative": job.inputs.negative_prompt} if guidance != 1 else {}
    read = {stream: prompts.hashes[stream] for stream in streams}
    return {"prompts": {"encoder": encoder_hash(job.model), **read, **unguided}}


def embeddings_id(job: Job, stream: PromptStream) -> str:
    """Return the id of the conditions of the prompts of a stream."""
    return _id("embeddings", of=prompts_of(job.inputs).hashes[stream], **_encoding(job))


def unguided_id(job: Job) -> str:
    """Return the id of the conditions of the unguided branch."""
    return _id("embeddings", negative=job.inputs.negative_prompt, **_encoding(job))


def _encoding(job: Job) -> dict[str, Any]:
    image = image_shape(job.model)[1:]
    encoding = {"encoder": encoder_hash(job.model), "image": image, "dtype": FLOAT32, "device": job.device_type}
    return encoding | _code_facts(job.model)


def inputs_id(job: Job) -> str:
    """Return the id of the samples artifact that shows what a job on images starts from."""
    return _id("samples", inputs=_task_facts(job))


def needs_match(job: Job) -> bool:
    """Whether calls of sampling must find activation parameters that were calibrated at other timesteps than theirs."""
    trained = job.bits.activation != FULL_PRECISION and any("activation" in stage.uses for stage in job.method.stages)
    size = group_size(job.bits.ranges) if trained else None
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
        **_layers_facts(job.model),
    }
    if (origin := stage_origin(job.method.name, stage.name)) is not None:
        facts["origin"] = origin
    if "activation" in stage.uses:
        facts |= {"activation": job.bits.activation, "ranges": job.bits.ranges}
        facts |= {key: value for key, value in job.bits.facts.items() if key == "granularity"}
    return _id("quantized", **facts)


def _code_facts(model: ModelConfig) -> dict[str, Any]:
    """Return whose code calls the model's network, where it is not ours."""
    origin = None if model.source == OWN else family_origin(kind_of(network_config(model)))
    return {} if origin is None else {"family": origin}


def _layers_facts(model: ModelConfig) -> dict[str, int]:
    """Return which layers of the model's network a scope means, where that was not always the same."""
    version = 1 if model.source == OWN else kind_of(network_config(model)).layers_version
    return {"layers": version} if version > 1 else {}


def _scope_facts(scope: dict[str, bool]) -> dict[str, bool]:
    """A scope without the keys that came after scopes had ids, where their values are as before them."""
    return {key: value for key, value in scope.items() if FURTHER_SCOPE.get(key) is not value}


def _id(kind: str, **facts: Any) -> str:
    return short_hash({"kind": kind, "version": VERSIONS[kind], **facts})


def perturbed_id(samples: str, perturbation: float) -> str:
    """Return the id of ``samples`` drawn from x_T · (1 + perturbation): the numerical floor of paired metrics."""
    return _id("samples", of=samples, perturbation=perturbation)


def foreign_ids(job: Job, weights: str) -> JobIds:
    """Return the ids of a job with ``evaluate.samples``: by pixels, what they are compared with, and their name.

    Raises:
        ArchiveError: the images cannot be read.
    """
    evaluate = job.evaluate
    assert evaluate.samples is not None
    own = job_ids(replace(full_precision(job), evaluate=EvaluateConfig()), weights)
    samples = images_id(evaluate.samples)
    result = _id(
        "result",
        samples=samples,
        reference=own.samples if evaluate.fp_samples is None else images_id(evaluate.fp_samples),
        model=job.model.name,
        dataset=job.dataset.name,
        name=evaluate.name,
        bits=evaluate.bits,
    )
    return JobIds(own.trajectories, (), None, samples, result)


def images_id(path: str | Path) -> str:
    """Return the id of the samples artifact that holds the images of an archive or folder, whatever file it was."""
    return _id("samples", images=stored_hash(path))
