"""About how much of each job is left to do: what the store lacks, and no job before it makes."""

from collections.abc import Iterator, Sequence

from dmqbench.config.effort import work_of_diagnosis, work_of_samples, work_of_stage, work_of_trajectories
from dmqbench.launch.sweeps import Planned
from dmqbench.store.artifacts import Store

CALIBRATING = ("run", "calibrate", "sample")
SAMPLING = ("run", "sample")


def expected_work(jobs: Sequence[Planned]) -> list[float]:
    """Return the work of each job; a part that several share is the first one's."""
    made: set[str] = set()
    works = []
    for planned in jobs:
        parts = {} if planned.job.task == "evaluate" else dict(_parts(planned))
        works.append(sum(work for id, work in parts.items() if id not in made))
        made |= parts.keys()
    return works


def _parts(planned: Planned) -> Iterator[tuple[str, float]]:
    """Yield the id and the work of each part that the store lacks."""
    job, ids = planned.job, planned.ids
    if ids is None or planned.full_precision is None:
        return
    store, reference = Store(job.store_root), planned.full_precision.samples
    if job.task == "run" and not store.path("samples", reference).exists():
        both_floors = job.metrics.pairs + job.metrics.samples
        yield reference, work_of_samples(job, job.metrics.samples + both_floors, quantized=False)
    if job.method.stages and not store.path("trajectories", ids.trajectories).exists():
        yield ids.trajectories, work_of_trajectories(job)
    if job.task in CALIBRATING:
        for stage, (_, id) in zip(job.method.stages, ids.stages, strict=True):
            if not store.path("quantized", id).exists():
                yield id, work_of_stage(stage)
    if job.task in SAMPLING and ids.samples != reference and not store.path("samples", ids.samples).exists():
        yield ids.samples, work_of_samples(job, job.metrics.samples, quantized=True)
    if job.task == "run" and job.diagnosed:
        yield f"diagnosis of {ids.result}", work_of_diagnosis(job)
