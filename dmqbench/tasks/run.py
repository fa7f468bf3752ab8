"""``task=run``: one job, as a recipe: what it needs is looked up or made, then measured and written down."""

from pathlib import Path
from typing import Any

from dmqbench.anatomy.diagnosis import diagnose
from dmqbench.config.checked_job import Job
from dmqbench.config.names import DIAGNOSIS, DIAGNOSIS_VERSION
from dmqbench.store.files import load_json
from dmqbench.tasks.calibrate import calibrate_and_tell
from dmqbench.tasks.evaluator import make_evaluator
from dmqbench.tasks.mirror import tell_job
from dmqbench.tasks.result import measure, run_result
from dmqbench.tasks.sample import draw_samples, frozen
from dmqbench.tasks.trajectories import bank_of
from dmqbench.tasks.workshop import Workshop, open_workshop
from dmqbench.tracking.stopwatch import Stopwatch


def carry_out(job: Job) -> Path:
    """Make everything that ``job`` needs, measure it, and return its result folder."""
    shop = open_workshop(job)
    with shop.record:
        tell_job(shop)
        stages = calibrate_and_tell(shop)
        diagnosis = known_diagnosis(shop)
        samples = draw_samples(shop)
        diagnosing = Stopwatch()
        if diagnosis is None and job.diagnosed:
            with diagnosing.running():
                diagnosis = make_diagnosis(shop)
        shop.let_go_of_quantized()
        evaluator = make_evaluator(shop)  # last, as another job that runs beside this one may make its samples
        return measure(
            shop,
            evaluator,
            samples,
            lambda evaluation, evaluating: run_result(shop, evaluation, stages, evaluating, diagnosing),
            diagnosis,
        )


def known_diagnosis(shop: Workshop) -> dict[str, Any] | None:
    """Return what an earlier run of the job found on the same trajectories, if the store has it."""
    before = shop.store.verified("result", shop.ids.result)
    if before is None or DIAGNOSIS not in before.files:
        return None
    diagnosis = load_json(before.files[DIAGNOSIS])
    current = (diagnosis.get("version"), diagnosis.get("bank")) == (DIAGNOSIS_VERSION, shop.ids.trajectories)
    return diagnosis if current else None


def make_diagnosis(shop: Workshop) -> dict[str, Any]:
    """Measure errors per step and layer on the validation trajectories."""
    job, denoising = shop.job, shop.sampling(frozen(shop))
    diagnosis = diagnose(denoising, bank_of(shop).val, seed=job.seed, chunk=job.sampler.chunk)
    return {**diagnosis.to_json(), "bank": shop.ids.trajectories}
