"""The sweeps: every job composes and stands once, and the jobs differ in what the sweep is about and nothing else."""

from collections.abc import Mapping
from functools import cache
from itertools import product
from typing import Any

import pytest
import yaml
from handmade_findings import FindingsBench
from packaged_models import require_package

from dmqbench.config.checked_job import Job
from dmqbench.config.ids import job_ids
from dmqbench.config.limits import limits_of
from dmqbench.config.model_facts import weights_hash
from dmqbench.config.places import CONF, SWEEPS
from dmqbench.launch.sweeps import Planned, check, sweep_jobs
from dmqbench.models.packaged.catalogue import PACKAGED
from dmqbench.results.studies.dose_response import RUNGS, rung_of
from dmqbench.results.studies.findings import FindingsReader
from dmqbench.results.studies.precision_ablation import precision_ablation
from dmqbench.results.studies.trajectory_ablation import GRADIENTS, VARIED, ablation

NAMES = sorted(path.stem for path in SWEEPS.glob("*.yaml"))
ABLATIONS = ("dmq_table5", "dmq_table6", "dmq_table7", "dmq_votes")
TRAJECTORY = "trajectory_reconstruction"


@cache
def jobs(name: str) -> tuple[Job, ...]:
    return tuple(planned.job for planned in planned_jobs(name))


@cache
def planned_jobs(name: str) -> tuple[Planned, ...]:
    for model in PACKAGED:
        if name.startswith(model):
            require_package(model)
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
    results = {one.result for one in planned_jobs(name)}
    assert len(results) == len(planned_jobs(name)) and None not in results


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("dmq_", "accuquant_"))])
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


ACCUQUANT_BITS = ("w3a6", "w3a8", "w4a6")


def test_claims_of_accuquant_are_over_three_calibrations_of_every_bit_width():
    found = {(job.method.name, job.bits.name, job.seed) for job in jobs("accuquant_claims")}
    assert found == set(product(("q_diffusion", "accuquant"), ACCUQUANT_BITS, range(3)))
    assert len({(job.budget, job.metrics.seed) for job in jobs("accuquant_claims")}) == 1
    assert {(job.method.name, job.bits.ranges) for job in jobs("accuquant_claims")} == {
        ("q_diffusion", "shared"), ("accuquant", "group5"),
    }  # fmt: skip


def test_controls_of_accuquant_hold_ranges_equal_and_leave_its_stage_out():
    found = [(job.method.name, stages(job)[-1], job.bits.name, job.bits.ranges) for job in jobs("accuquant_controls")]
    rows = (("q_diffusion", "activation_reconstruction"), ("accuquant", TRAJECTORY), ("accuquant", "activation_range"))
    assert sorted(found) == sorted(
        (*row, *place) for row, *place in product(rows, ACCUQUANT_BITS, ("group5", "shared"))
    )
    claims = {one.result for one in planned_jobs("accuquant_claims") if one.job.seed == 0}
    assert claims < {one.result for one in planned_jobs("accuquant_controls")}, "the claims' own jobs are among them"


def ablation_jobs(bits: str) -> list[Job]:
    return [job for job in jobs("accuquant_ablation") if job.bits.name == bits]


@pytest.mark.parametrize("bits", ["w4a6", "w3a6"])
def test_the_ablation_has_every_horizon_and_every_gradient_beside_the_untuned_job(bits):
    untuned, *tuned = ablation_jobs(bits)
    assert stages(untuned)[-1] == "activation_range"
    found = [settings(job, TRAJECTORY) for job in tuned]
    places = [(one["horizon"], one["gradient"]) for one in found]
    assert places[:5] == [(horizon, "identity") for horizon in (1, 2, 5, 10, 20)]
    assert sorted(gradient for horizon, gradient in places[5:13]) == sorted(
        name for name in limits_of(TRAJECTORY).choices["gradient"] if name != "identity"
    )
    assert {horizon for horizon, _ in places[5:]} == {5}
    usual = settings(tuned[2], TRAJECTORY)
    others = [{key: value for key, value in one.items() if usual[key] != value} for one in found]
    assert [set(other) - {"horizon", "gradient"} for other in others[:13]] == [set()] * 13
    assert others[13:] == [{"start": "quantized"}, {"recipe": "scales"}]


def test_the_ablation_holds_the_groups_of_ranges_and_everything_before_the_stage():
    """Ranges would otherwise change along with the horizon; and all jobs of a bit-width share their earlier stages."""
    for bits in ("w4a6", "w3a6"):
        found = ablation_jobs(bits)
        assert {(job.bits.ranges, job.budget.name) for job in found} == {("group5", "ladder")}
        assert len({(job.seed, job.model, job.sampler) for job in found}) == 1
        ids = [job_ids(job, weights_hash(job.model)).stages for job in found]
        assert len({one[:3] for one in ids}) == 1 and len(ids[0]) == 3


def test_the_ablation_s_jobs_are_one_curve_by_horizon_and_one_by_gradient_of_each_bit_width(tmp_path):
    """What the figure is drawn from finds them together, so that the sweep fills it."""
    bench = FindingsBench(tmp_path / "runs")
    for job in jobs("accuquant_ablation"):
        own = settings(job, TRAJECTORY)
        changes = {"config": dict(job.config), "ranges": job.bits.ranges, "bits": job.bits.name}
        bench.trial(own.get("horizon"), own.get("gradient", ""), found={"calls": 20}, **changes)
    reader = FindingsReader(bench.root)
    by_horizon, by_gradient = (ablation(bench.results(), reader, varied) for varied in VARIED)
    assert by_horizon is not None and by_gradient is not None
    for found, places in ((by_horizon, [1, 2, 5, 10, 20]), (by_gradient, list(GRADIENTS))):
        assert [curve.name for curve in found.curves] == ["w4a6", "w3a6"] and found.compared
        assert all([trial.place for trial in curve.trials] == places for curve in found.curves)


