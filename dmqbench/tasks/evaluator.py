"""What a job's samples are measured against: full precision, floors, and the protocol that all metrics share."""

from dataclasses import replace

from dmqbench.config.checked_job import Job, full_precision
from dmqbench.config.ids import inputs_id, job_ids, perturbed_id
from dmqbench.config.names import UNCALIBRATED
from dmqbench.eval.evaluate import Evaluator, Floors, SampleSet
from dmqbench.eval.feature_cache import feature_source, floor_source
from dmqbench.eval.protocol import Protocol
from dmqbench.models.adapter import Adapter
from dmqbench.tasks.sample import samples
from dmqbench.tasks.workshop import Workshop

PERTURBATION = 1e-7
"""Relative change of x_T for the numerical floor: less than one unit in the last place of float32."""


def make_evaluator(shop: Workshop) -> Evaluator:
    """Full-precision samples, the floors beside them, and the protocol that all metrics of this job share."""
    job = shop.job
    fp_id = job_ids(full_precision(job), shop.weights).samples
    return Evaluator(
        protocol=shared_protocol(shop, fp_id),
        full_precision=full_precision_samples(shop, fp_id, job.metrics.samples),
        full_precision_id=fp_id,
        dataset=job.dataset.name,
        reference=job.dataset.reference,
        pairs=job.metrics.pairs,
        settings=job.metrics,
        features=feature_source(shop.store, job.device_type),
        floor_of=floor_source(shop.store, job.device_type),
        floors=draw_floors(shop, fp_id),
        truth=ground_truth(shop),
        device=job.device_type,
    )


def ground_truth(shop: Workshop) -> SampleSet | None:
    """The images that were degraded, for all pairs; None where nothing says what a sample should be."""
    job = shop.job
    if job.task_kind != "restore":
        return None
    return SampleSet(inputs_id(job), shop.images.pixels("eval", range(job.metrics.pairs)))


def full_precision_samples(shop: Workshop, id: str, count: int) -> SampleSet:
    """The first ``count`` samples ``id`` of the full-precision model, from the store or drawn now."""
    return samples(shop, id, count, "full precision", lambda: shop.full_precision, seed=shop.job.metrics.seed)


def draw_floors(shop: Workshop, fp_id: str) -> Floors:
    """What the metrics read where nothing is quantized: once per model, sampler and seed, shared by all jobs."""
    metrics = shop.job.metrics

    def model() -> Adapter:
        return shop.full_precision

    perturbed, other = perturbed_id(fp_id, PERTURBATION), other_seed_id(shop.job, shop.weights)
    return Floors(
        perturbed=samples(
            shop, perturbed, metrics.pairs, "the numerical floor", model, seed=metrics.seed, perturbation=PERTURBATION
        ),
        other_seed=samples(shop, other, metrics.samples, "the floor of another seed", model, seed=metrics.seed + 1),
    )


def shared_protocol(shop: Workshop, fp_id: str) -> Protocol:
    """The protocol of this job's samples, to which a metric adds its own entries."""
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
    """Id of the full-precision samples that are drawn with another seed, for the floor of distribution metrics."""
    elsewhere = replace(full_precision(job), metrics=replace(job.metrics, seed=job.metrics.seed + 1))
    return job_ids(elsewhere, weights).samples
