"""About how much work the parts of a job are, in network calls of batch 1: for progress alone, never for results."""

from dmqbench.config.checked_job import Job, StageConfig
from dmqbench.config.model_facts import embeds_guidance, timesteps
from dmqbench.config.schema import SamplerConfig

QUANTIZED = 1.5
"""A call of the quantized network takes so many of full precision's."""

PER_ITERATION = 4.0
"""An iteration takes so many calls for each sample of its batch, whatever the stage."""

PER_SAMPLE, PER_TRAINED_SAMPLE = 10.0, 45.0
"""What a stage does once takes so many calls for each sample; one that trains looks at it for every unit."""

PER_CHECK = 2500.0
"""So many takes a look at held-out trajectories while training."""

ERRORS = 5.0
"""Errors per step and layer take so many calls for each of a trajectory's."""


def calls_of(job: Job, sampler: SamplerConfig) -> float:
    """Return the network calls that one sample takes."""
    branches = 1 if sampler.guidance == 1.0 or embeds_guidance(job.model) else 2
    return branches * len(timesteps(sampler, job.model, job.strength))


def work_of_samples(job: Job, count: int, quantized: bool) -> float:
    return count * calls_of(job, job.sampler) * (QUANTIZED if quantized else 1.0)


def work_of_trajectories(job: Job) -> float:
    return (job.budget.trajectories + job.budget.validation) * calls_of(job, job.calibration_sampler)


def work_of_stage(stage: StageConfig) -> float:
    """Return the work of a stage, from the sizes that its settings name."""
    iterations, batch, horizon, samples, checks = (
        stage.settings.get(name) or 0 for name in ("iterations", "batch", "horizon", "samples", "checks")
    )
    once = samples * (PER_TRAINED_SAMPLE if iterations else PER_SAMPLE) + checks * PER_CHECK
    return PER_ITERATION * iterations * batch * max(1, horizon) + once


def work_of_diagnosis(job: Job) -> float:
    return job.budget.validation * calls_of(job, job.sampler) * ERRORS
