"""Ablations of calibration over several steps: which jobs belong to one curve, and what is said of them."""

import math
from typing import Any

import pytest
from handmade_findings import TRAJECTORY, FindingsBench
from scipy import stats

from dmqbench.config.compose import compose
from dmqbench.config.job import make_job
from dmqbench.results.studies.findings import FindingsReader
from dmqbench.results.studies.settings import told_apart
from dmqbench.results.studies.trajectory_ablation import GRADIENTS, MAX_CURVES, Ablation, ablation


@pytest.fixture
def bench(tmp_path) -> FindingsBench:
    return FindingsBench(tmp_path / "runs")


def found(bench: FindingsBench, varied) -> Ablation | None:
    return ablation(bench.results(), FindingsReader(bench.root), varied)


def by_horizon(bench: FindingsBench) -> Ablation:
    one = found(bench, "horizon")
    assert one is not None
    return one


def by_gradient(bench: FindingsBench) -> Ablation:
    one = found(bench, "gradient")
    assert one is not None
    return one


def test_jobs_that_differ_in_the_horizon_alone_are_one_curve(bench):
    bench.trial(None, psnr=28.0)
    for horizon, gain in ((10, 3.0), (1, 1.0), (2, 1.5)):
        bench.trial(horizon, psnr=28.0 + gain, found={"calls": 20, "cosine": 1 / horizon, "ratio": float(horizon)})
    one = by_horizon(bench)
    [curve] = one.curves
    assert one.places == [1, 2, 10] and one.compared
    assert [one.gain(trial) for trial in curve.trials] == pytest.approx([1.0, 1.5, 3.0])
    assert [trial.cosine for trial in curve.trials] == pytest.approx([1.0, 0.5, 0.1])
    assert [trial.ratio for trial in curve.trials] == pytest.approx([1.0, 2.0, 10.0])
    assert [one.ends(trial) for trial in curve.trials] == [
        pytest.approx((gain, gain), abs=1e-9) for gain in (1.0, 1.5, 3.0)
    ], "equal per image"
    assert found(bench, "gradient") is None


def test_the_error_is_the_geometric_mean_over_groups(bench):
    for horizon in (1, 2):
        bench.trial(horizon, found={"factor": 0.3})
    [curve] = by_horizon(bench).curves
    assert [trial.error for trial in curve.trials] == pytest.approx([math.sqrt(0.3 * 0.6)] * 2)


def test_a_group_without_error_and_a_gradient_of_zero_are_left_out(bench):
    for horizon in (1, 2):
        bench.trial(horizon, found={"factor": 0.0, "cosine": None, "ratio": None})
    for trial in by_horizon(bench).curves[0].trials:
        assert (trial.error, trial.cosine, trial.ratio) == (None, None, None)


def test_gradients_stand_in_their_order_and_the_paper_s_is_compared_with_the_exact_one(bench):
    for gradient, psnr in (("linear", 29.0), ("replayed", 31.0), ("identity", 30.5), ("independent", 30.0)):
        bench.trial(2, gradient, psnr)
    one = by_gradient(bench)
    assert one.places == ["independent", "replayed", "identity", "linear"]
    assert list(one.places) == [name for name in GRADIENTS if name in one.places]
    first = one.curves[0].trials[0]
    assert not one.compared and one.gain(first) == first.value == pytest.approx(30.1, abs=0.05), "PSNR itself"
    gain = one.gain(first) or 0.0
    assert one.ends(first) == pytest.approx((gain - 0.1, gain + 0.1)), "the interval of the result"
    [said] = [sentence for sentence in one.sentences if "identity against replayed" in sentence]
    assert "-0.5" in said and said.endswith("worse")
    assert found(bench, "horizon") is None


