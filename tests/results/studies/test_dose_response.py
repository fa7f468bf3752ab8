"""The dose curve: which jobs are its rungs, what their differences are, and when there is no curve."""

import math
from typing import Any

import pytest
from handmade import diagnosis
from handmade_findings import RUNG_METHODS, SCALING, FindingsBench
from scipy import stats

from dmqbench.config.compose import compose
from dmqbench.config.job import make_job
from dmqbench.results.studies.dose_response import RUNG_NAMES, RUNGS, dose_curve, rung_of
from dmqbench.results.studies.findings import FindingsReader

GAINS = {"q_diffusion": 0.0, "reconstruction": -0.2, "scaling": 1.0, "weighting": 1.5, "powers": 1.4}
DISPARITIES = {"digits": 2.0, "ladder_1": 1.5, "ladder_2": 4.0, "ladder_3": 8.0}


def fill(bench: FindingsBench, disparities=DISPARITIES, rungs=RUNGS, **changes) -> None:
    for model, disparity in disparities.items():
        for rung in rungs:
            bench.rung(model, rung, 25.0 + GAINS[rung] * math.log2(disparity), disparity, **changes)


@pytest.fixture
def bench(tmp_path) -> FindingsBench:
    return FindingsBench(tmp_path / "runs")


def curve_of(bench: FindingsBench):
    return dose_curve(bench.results(), FindingsReader(bench.root))


def test_differences_are_over_q_diffusion_and_over_the_part_before(bench):
    fill(bench)
    curve = curve_of(bench)
    assert curve is not None
    assert curve.models == ["ladder_1", "digits", "ladder_2", "ladder_3"], "by rising disparity"
    for rung, previous in zip(RUNGS[1:], RUNGS, strict=False):
        points = curve.of(rung)
        assert [point.previous for point in points] == [previous] * 4
        for point in points:
            octaves = math.log2(DISPARITIES[point.model])
            assert point.disparity == pytest.approx(DISPARITIES[point.model])
            assert point.over_base.difference == pytest.approx(GAINS[rung] * octaves)
            assert point.over_previous.difference == pytest.approx((GAINS[rung] - GAINS[previous]) * octaves)
            assert point.over_base.ci95 == pytest.approx([point.over_base.difference] * 2), "image by image the same"


def test_the_relation_to_disparity_is_said_with_its_interval(bench):
    noise = {"digits": 0.3, "ladder_1": -0.2, "ladder_2": 0.1, "ladder_3": -0.3, "ladder_4": 0.0}
    disparities = DISPARITIES | {"ladder_4": 16.0}
    gains = {model: math.log10(value) + noise[model] for model, value in disparities.items()}
    for model, disparity in disparities.items():
        bench.rung(model, "q_diffusion", 25.0, disparity)
        bench.rung(model, "scaling", 25.0 + gains[model], disparity)
    curve = curve_of(bench)
    assert curve is not None
    expected: Any = stats.pearsonr([math.log10(value) for value in disparities.values()], list(gains.values()))
    [said] = [sentence for sentence in curve.sentences if sentence.startswith(RUNG_NAMES["scaling"])]
    assert f"Pearson {expected.statistic:.2f}" in said and "5 models" in said
    low = expected.confidence_interval(0.95).low
    assert ("rises with disparity" in said) == (low > 0)
    assert curve.sentences[0] == "w4a4, ranges step, budget ladder, seed 0"


def test_a_rung_that_was_not_run_is_stepped_over(bench):
    fill(bench, rungs=("q_diffusion", "weighting", "powers"))
    curve = curve_of(bench)
    assert curve is not None
    assert {(point.previous, point.rung) for point in curve.points} == {
        ("q_diffusion", "weighting"), ("weighting", "powers"),
    }  # fmt: skip


def test_two_models_are_no_curve(bench):
    fill(bench, {"digits": 2.0, "ladder_1": 1.5})
    assert curve_of(bench) is None


def test_without_the_baseline_or_the_disparity_a_model_is_left_out_and_named(bench):
    fill(bench)
    bench.rung("ladder_4", "powers", 30.0, 9.0)
    bench.rung("ladder_5", "q_diffusion", 25.0)
    bench.rung("ladder_5", "powers", 30.0, None)
    curve = curve_of(bench)
    assert curve is not None and set(curve.left_out) == {"ladder_4", "ladder_5"}
    assert any("ladder_4" in sentence and "no q_diffusion" in sentence for sentence in curve.sentences)
    assert any("ladder_5" in sentence and "disparity" in sentence for sentence in curve.sentences)


