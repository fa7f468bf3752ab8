"""Whether the store holds the verified result of a job, with all that it asks for."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dmqbench.config.schema import DIAGNOSIS, INCEPTION_METRICS, METRICS, PAIRED_METRICS, Job
from dmqbench.eval.protocol import entries_of
from dmqbench.launch.sweeps import Planned
from dmqbench.store.artifacts import Store
from dmqbench.store.files import load_json


def is_answered(planned: Planned) -> bool:
    """Does the store hold the verified result of a job, with every metric it asks for?

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
        result = load_json(artifact.files["result.json"])
        return all(_is_covered(name, job, result) for name in job.metrics.names)
    except (KeyError, OSError, ValueError):  # written by a version of this program with other files
        return False


def _is_covered(name: str, job: Job, result: Mapping[str, Any]) -> bool:
    if name not in result["metrics"]:
        asked, missing = result["config"], result.get("missing_weights", result["unavailable"])
        same = asked["metrics"] == asdict(job.metrics) | {"names": asked["metrics"]["names"]}
        same = same and asked["dataset"] == asdict(job.dataset)
        return same and name in result["unavailable"] and name not in missing
    count = job.metrics.pairs if name in PAIRED_METRICS else job.metrics.samples
    found = result["metrics"][name]
    current = found["protocol"].startswith(f"{name}/{METRICS[name]} ")
    return found["n"] == count and current and _is_as_asked(name, job, entries_of(found["protocol"]))


def _is_as_asked(name: str, job: Job, found: Mapping[str, str]) -> bool:
    """Was it measured in the network and against the data that the job names? A file of data is read to tell."""
    reference = found.get("reference", "")
    against_data = reference and reference.partition("@")[0] not in ("fp", "prompts", "truth")
    same_data = not against_data or (job.dataset.reference is None and reference.startswith(f"{job.dataset.name}@"))
    metrics = job.metrics
    networks = {"lpips": f"lpips-{metrics.lpips}"}
    networks |= dict.fromkeys(INCEPTION_METRICS, f"inception-{metrics.inception}")
    network = networks.get(name)
    return same_data and (network is None or found["extractor"].startswith(f"{network}@"))
