"""``task=evaluate``: images that another program sampled, or samples in the store, measured as our own are."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dmqbench.config.checked_job import Job
from dmqbench.config.ids import images_id, job_ids, reference_id
from dmqbench.config.input_checks import read_prompts
from dmqbench.config.model_facts import weights_hash
from dmqbench.data.archives import inspect, read_batches
from dmqbench.eval.evaluate import Evaluator, SampleSet
from dmqbench.eval.protocol import Protocol
from dmqbench.models.rollout import chunk_names
from dmqbench.store.artifacts import Store
from dmqbench.tasks import run
from dmqbench.tasks.evaluator import make_evaluator, of_every_job
from dmqbench.tasks.mirror import tell_job
from dmqbench.tasks.result import imported_result, measure, names_of_images
from dmqbench.tasks.workshop import Workshop, open_workshop

CHUNK = 64
"""Images in a file of an imported artifact: the same for every job, so that they share it."""

UNKNOWN_OF_SAMPLES = ("scope", "engine", "seed", "sampler", "timesteps", "eta", "guidance", "clip", "chunk", "base")
"""Entries of a protocol that nobody knows of images made elsewhere."""


def carry_out(job: Job) -> Path:
    """Measure images made elsewhere, or samples that are in the store; return the result folder."""
    return evaluate_stored(job) if job.evaluate.samples is None else evaluate_foreign(job)


def evaluate_foreign(job: Job) -> Path:
    """Measure the images in ``job.evaluate.samples``, and return the result folder.

    They are compared with those in ``evaluate.fp_samples``, or with the full-precision samples of the job's own model
    and sampler, which are drawn if the store lacks them. The same command again extends the same result.
    """
    shop = open_workshop(_limited(job))
    job = shop.job
    with shop.record:
        tell_job(shop)
        samples = import_images(shop.store, job.evaluate.samples, job.metrics.samples)
        evaluator = foreign_evaluator(shop)
        return measure(shop, evaluator, samples, partial(imported_result, shop, evaluator.full_precision_id))


def _limited(job: Job) -> Job:
    """The job with as many samples and pairs as there are images."""
    metrics, evaluate = job.metrics, job.evaluate
    assert evaluate.samples is not None
    count = min(inspect(evaluate.samples).count, metrics.samples)
    references = count if evaluate.fp_samples is None else inspect(evaluate.fp_samples).count
    return replace(job, metrics=replace(metrics, samples=count, pairs=min(metrics.pairs, count, references)))


def import_images(store: Store, path: str | Path | None, count: int) -> SampleSet:
    """Return the first ``count`` images of an archive or folder (or all, if fewer), keeping them as a samples artifact.

    Like those drawn here they lie in whole chunks, so that pictures, pages and feature caches find them.

    Raises:
        ArchiveError: they cannot be read.
    """
    assert path is not None
    info, id = inspect(path), images_id(path)
    count = min(count, info.count)
    names = chunk_names(count, CHUNK)
    if not set(names) <= store.verified_files("samples", id).keys():
        for name, part in zip(names, read_batches(path, CHUNK, len(names) * CHUNK), strict=True):
            tensors = {"images": torch.from_numpy(part)}
            store.append_file("samples", id, name, lambda target, tensors=tensors: save_file(tensors, target))
    return SampleSet(id, _stored(store, id, names)[:count])


def _stored(store: Store, id: str, names: Sequence[str]) -> Tensor:
    files = store.verified_files("samples", id)
    return torch.cat([load_file(files[name])["images"] for name in names])


def foreign_evaluator(shop: Workshop) -> Evaluator:
    """Return what measures these images: against our own full-precision samples, or those that came with them."""
    job, given = shop.job, shop.job.evaluate.fp_samples
    prompts = None if job.evaluate.prompts is None else read_prompts(job.evaluate.prompts)
    references = None if given is None else import_images(shop.store, given, job.metrics.samples)
    if references is None or _is_stored(shop, reference_id(job, shop.weights), references):
        evaluator = make_evaluator(shop)
        pairs = 0 if references is None else evaluator.pairs
        return replace(evaluator, protocol=_unknown(job), pairs=pairs, captions=prompts)
    return Evaluator(
        protocol=_unknown(job),
        full_precision=references,
        full_precision_id=references.id,
        dataset=names_of_images(job)["dataset"],
        captions=prompts,
        **of_every_job(shop),
    )


def _unknown(job: Job) -> Protocol:
    """Return the protocol of images of which nobody says how they were drawn."""
    paths = (job.evaluate.samples, job.evaluate.fp_samples)
    lossy = {name for path in paths if path is not None for name in inspect(path).lossy}
    return Protocol(
        saved="+".join(sorted(lossy)) or None,
        metric="shared",
        version=1,
        tool="dmqbench",
        rounding="uint8",
        n=job.metrics.samples,
        seed=None,
        sampler=None,
        timesteps=(),
        eta=None,
        guidance=None,
        chunk=None,
        engine=None,
        unknown=UNKNOWN_OF_SAMPLES,
    )


def _is_stored(shop: Workshop, id: str, images: SampleSet) -> bool:
    """Whether the store holds samples ``id``, and ``images`` are the first of them, bit for bit."""
    names = chunk_names(len(images), shop.job.sampler.chunk)
    if not set(names) <= shop.store.verified_files("samples", id).keys():
        return False
    return torch.equal(_stored(shop.store, id, names)[: len(images)], images.images)


def evaluate_stored(job: Job) -> Path:
    """Measure samples that are in the store, and return the result folder.

    Raises:
        LookupError: they are not all there.
    """
    names = chunk_names(job.metrics.samples, job.sampler.chunk)
    present = Store(job.store_root).verified_files("samples", job_ids(job, weights_hash(job.model)).samples)
    if not set(names) <= present.keys():
        raise LookupError(f"{len(present)} of {len(names)} chunks of its samples are in the store; use task=run")
    return run.carry_out(job)
