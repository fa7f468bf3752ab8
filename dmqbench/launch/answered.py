"""Whether the store holds the verified result of a job, with all that it asks for."""

from collections.abc import Mapping
from dataclasses import asdict

from dmqbench.config.checked_job import Job
from dmqbench.config.names import DIAGNOSIS
from dmqbench.config.plugin_code import metric_origin
from dmqbench.config.plugins import metrics as known_metrics
from dmqbench.eval.protocol import entries_of
from dmqbench.launch.sweeps import Planned
from dmqbench.results.result import Result
from dmqbench.store.artifacts import Store


def is_answered(planned: Planned) -> bool:
    """Whether the store holds the verified result of a job, with every metric it asks for.

    A metric whose weights were missing is tried again, as they may have come; one that is unavailable for another
    reason stays so.
    """
    job = planned.job
    if job.task != "run" or planned.result is None:
        return False
    artifact = Store(job.store_root).verified("result", planned.result)
    if artifact is None or (job.diagnosed and DIAGNOSIS not in artifact.files):
        return False
    try:
        result = Result.load(artifact.path)
        return all(_is_covered(name, job, result) for name in job.metrics.names)
    except (KeyError, OSError, ValueError):  # written by a version of this program with other files
        return False


def _is_covered(name: str, job: Job, result: Result) -> bool:
    measurement = result.measured.get(name)
    if measurement is None:
        return _stays_unavailable(name, job, result)
    facts = known_metrics()[name]
    count = job.metrics.pairs if facts.over == "pairs" else job.metrics.samples
    current = measurement.protocol.startswith(f"{name}/{facts.version} ")
    return measurement.n == count and current and _is_as_asked(name, job, entries_of(measurement.protocol))


def _stays_unavailable(name: str, job: Job, result: Result) -> bool:
    """Whether the same was asked before, and the metric was not to be had for another reason than missing weights."""
    metrics = result.settings("metrics")
    same = metrics == asdict(job.metrics) | {"names": metrics.get("names")}
    same = same and result.settings("dataset") == asdict(job.dataset)
    return same and name in result.unavailable and name not in result.missing_weights


def _is_as_asked(name: str, job: Job, entries: Mapping[str, str]) -> bool:
    """Whether it was measured in the network and against the data that the job names, which a file does not tell."""
    reference = entries.get("reference", "")
    against_data = reference and reference.partition("@")[0] not in ("fp", "prompts", "truth")
    same_data = not against_data or (job.dataset.reference is None and reference.startswith(f"{job.dataset.name}@"))
    metrics = job.metrics
    networks = {"lpips": f"lpips-{metrics.lpips}"}
    if known_metrics()[name].features == "inception":
        networks[name] = f"inception-{metrics.inception}"
    network, origin = networks.get(name), metric_origin(name)
    same_code = origin is None or entries.get("tool") == origin
    return same_data and same_code and (network is None or entries["extractor"].startswith(f"{network}@"))