def test_disparity_is_the_geometric_mean_over_the_layers_that_read_a_skip(bench):
    found = diagnosis()
    found["layers"]["skip"] = [True, False, True]
    fill(bench, diagnosis=found)
    curve = curve_of(bench)
    assert curve is not None and curve.points[0].disparity == pytest.approx(math.sqrt(1.5 * 1.5 / 4))
    found["layers"]["skip"] = [False] * 3
    for model in DISPARITIES:  # other settings, so that these jobs stand alone
        bench.rung(model, "q_diffusion", 25.0, diagnosis=found, seed=1, config={"seed": 1})
        bench.rung(model, "scaling", 25.0, diagnosis=found, seed=1, config={"seed": 1})
    rows = [row for row in bench.results() if row.seed == 1]
    assert dose_curve(rows, FindingsReader(bench.root)) is None, "a model without skips has no such disparity"


def with_scaling(rung: str, **settings):
    method = RUNG_METHODS[rung]
    return {"method": method | {SCALING: method.get(SCALING, {}) | settings}}


def test_other_settings_make_a_curve_of_their_own(bench):
    """Bits, ranges, seed, budget and the settings of scaling are held equal; the curve of most models is shown."""
    fill(bench)
    bench.rung("ladder_4", "q_diffusion", 25.0)
    for changes in (
        {"ranges": "shared"},
        {"bits": "w4a6"},
        {"config": {"budget": {"name": "quick"}}},
        {"config": with_scaling("powers", ranges="deployed")},
        {"config": {"sampler": {"name": "ddim", "steps": 50, "eta": 0.0, "guidance": 1.0}}},
    ):
        bench.rung("ladder_4", "powers", 40.0, **changes)
    curve = curve_of(bench)
    assert curve is not None and "ladder_4" not in curve.models


def test_jobs_without_scales_belong_to_every_ladder(bench):
    fill(bench)
    for model in [*DISPARITIES, "ladder_4"]:
        if model == "ladder_4":
            bench.rung(model, "q_diffusion", 25.0)
        bench.rung(model, "scaling", 27.0, 3.0, config=with_scaling("scaling", ranges="deployed"))
    curve = curve_of(bench)
    assert curve is not None and len(curve.models) == 5, "the ladder with more models"
    assert {point.rung for point in curve.points} == {"reconstruction", "scaling"}


def test_values_of_other_protocols_are_not_subtracted(bench):
    fill(bench)
    bench.rung("ladder_4", "q_diffusion", 25.0)
    bench.rung("ladder_4", "scaling", 26.0, protocol={"n": 16, "chunk": 4})
    curve = curve_of(bench)
    assert curve is not None and "different protocols" in curve.left_out["ladder_4"]


STAGES = "[equivalent_scaling,weight_range,weight_reconstruction,activation_range]"


@pytest.mark.parametrize(
    ("overrides", "rung"),
    [
        (["method=q_diffusion"], "q_diffusion"),
        (
            ["method=q_diffusion", "method.stages=[weight_range,weight_reconstruction,activation_range]"],
            "reconstruction",
        ),
        (["method=dmq", "method.stages=[weight_range,weight_reconstruction,activation_range]"], "reconstruction"),
        (["method=dmq", f"method.stages={STAGES}", "method.equivalent_scaling.weighting=uniform"], "scaling"),
        (["method=dmq", f"method.stages={STAGES}", "method.equivalent_scaling.weighting=adaptive"], "weighting"),
        (["method=dmq", f"method.stages={STAGES}", "method.equivalent_scaling.weighting=linear"], None),
        (["method=dmq", "method.equivalent_scaling.weighting=adaptive"], "powers"),
        (["method=dmq", "method.equivalent_scaling.weighting=uniform"], None),
        (["method=dmq", "method.power_of_two_scaling.layers=all"], None),
        (["method=dmq", "method.power_of_two_scaling.selection=mse"], None),
        (["method=rtn"], None),
        (["method=fp"], None),
    ],
)
def test_a_rung_is_known_by_its_stages(overrides, rung):
    assert rung_of(make_job(compose(overrides)).config) == rung


def test_a_configuration_that_says_nothing_is_no_rung():
    assert rung_of({}) is None and rung_of({"method": {"stages": None}}) is None
