"""What of a job its user may not expect, in a line each. Imports no torch."""

from collections.abc import Iterable, Iterator

from dmqbench.config.checked_job import Job
from dmqbench.config.model_facts import network_family
from dmqbench.config.schedulers import as_overrides, not_computed, stated_settings
from dmqbench.models.folders import FUSING, LORAS, read_config
from dmqbench.models.location import locate, locate_scheduler

OF_USERS = ("local", "hub")
"""Where checkpoints of users lie, whose schedulers a YAML may not follow."""


def notices(jobs: Iterable[Job]) -> list[str]:
    """Return what is to be said of jobs before they begin, each line once."""
    return list(dict.fromkeys(line for job in jobs for line in _of_job(job)))


def _of_job(job: Job) -> Iterator[str]:
    guidances = {job.sampler.guidance, job.calibration_sampler.guidance}
    if job.inputs.negative_prompt is not None and guidances == {1.0}:
        yield "inputs.negative_prompt changes nothing with sampler.guidance=1"
    if job.model.checkpoint.kind in OF_USERS:
        yield from _of_scheduler(job)
        for path in sorted(locate(job.model.checkpoint).glob(LORAS)):
            yield f"{job.model.label}: {path.name} changes nothing, as LoRA is not loaded; {FUSING}"


def _of_scheduler(job: Job) -> Iterator[str]:
    """What the model's own scheduler does otherwise than the job's sampler."""
    path, sampler = locate_scheduler(job.model.checkpoint), job.sampler
    if path is None:
        return
    config, family = read_config(path), network_family(job.model)
    if family.reads_text:
        config |= {key: value for key, value in family.scheduling.items() if key in config}
    stated = stated_settings(sampler.name, config)
    other = {key: value for key, value in stated.items() if getattr(sampler, key) != value}
    title = f"{job.model.label}: its {config.get('_class_name')}"
    if other:
        yield f"{title} has other settings than this job: {' '.join(as_overrides(other))} would be as it samples"
    for key, value in not_computed(sampler.name, config).items() if stated else ():
        yield f"{title} has {key}={value}, which no sampler here computes"