def test_other_settings_are_other_curves_and_named(bench):
    for bits in ("w4a6", "w3a6"):
        bench.trial(None, psnr=28.0, bits=bits)
        for horizon in (1, 2):
            bench.trial(horizon, psnr=29.0, bits=bits)
    bench.trial(5, own={"start": "quantized"})
    bench.trial(5, own={"scale_travel": 0.1})
    bench.trial(5, ranges="shared")
    bench.trial(5, config={"budget": {"name": "quick"}})
    bench.trial(5, seed=1, config={"seed": 1})
    one = by_horizon(bench)
    assert [curve.name for curve in one.curves] == ["w4a6", "w3a6"] and one.places == [1, 2]
    assert one.setting == "digits, ranges group5, budget ladder, seed 0, start fp, recipe scales, gradient identity"
    for curve in one.curves:
        assert [one.gain(trial) for trial in curve.trials] == pytest.approx([1.0, 1.0]), "each has its own un-tuned job"


def test_an_untuned_job_of_other_settings_or_another_protocol_is_not_subtracted(bench):
    bench.trial(None, ranges="shared")
    bench.trial(None, protocol={"n": 16, "chunk": 4})
    for horizon in (1, 2):
        bench.trial(horizon)
    assert not by_horizon(bench).compared


def test_with_one_untuned_job_missing_values_are_shown_for_all(bench):
    bench.trial(None, psnr=28.0)
    for bits in ("w4a6", "w3a6"):
        for horizon in (1, 2):
            bench.trial(horizon, psnr=29.0, bits=bits)
    one = by_horizon(bench)
    assert not one.compared and all(gain is not None and gain > 28.5 for gain in map(one.gain, one.curves[0].trials))


def test_whether_psnr_follows_the_horizon_is_said_with_its_interval(bench):
    gains = {1: 0.3, 2: 1.1, 4: 1.9, 8: 3.2, 16: 3.9}
    bench.trial(None, psnr=28.0)
    for horizon, gain in gains.items():
        bench.trial(horizon, psnr=28.0 + gain, found={"calls": 16})
    expected: Any = stats.pearsonr([math.log2(horizon) for horizon in gains], list(gains.values()))
    [said] = [sentence for sentence in by_horizon(bench).sentences if "Pearson" in sentence]
    assert f"Pearson {expected.statistic:.2f}" in said and "rises with" in said and "5 jobs" in said


def test_damaged_and_missing_findings_make_no_curve(bench):
    for horizon in (1, 2):
        bench.trial(horizon)
    for path in (bench.root / "quantized").glob("*/findings.json"):
        path.write_text("{}")
    assert found(bench, "horizon") is None


def test_curves_are_bounded_and_the_rest_counted(bench):
    for seed in range(MAX_CURVES + 2):
        for horizon in (1, 2):
            bench.trial(horizon, seed=seed, config={"seed": seed})
    one = by_horizon(bench)
    assert len(one.curves) == MAX_CURVES and one.left_out == 2 and "2 more curves" in one.sentences[-1]
    assert [curve.name for curve in one.curves] == [f"seed {seed}" for seed in range(MAX_CURVES)]


def test_the_configurations_of_real_jobs_are_told_apart(bench):
    """What composing gives: the un-tuned job still lists settings of the stage that it leaves out."""
    no = "method.stages=[weight_range,weight_reconstruction,activation_range]"
    for horizon, overrides in ((None, [no]), (1, []), (2, []), (4, ["bits.ranges=shared"])):
        own = [f"method.{TRAJECTORY}.horizon={horizon}"] if horizon else []
        job = make_job(compose(["method=accuquant", "bits=w4a6", *own, *overrides]))
        bench.trial(horizon, psnr=28.0 + (horizon or 0), config=dict(job.config), ranges=job.bits.ranges)
    one = by_horizon(bench)
    assert one.places == [1, 2] and one.compared


def test_what_sets_apart_is_told_in_words():
    parts = [{"model": "digits", "bits": "w4a6", "seed": "seed 0"}, {"model": "digits", "bits": "w3a6", "seed": ""}]
    assert told_apart(parts) == ({"model": "digits"}, ["w4a6, seed 0", "w3a6"])
    assert told_apart(parts[:1]) == (parts[0], [""])
