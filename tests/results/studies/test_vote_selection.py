"""Vote against squared error over the samples: which jobs belong together, and the means over their layers."""

import math

import pytest
from handmade_findings import POWERS, RUNG_METHODS, FindingsBench, powers
from scipy import stats

from dmqbench.results.studies.findings import FindingsReader
from dmqbench.results.studies.vote_selection import selection_curves

ERRORS = {("vote", 64): 0.8, ("vote", 1024): 0.6, ("mse", 64): 0.9, ("mse", 1024): 0.5}


def job(bench: FindingsBench, selection: str, samples: int, found: dict, **config) -> str:
    method = RUNG_METHODS["powers"] | {POWERS: {"selection": selection, "samples": samples, "layers": "all"}}
    method |= {"variant": f"selection={selection}, samples={samples}"}
    return bench.made("dmq", "w4a4", 30.0, {POWERS: found}, config={"method": method, "seed": 0} | config)


@pytest.fixture
def bench(tmp_path) -> FindingsBench:
    return FindingsBench(tmp_path / "runs")


def fill(bench: FindingsBench, **config) -> dict[tuple[str, int], str]:
    return {place: job(bench, *place, powers(*place, factor=factor), **config) for place, factor in ERRORS.items()}


def curves_of(bench: FindingsBench):
    return selection_curves(bench.results(), FindingsReader(bench.root))


def test_curves_are_geometric_means_over_layers_by_samples_per_vote(bench):
    ids = fill(bench)
    curves = curves_of(bench)
    assert curves is not None and curves.layers == ("blocks.0.conv", "blocks.1.conv", "blocks.2.conv")
    for (selection, samples), error in ERRORS.items():
        assert curves.error[selection][samples / 4].value == pytest.approx(error), "four steps vote apart"
        assert curves.jobs[selection][samples / 4] == ids[selection, samples]
    assert curves.contrast[16].value == pytest.approx(0.9 / 0.8)
    assert curves.contrast[256].value == pytest.approx(0.5 / 0.6)
    assert curves.sentences[-1].startswith("256 samples: the error by mse is 0.833")


def test_the_contrast_pairs_layers(bench):
    """Layers differ far more than the selections: the interval of the ratio is that of paired logarithms."""
    ratios = (1.10, 1.06, 1.14)
    for selection, factors in (("vote", (0.1, 0.5, 0.9)), ("mse", (0.11, 0.53, 0.9 * 1.14))):
        for samples in (64, 128):
            found = powers(selection, samples)
            for layer, factor in zip(found["layers"].values(), factors, strict=True):
                layer["held_out_error"] = layer["held_out_error_before"] * factor
            job(bench, selection, samples, found)
    curves = curves_of(bench)
    assert curves is not None
    value, ends = curves.contrast[16]
    logs = [math.log(ratio) for ratio in ratios]
    low, high = stats.t.interval(0.95, 2, loc=sum(logs) / 3, scale=stats.sem(logs))
    assert value == pytest.approx(math.exp(sum(logs) / 3)) and ends is not None
    assert tuple(ends) == pytest.approx((math.exp(low), math.exp(high)))


def test_one_number_of_samples_is_no_curve(bench):
    job(bench, "vote", 64, powers("vote", 64))
    job(bench, "mse", 64, powers("mse", 64))
    assert curves_of(bench) is None


def test_jobs_of_other_settings_are_not_mixed_in(bench):
    fill(bench)
    job(bench, "vote", 128, powers("vote", 128, factor=0.1), seed=3)
    curves = curves_of(bench)
    assert curves is not None and list(curves.error["vote"]) == [16, 256] and curves.left_out == 0
    job(bench, "vote", 256, powers("vote", 256, factor=0.1), seed=3)
    curves = curves_of(bench)
    assert curves is not None and list(curves.error["vote"]) == [16, 256], "the larger set is shown"
    assert curves.left_out == 1 and "--sweep" in curves.sentences[-1]


def test_layers_without_an_error_and_layers_of_some_jobs_are_left_out(bench):
    fill(bench)
    found = powers("vote", 256)
    found["layers"]["blocks.0.conv"]["held_out_error"] = 0.0
    del found["layers"]["blocks.1.conv"]
    job(bench, "vote", 256, found)
    curves = curves_of(bench)
    assert curves is not None and curves.layers == ("blocks.2.conv",)
    assert curves.error["vote"][64].ci95 is None, "one layer has no interval"


def test_one_selection_alone_has_no_contrast(bench):
    for samples in (64, 128):
        job(bench, "vote", samples, powers("vote", samples))
    curves = curves_of(bench)
    assert curves is not None and curves.contrast == {} and list(curves.error) == ["vote"]
