"""What a job's samples are measured against: full precision, floors, and the protocol that all metrics share."""

from dataclasses import replace
from functools import partial
from typing import Any

from dmqbench.config.checked_job import Job, full_precision
from dmqbench.config.ids import inputs_id, job_ids, perturbed_id, reference_id
from dmqbench.config.model_facts import prompts_of
from dmqbench.config.names import UNCALIBRATED
from dmqbench.eval.evaluate import Evaluator, Floors, SampleSet
from dmqbench.eval.feature_cache import feature_source, floor_source
from dmqbench.eval.protocol import Protocol
from dmqbench.models.precision import PERTURBATIONS
from dmqbench.tasks.sample import samples
from dmqbench.tasks.workshop import Workshop


def make_evaluator(shop: Workshop) -> Evaluator:
    """Return what measures this job: against full precision, with floors, under one protocol for all metrics."""
    job, metrics, fp_id = shop.job, shop.job.metrics, reference_id(shop.job, shop.weights)
    # What metrics read where nothing is quantized: once per model, sampler and seed, shared by all jobs.
    draw = partial(samples, shop, model=lambda: shop.full_precision)
    full_precision_samples = draw(fp_id, metrics.samples, "full precision", seed=metrics.seed)
    perturbation = PERTURBATIONS[job.model.dtype]
    perturbed, other_seed = perturbed_id(fp_id, perturbation), other_seed_id(job, shop.weights)
    floors = Floors(
        draw(perturbed, metrics.pairs, "the numerical floor", seed=metrics.seed, perturbation=perturbation),
        draw(other_seed, metrics.samples, "the floor of another seed", seed=metrics.seed + 1),
    )
    truth = None  # only where an image was degraded, something says what a sample should be
    if job.task_kind == "restore":
        truth = SampleSet(inputs_id(job), shop.images.pixels("eval", range(metrics.pairs)))
    return Evaluator(
        protocol=_protocol(shop, fp_id),
        full_precision=full_precision_samples,
        full_precision_id=fp_id,
        dataset=job.dataset.name,
        floors=floors,
        truth=truth,
        captions=None if job.inputs.prompts is None else prompts_of(job.inputs).texts("eval", metrics.samples),
        **of_every_job(shop),
    )


def of_every_job(shop: Workshop) -> dict[str, Any]:
    """Return what an evaluator of any samples is given: the settings, the data, and where features come from."""
    job, device = shop.job, shop.job.device_type
    return {
        "reference": job.dataset.reference,
        "pairs": job.metrics.pairs,
        "settings": job.metrics,
        "features": feature_source(shop.store, device),
        "floor_of": floor_source(shop.store, device),
        "device": device,
    }


def _protocol(shop: Workshop, fp_id: str) -> Protocol:
    """Return the protocol of this job's samples, to which a metric adds its own entries."""
    job = shop.job
    return Protocol(
        metric="shared",
        version=1,
        tool="dmqbench",
        rounding="uint8",
        n=job.metrics.samples,
        seed=job.metrics.seed,
        sampler=job.sampler.name,
        timesteps=shop.sampler.timesteps,
        eta=job.sampler.eta,
        guidance=job.sampler.guidance,
        chunk=job.sampler.chunk,
        engine=None if job.foreign else job.engine,
        scope=None if job.method.name in UNCALIBRATED else job.bits.scope,
        clip=job.sampler.clip_sample,
        task=job.task_kind if job.works_on_images else None,
        strength=job.strength if job.task_kind == "edit" else None,
        base=fp_id,
        unknown=("scope", "engine") if job.foreign else (),
    )


def other_seed_id(job: Job, weights: str) -> str:
    """Return the id of the full-precision samples of another seed, for the floor of distribution metrics."""
    elsewhere = replace(full_precision(job), metrics=replace(job.metrics, seed=job.metrics.seed + 1))
    return job_ids(elsewhere, weights).samples
