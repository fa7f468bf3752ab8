import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from dmqbench.eval import statistics
from dmqbench.eval.statistics import bootstrap_mean, jackknife, paired_difference

finite = st.floats(-1e6, 1e6).map(lambda value: round(value, 3))


def skewed(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(size=n)


def test_the_interval_is_scipys_bca():
    values = skewed(200)
    expected = scipy.stats.bootstrap((values,), np.mean, method="BCa", n_resamples=20_000, rng=1).confidence_interval
    ours = bootstrap_mean(values, resamples=20_000)
    width = expected.high - expected.low
    assert ours is not None
    # Two independent sets of resamples differ by about 2 % of the width.
    assert ours.low == pytest.approx(expected.low, abs=0.05 * width)
    assert ours.high == pytest.approx(expected.high, abs=0.05 * width)
    assert ours.high - values.mean() > values.mean() - ours.low  # skewed like the data


def test_the_interval_covers_the_mean_of_skewed_errors():
    truth = float(np.exp(0.5))
    intervals = [bootstrap_mean(skewed(256, seed), resamples=500) for seed in range(300)]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    # A log-normal is harsher than image errors; a percentile interval covers less still.
    assert 0.89 <= covered <= 0.98


@given(st.lists(finite, min_size=2, max_size=20), st.integers(0, 5))
def test_the_interval_is_a_function_of_values_and_seed_within_the_data(values, seed):
    interval = bootstrap_mean(values, seed, resamples=50)
    assert interval == bootstrap_mean(values, seed, resamples=50)
    assert interval is not None
    slack = 1e-9 * max(1.0, *(abs(value) for value in values))
    assert min(values) - slack <= interval.low <= interval.high <= max(values) + slack


def test_drawing_in_parts_bounds_memory_and_is_complete(monkeypatch):
    monkeypatch.setattr(statistics, "_DRAWS_AT_ONCE", 1000)
    assert statistics._resampled_means(skewed(300), 0, 7).shape == (7,)


def test_degenerate_samples():
    assert bootstrap_mean([3.0]) is None
    assert bootstrap_mean([2.0, 2.0, 2.0]) == (2.0, 2.0)
    with pytest.raises(ValueError, match="finite"):
        bootstrap_mean([1.0, float("nan")])
    with pytest.raises(ValueError, match="shape"):
        bootstrap_mean(np.zeros((2, 2)))


def test_paired_difference_agrees_with_scipy():
    b = skewed(256)
    a = b + np.random.default_rng(1).normal(0.05, 0.2, 256)
    ours = paired_difference(a.tolist(), b.tolist(), higher_is_better=True)
    expected = scipy.stats.ttest_rel(a, b).confidence_interval()
    assert ours.ci95 is not None
    assert ours.mean == pytest.approx(np.mean(a - b))
    # Normal differences: the bootstrap and Student's interval agree to a few percent of the width.
    width = expected.high - expected.low
    assert ours.ci95.low == pytest.approx(expected.low, abs=0.08 * width)
    assert ours.ci95.high == pytest.approx(expected.high, abs=0.08 * width)
    assert (ours.n, ours.left_out) == (256, 0)


def test_pairing_finds_what_separate_intervals_hide():
    b = skewed(256)
    a = b + 0.01 + 0.02 * np.random.default_rng(2).normal(size=256)
    apart = [bootstrap_mean(values) for values in (a, b)]
    assert apart[0].low < apart[1].high  # the two intervals overlap
    assert paired_difference(a.tolist(), b.tolist(), higher_is_better=True).verdict == "better"


@given(st.lists(st.tuples(finite, finite), min_size=2, max_size=20), st.booleans())
def test_verdicts_swap_with_direction(pairs, higher):
    a, b = map(list, zip(*pairs, strict=True))
    verdict = paired_difference(a, b, higher).verdict
    opposite = {"better": "worse", "worse": "better", "cannot tell": "cannot tell"}
    assert paired_difference(a, b, not higher).verdict == opposite[verdict]


def test_identical_images_are_left_out_and_counted():
    difference = paired_difference([30.0, None, 31.0, 33.0], [29.0, 28.0, None, 31.0], higher_is_better=True)
    assert (difference.n, difference.left_out, difference.mean) == (2, 2, 1.5)
    nothing = paired_difference([None], [1.0], higher_is_better=True)
    assert (nothing.mean, nothing.ci95, nothing.n, nothing.verdict) == (None, None, 0, "cannot tell")
    assert paired_difference([1.0], [0.0], higher_is_better=True).verdict == "cannot tell"
    assert paired_difference([1.0, 2.0], [1.0, 2.0], higher_is_better=True).verdict == "cannot tell"


def test_lists_of_different_length_do_not_pair():
    with pytest.raises(ValueError, match="2 values against 1"):
        paired_difference([1.0, 2.0], [1.0], higher_is_better=True)


@pytest.mark.parametrize("n", [64, 70], ids=["equal-groups", "unequal-groups"])
def test_jackknife_of_a_mean_is_students_interval_of_group_means(n):
    values = np.random.default_rng(0).normal(size=n)
    result = jackknife(values.mean(), lambda members: np.delete(values, members).mean(), n, groups=n)
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval()
    np.testing.assert_allclose(result.ci95, expected, rtol=1e-10)
    coarse = jackknife(values.mean(), lambda members: np.delete(values, members).mean(), n, groups=16)
    assert coarse.debiased == pytest.approx(values.mean())  # a mean has no bias


def variance_jackknife(values: np.ndarray, groups: int) -> statistics.Jackknife:
    return jackknife(values.var(), lambda members: np.delete(values, members).var(), len(values), groups)


def test_jackknife_turns_the_plug_in_variance_into_the_unbiased_one():
    values = skewed(64)
    result = variance_jackknife(values, groups=64)
    assert result.debiased == pytest.approx(values.var(ddof=1))
    assert result.estimate == values.var()


@pytest.mark.parametrize("groups", [16, 12], ids=["equal-groups", "unequal-groups"])
def test_jackknife_with_groups_removes_the_bias_in_the_mean(groups):
    samples = np.random.default_rng(0).normal(size=(300, 64))
    debiased = np.mean([variance_jackknife(values, groups).debiased for values in samples])
    unbiased = samples.var(axis=1, ddof=1).mean()
    assert debiased == pytest.approx(unbiased, abs=0.15 * (unbiased - samples.var(axis=1).mean()))


def test_impossible_numbers_of_groups_are_refused():
    for groups in (1, 9):
        with pytest.raises(ValueError, match="groups must be between 2 and the 8 samples"):
            jackknife(0.0, lambda members: 0.0, 8, groups)
