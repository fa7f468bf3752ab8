"""About how much of each job is left to do: what the store lacks, and no job before it makes."""

from collections.abc import Iterator, Sequence

from dmqbench.config.checked_job import Job, full_precision
from dmqbench.config.effort import work_of_diagnosis, work_of_samples, work_of_stage, work_of_trajectories
from dmqbench.config.ids import JobIds, job_ids
from dmqbench.launch.sweeps import Planned, hash_once
from dmqbench.store.artifacts import Store

CALIBRATING = ("run", "calibrate", "sample")
SAMPLING = ("run", "sample")


def expected_work(planned: Sequence[Planned]) -> list[float]:
    """Return the work of each job; a part that several share is the first one's."""
    made: set[str] = set()
    works = []
    for one in planned:
        parts = {} if one.result is None or one.job.task == "evaluate" else dict(_parts(one.job))
        works.append(sum(work for id, work in parts.items() if id not in made))
        made |= parts.keys()
    return works


def _parts(job: Job) -> Iterator[tuple[str, float]]:
    """Yield the id and the work of each part that the store lacks."""
    weights = hash_once(job.model)
    ids, store = job_ids(job, weights), Store(job.store_root)
    reference = job_ids(full_precision(job), weights).samples
    if job.task == "run" and not store.path("samples", reference).exists():
        both_floors = job.metrics.pairs + job.metrics.samples
        yield reference, work_of_samples(job, job.metrics.samples + both_floors, quantized=False)
    if job.method.stages and not store.path("trajectories", ids.trajectories).exists():
        yield ids.trajectories, work_of_trajectories(job)
    if job.task in CALIBRATING:
        yield from _stages(job, ids, store)
    if job.task in SAMPLING and ids.samples != reference and not store.path("samples", ids.samples).exists():
        yield ids.samples, work_of_samples(job, job.metrics.samples, quantized=True)
    if job.task == "run" and job.diagnosed:
        yield f"diagnosis of {ids.result}", work_of_diagnosis(job)


def _stages(job: Job, ids: JobIds, store: Store) -> Iterator[tuple[str, float]]:
    for stage, (_, id) in zip(job.method.stages, ids.stages, strict=True):
        if not store.path("quantized", id).exists():
            yield id, work_of_stage(stage)
