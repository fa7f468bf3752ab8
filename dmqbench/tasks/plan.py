"""``task=plan``: what would run, what is in the store already, what memory it takes and what the model costs."""

from dmqbench.config.checked_job import Job
from dmqbench.config.ids import job_ids, needs_match, perturbed_id, reference_id
from dmqbench.config.method_checks import WHOSE_PARAMETERS
from dmqbench.config.model_facts import timesteps, weights_hash
from dmqbench.models.precision import PERTURBATIONS
from dmqbench.models.rollout import chunk_names
from dmqbench.results.result import Result
from dmqbench.store.artifacts import Store
from dmqbench.tasks import cost
from dmqbench.tasks.evaluator import other_seed_id
from dmqbench.tasks.memory_table import print_plan


def carry_out(job: Job) -> None:
    """Print what would run, what is in the store already, how much memory it takes, what the quantized model costs."""
    from rich.console import Console
    from rich.table import Table

    if job.model.shapes_only:
        print(f"{job.title}: nothing can be made, as the weights of {job.model.name} are not shipped")
        print_plan(job)
        cost.carry_out(job)
        return
    store, hash = Store(job.store_root), weights_hash(job.model)
    ids, fp = job_ids(job, hash), reference_id(job, hash)
    rows = [
        ("samples", "full precision", fp, job.metrics.samples),
        ("samples", "numerical floor", perturbed_id(fp, PERTURBATIONS[job.model.dtype]), job.metrics.pairs),
        ("samples", "floor of another seed", other_seed_id(job, hash), job.metrics.samples),
    ]
    if job.method.stages:
        rows.append(("trajectories", f"{job.budget.trajectories} + {job.budget.validation}", ids.trajectories, 0))
    rows += [("quantized", name, id, 0) for name, id in ids.stages]
    if job.method.stages:
        rows.append(("samples", job.title, ids.samples, job.metrics.samples))
    rows.append(("result", job.title, ids.result, 0))
    table = Table("artifact", "what", "id", "state", title=f"Plan of {job.title}")
    for kind, what, id, count in rows:
        table.add_row(kind, what, id, state_of(store, job, kind, id, count))
    Console().print(table)
    if job.works_on_images:
        source = job.inputs.images or f"the images shipped for {job.dataset.name}"
        calls = len(timesteps(job.sampler, job.model, job.strength))
        print(f"{job.task_kind}: {source}; {calls} network calls a sample")
    if job.calibration.changes:
        plans = (
            f"{sampler.name}, steps {sampler.steps}, eta {sampler.eta:g}, guidance {sampler.guidance:g}"
            for sampler in (job.calibration_sampler, job.sampler)
        )
        print("calibrated on {}; sampled with {}".format(*plans))
    if needs_match(job):
        print(f"every sampled call has {WHOSE_PARAMETERS[job.calibration.match]}")
    print_plan(job)
    cost.carry_out(job)


def state_of(store: Store, job: Job, kind: str, id: str, count: int) -> str:
    """Return what a run would do about an artifact; ``count`` is the number of samples asked for."""
    artifact = store.verified(kind, id)
    if artifact is None:
        return "to be made"
    if kind == "samples":
        names = set(chunk_names(count, job.sampler.chunk))
        return f"{len(names & artifact.files.keys())} of {len(names)} chunks are there"
    if kind == "result":
        result = Result.load(artifact.path)
        lacking = [name for name in job.metrics.names if name not in result.measured]
        return f"lacks {', '.join(lacking)}" if lacking else "is there"
    return "is there"
