"""What a job tells its tracker."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from safetensors import SafetensorError

from dmqbench.config.checked_job import Job
from dmqbench.config.names import FOREIGN, STAND_IN, UNKNOWN
from dmqbench.eval.evaluate import Evaluation
from dmqbench.results.plots.samples import picture_of
from dmqbench.results.result import Result
from dmqbench.store.artifact import StoreError
from dmqbench.tasks.cost import quantization_of
from dmqbench.tasks.workshop import Workshop
from dmqbench.tracking.record import Part
from dmqbench.tracking.tracker import Tracker
from dmqbench.tracking.wandb_client import warm_up


def tell_job(shop: Workshop) -> None:
    """Begin the record with what the job is."""
    warm_up(shop.job.tracker.mode)
    shop.record.log("job", config=shop.job.config, ids=asdict(shop.ids), tags=tags_of(shop.job))


def tags_of(job: Job) -> tuple[str, str, str]:
    """Return method, model and bits."""
    if job.evaluate.samples is not None:
        return FOREIGN, job.model.label, job.evaluate.bits or UNKNOWN
    return job.method.name, job.model.label, quantization_of(job).bits


def facts_of(job: Job) -> dict[str, str]:
    return dict(zip(("method", "model", "bits"), tags_of(job), strict=True))


def show_in_tracker(
    shop: Workshop,
    mirror: Tracker,
    result: Result,
    evaluation: Evaluation,
    diagnosis: Mapping[str, Any] | None,
) -> None:
    """Log what was found, link it with its calibration, and add what people would rather look at than read."""
    measured = without_stand_ins(evaluation.measurements)
    shop.record.log("metrics", **{name: metric.value for name, metric in measured.items() if not metric.exact})
    mirror.summarize(
        {
            "metrics": {name: measurement.to_json() for name, measurement in result.measurements.items()},
            "cost": result.cost.to_json(),
            "timing": result.timing.to_json(),
        }
    )
    if shop.ids.quantized is not None:
        mirror.used(shop.ids.quantized, **facts_of(shop.job))
    mirror.per_image(without_stand_ins(evaluation.per_image))
    if diagnosis is not None:
        mirror.diagnosis(diagnosis)
    if mirror.location is None:
        return
    picture = shop.record.path.with_suffix(".png")
    try:
        picture_of(shop.store.root, [result.folder], picture)
    except (OSError, ValueError, SafetensorError, StoreError):
        return  # damaged, or of a kind that the picture does not know; the numbers are there
    rows = "full precision | quantized | difference"
    mirror.image("samples", picture, f"input | {rows}" if shop.job.works_on_images else rows)


def without_stand_ins(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by metric, without those of made-up networks."""
    return {name: value for name, value in values.items() if not name.startswith(STAND_IN)}


@contextmanager
def tracker(shop: Workshop, part: Part) -> Iterator[Tracker]:
    """Mirror one half of the job in a wandb run, and say where that lies, if there is one."""
    job = shop.job
    about = {"tags": tags_of(job), "config": job.config, "ids": asdict(shop.ids)}
    with Tracker(shop.record, part, mode=job.tracker.mode, directory=job.store_root, **about) as mirror:
        if mirror.location is not None:
            print(f"wandb {part}: {mirror.location}", file=sys.stderr)
        yield mirror
