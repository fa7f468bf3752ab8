"""The sweeps: every job composes and stands once, and the jobs differ in what the sweep is about and nothing else."""

from collections.abc import Mapping
from functools import cache
from itertools import product
from typing import Any

import pytest
import yaml

from dmqbench.config import SWEEPS, job_ids, weights_hash
from dmqbench.page.dose import RUNGS, rung_of
from dmqbench.planning import Planned, check, sweep_jobs
from dmqbench.schema import Job

NAMES = sorted(path.stem for path in SWEEPS.glob("*.yaml"))
ABLATIONS = ("dmq_table5", "dmq_table6", "dmq_table7", "dmq_votes")


@cache
def jobs(name: str) -> tuple[Job, ...]:
    return tuple(planned.job for planned in planned_jobs(name))


@cache
def planned_jobs(name: str) -> tuple[Planned, ...]:
    return tuple(check(overrides) for overrides in sweep_jobs(name))


def calibrated(name: str) -> list[Job]:
    return [job for job in jobs(name) if job.method.name != "fp"]


def stages(job: Job) -> list[str]:
    return [stage.name for stage in job.method.stages]


def settings(job: Job, stage: str) -> Mapping[str, Any]:
    return next((found.settings for found in job.method.stages if found.name == stage), {})


def weighting(job: Job) -> str | None:
    return settings(job, "equivalent_scaling").get("weighting")


def scaling(job: Job) -> tuple[str, str] | None:
    found = settings(job, "power_of_two_scaling")
    return (found["selection"], found["layers"]) if found else None


@pytest.mark.parametrize("name", NAMES)
def test_every_job_can_start_and_stands_once(name):
    assert len({one.result for one in planned_jobs(name)}) == len(planned_jobs(name))


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("dmq_")])
def test_all_rows_of_a_sweep_share_sampler_scope_and_evaluation(name):
    shared = {(job.sampler, job.metrics, job.bits.scope, job.engine, job.dataset) for job in calibrated(name)}
    assert len(shared) == 1


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_neither_bits_nor_ranges_nor_budget(name):
    assert len({(job.model, job.bits, job.budget, job.seed) for job in calibrated(name)}) == 1
    assert jobs(name)[-1].bits.ranges == "step"


def test_table_5_adds_one_part_after_another():
    rows = calibrated("dmq_table5")
    assert [(weighting(job), scaling(job)) for job in rows] == [
        (None, None), ("uniform", None), ("adaptive", None), ("adaptive", ("vote", "skip")),
    ]  # fmt: skip
    assert stages(rows[0]) == ["weight_range", "weight_reconstruction", "activation_range"]


def test_table_6_changes_the_weighting_alone():
    rows = calibrated("dmq_table6")
    assert [weighting(job) for job in rows] == ["uniform", "linear", "quadratic", "adaptive"]
    assert {scaling(job) for job in rows} == {None} and len({tuple(stages(job)) for job in rows}) == 1


def test_table_7_changes_selection_and_layers_of_the_exponents_alone():
    rows = calibrated("dmq_table7")
    assert [scaling(job) for job in rows] == [None, ("mse", "all"), ("vote", "all"), ("vote", "skip")]
    assert {weighting(job) for job in rows} == {"adaptive"}


def test_tables_stand_beside_the_numbers_that_the_paper_reports():
    """One reported row for each row of ours, in its order; the folder is no sweep."""
    reported = yaml.safe_load((SWEEPS / "reported" / "dmq_ablations.yaml").read_text())["rows"]
    for table in (5, 6, 7):
        assert sum(row["table"] == table for row in reported) == len(calibrated(f"dmq_table{table}"))
    assert {row["bits"] for row in reported} == {job.bits.name for job in calibrated("dmq_table5")}
    assert "dmq_ablations" not in NAMES


def test_controls_have_every_method_with_both_kinds_of_ranges():
    found = {(job.method.name, job.bits.name, job.bits.ranges) for job in jobs("dmq_controls")}
    assert found == set(product(("rtn", "q_diffusion", "dmq"), ("w4a6", "w4a4", "w3a6"), ("shared", "step")))


def test_votes_share_everything_before_the_exponents_and_there_are_samples_enough():
    for one in planned_jobs("dmq_votes"):
        samples, calls = settings(one.job, "power_of_two_scaling")["samples"], one.job.sampler.steps
        assert samples % calls == 0 and samples // calls <= one.job.budget.trajectories
    first, *others = jobs("dmq_votes")
    assert all(other.method.stages[:-1] == first.method.stages[:-1] for other in others)
    found = {(scaling(job), settings(job, "power_of_two_scaling")["samples"] // 20) for job in jobs("dmq_votes")}
    assert found == set(product((("vote", "all"), ("mse", "all")), (16, 32, 64, 128, 256)))


def test_the_dose_has_every_rung_on_every_model():
    """What the curve is drawn from recognises each job, so that the sweep fills it."""
    found = [(job.model.name, rung_of(job.config)) for job in jobs("dmq_dose")]
    models = ("digits", *(f"ladder_{number}" for number in range(1, 6)))
    assert sorted(found, key=str) == sorted(product(models, RUNGS), key=str)
    assert {(job.budget.name, job.bits.name, job.bits.ranges) for job in jobs("dmq_dose")} == {
        ("ladder", "w4a4", "step"),
    }


def test_the_second_row_of_the_dose_is_an_earlier_stage_of_the_first():
    whole, weights_alone = planned_jobs("dmq_dose")[:2]
    ids = [job_ids(one.job, weights_hash(one.job.model)).stages for one in (whole, weights_alone)]
    assert ids[1] == ids[0][:3] and len(ids[0]) == 4


def test_claims_are_over_three_calibrations_at_equal_ranges():
    found = {(job.method.name, job.seed) for job in jobs("dmq_claims")}
    assert found == set(product(("rtn", "q_diffusion", "dmq"), range(3)))
    assert len({(job.bits, job.budget, job.metrics.seed) for job in jobs("dmq_claims")}) == 1