def test_errors_of_four_methods_are_of_one_bit_width():
    found = [(job.method.name, job.bits.name, job.seed) for job in jobs("accuquant_errors")]
    assert found == [(method, "w4a6", 0) for method in ("rtn", "q_diffusion", "dmq", "accuquant")]
    assert all(job.diagnose for job in jobs("accuquant_errors"))


MPQ_BITS = ("w2a6", "w2a4", "w3a4")


def test_claims_of_mpq_dm_are_over_three_calibrations_of_every_bit_width_at_equal_ranges():
    found = [(job.method.name, job.bits.name, job.seed) for job in calibrated("mpq_dm_claims")]
    methods = ("rtn", "q_diffusion", "efficient_dm", "mpq_dm")
    assert sorted(found) == sorted(product(methods, MPQ_BITS, range(3)))
    assert [job.method.name for job in jobs("mpq_dm_claims")].count("fp") == 1
    assert {job.bits.ranges for job in calibrated("mpq_dm_claims")} == {"step"}
    assert len({(job.budget, job.metrics, job.sampler) for job in jobs("mpq_dm_claims")}) == 1


def test_the_ablation_of_mpq_dm_changes_one_part_at_a_time():
    baseline, *rows = jobs("mpq_dm_ablation")
    assert baseline.method.name == "efficient_dm" and not baseline.method.variant
    whole = rows[2]
    assert whole.method.name == "mpq_dm" and not whole.method.variant
    omq, trd = "outlier_allocation", "low_rank_tuning"
    both = (settings(whole, omq), settings(whole, trd))

    def changes(job: Job) -> list[dict[str, Any]]:
        found = ((settings(job, name), usual) for name, usual in zip((omq, trd), both, strict=True))
        return [{key: value for key, value in one.items() if usual[key] != value} for one, usual in found]

    assert [changes(job) for job in rows[:8]] == [
        [{}, {"distillation": "none", "window": 1}],
        [{}, {}],
        [{}, {}],
        [{"rows": "random"}, {}],
        [{"rows": "head_tail"}, {}],
        [{}, {"distillation": "feature"}],
        [{"largest_tenths": 0}, {"distillation": "none", "window": 1}],
        [{"plus": True}, {}],
    ]
    assert [omq in stages(job) for job in rows] == [True, False, *[True] * 8]
    assert rows[8].method.faithful and changes(rows[9]) == [{}, {"loss": "published", "distillation_weight": 100}]
    unread = {"distillation_weight": None}  # without distillation
    assert settings(baseline, trd) | unread == settings(rows[0], trd) | unread
    assert len({(job.bits, job.budget, job.seed, job.metrics, job.sampler) for job in jobs("mpq_dm_ablation")}) == 1


def test_the_ablation_of_mpq_dm_shares_two_jobs_with_its_claims_and_fills_its_picture(tmp_path):
    claims = {one.result for one in planned_jobs("mpq_dm_claims")}
    assert sum(one.result in claims for one in planned_jobs("mpq_dm_ablation")) == 2
    bench = FindingsBench(tmp_path / "runs")
    for job in jobs("mpq_dm_ablation"):
        bench.precision(job.method.name, job.method.variant, config=dict(job.config), ranges=job.bits.ranges)
    found = precision_ablation(bench.results())
    assert found is not None and len(found.bars) == 10


def test_what_the_paper_of_mpq_dm_reports_names_jobs_that_can_be_composed():
    """Method, variant and bits are those of a job here, so that its result stands under the same name."""
    table = yaml.safe_load((SWEEPS / "reported" / "mpq_dm_partial.yaml").read_text())
    ours = {(job.method.name, job.method.variant) for job in jobs("mpq_dm_ablation")}
    for row in table["rows"]:
        assert (row["method"], row.get("variant", "")) in ours
        assert (CONF / "bits" / f"{row['bits']}.yaml").is_file() and row["model"] in table["protocol"]
        assert {key for key in row if isinstance(row[key], float)} <= set(table["columns"])
    assert "mpq_dm_partial" not in NAMES


def test_the_glance_at_two_bits_is_a_part_of_the_claims():
    found = [(job.method.name, job.bits.name) for job in jobs("mpq_dm_glance")]
    methods = ("rtn", "q_diffusion", "efficient_dm", "mpq_dm")
    assert found == [("fp", "w32a32"), *((method, "w2a4") for method in methods)]
    assert {one.result for one in planned_jobs("mpq_dm_glance")} < {one.result for one in planned_jobs("mpq_dm_claims")}


def test_the_dial_changes_nothing_but_dose_method_and_seed():
    found = {(job.model.planted.dose, job.method.name, stages(job)[0], job.seed) for job in jobs("outlier_dial")}
    doses = {dose for dose, *_ in found}
    assert doses == {1, 2, 4, 8, 16, 32, 64} and len(found) == len(jobs("outlier_dial")) == 7 * 5 * 3
    assert {job.model.planted.where for job in jobs("outlier_dial") if job.model.planted} == {("value", "group_norm")}
    assert len({(job.bits, job.budget, job.metrics) for job in jobs("outlier_dial")}) == 1
