from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from dmqbench.eval import statistics
from dmqbench.eval.statistics import (
    Replicated,
    bootstrap_mean,
    even_groups,
    group_edges,
    jackknife,
    paired_difference,
    replicate_difference,
    share_interval,
    student_interval,
)

finite = st.floats(-1e6, 1e6).map(lambda value: round(value, 3))


def skewed(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(size=n)


def test_the_interval_is_scipys_bca_where_there_are_many_values():
    values = skewed(200)
    expected = scipy.stats.bootstrap((values,), np.mean, method="BCa", n_resamples=20_000, rng=1).confidence_interval
    ours = bootstrap_mean(values, resamples=20_000)
    width = expected.high - expected.low
    assert ours is not None
    # Two independent sets of resamples differ by about 2 % of the width.
    assert ours.low == pytest.approx(expected.low, abs=0.05 * width)
    assert ours.high == pytest.approx(expected.high, abs=0.05 * width)
    assert ours.high - values.mean() > values.mean() - ours.low  # skewed like the data


ERRORS = {
    "normal": (lambda rng, n: rng.normal(size=n), 0.0),
    "like-images": (lambda rng, n: rng.lognormal(0, 0.5, n), float(np.exp(0.125))),
    "exponential": (lambda rng, n: rng.exponential(size=n), 1.0),
}


@pytest.mark.parametrize("n", [64, 256])
@pytest.mark.parametrize(
    ("repetitions", "sigmas"), [(300, 3), pytest.param(3000, 2, marks=pytest.mark.slow)], ids=["fast", "thorough"]
)
@pytest.mark.parametrize(("draw", "truth"), ERRORS.values(), ids=ERRORS)
def test_the_interval_covers_the_mean_of_skewed_errors(draw, truth, n, repetitions, sigmas):
    rng = np.random.default_rng(0)
    intervals = [bootstrap_mean(draw(rng, n), resamples=500) for _ in range(repetitions)]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    tolerance = sigmas * (0.05 * 0.95 / repetitions) ** 0.5
    assert 0.93 - tolerance <= covered <= 0.97 + tolerance


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


def replicated(values: np.ndarray, groups: int, statistic=np.mean) -> Replicated:
    edges = group_edges(len(values), groups)
    without = [statistic(np.delete(values, slice(low, high))) for low, high in pairwise(edges)]
    pairs = [statistic(np.delete(values, slice(edges[i], edges[i + 2]))) for i in range(0, groups - groups % 2, 2)]
    return Replicated(float(statistic(values)), len(values), tuple(without), tuple(pairs) if groups % 2 == 0 else ())


@given(st.integers(2, 500), st.integers(2, 40))
def test_groups_are_consecutive_and_nearly_equal(n, groups):
    groups = min(n, groups)
    edges = group_edges(n, groups)
    assert (edges[0], edges[-1], len(edges)) == (0, n, groups + 1)
    assert np.ptp(np.diff(edges)) <= 1 and np.diff(edges).min() >= 1


def test_groups_that_go_by_pairs_are_even_and_have_two_samples():
    assert [even_groups(n) for n in (4, 8, 63, 64, 50_000)] == [2, 4, 30, 32, 32]
    assert even_groups(50_000, 16) == 16


@pytest.mark.parametrize("n", [64, 70], ids=["equal-groups", "unequal-groups"])
def test_jackknife_of_a_mean_is_students_interval_of_group_means(n):
    values = np.random.default_rng(0).normal(size=n)
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval()
    np.testing.assert_allclose(jackknife(replicated(values, n)).ci95, expected, rtol=1e-10)
    assert jackknife(replicated(values, 16)).debiased == pytest.approx(values.mean())  # a mean has no bias


def test_jackknife_turns_the_plug_in_variance_into_the_unbiased_one():
    values = skewed(64)
    assert jackknife(replicated(values, 64, np.var)).debiased == pytest.approx(values.var(ddof=1))


@pytest.mark.parametrize("groups", [16, 12], ids=["equal-groups", "unequal-groups"])
def test_jackknife_with_groups_removes_the_bias_in_the_mean(groups):
    samples = np.random.default_rng(0).normal(size=(300, 64))
    debiased = np.mean([jackknife(replicated(values, groups, np.var)).debiased for values in samples])
    unbiased = samples.var(axis=1, ddof=1).mean()
    assert debiased == pytest.approx(unbiased, abs=0.15 * (unbiased - samples.var(axis=1).mean()))


def squared_mean(samples: np.ndarray) -> float:
    return float(np.sum(samples.mean(axis=0) ** 2))


@pytest.mark.parametrize("n", [128, 140], ids=["equal-groups", "unequal-groups"])
def test_pairs_take_off_what_a_jackknife_counts_twice(n):
    # The square of a mean around zero is nothing but products of two samples: variance 2 d / n².
    rng = np.random.default_rng(0)
    draws = [rng.normal(size=(n, 20)) for _ in range(150)]
    edges = group_edges(n, 32)
    variances = []
    for draw in draws:
        without = [squared_mean(np.delete(draw, slice(low, high), axis=0)) for low, high in pairwise(edges)]
        pairs = [squared_mean(np.delete(draw, slice(edges[i], edges[i + 2]), axis=0)) for i in range(0, 32, 2)]
        both = [Replicated(squared_mean(draw), n, tuple(without), kept) for kept in ((), tuple(pairs))]
        variances.append([jackknife(one).variance for one in both])
    plain, corrected = np.mean(variances, axis=0) / (2 * 20 / n**2)
    assert plain == pytest.approx(2, abs=0.25)
    assert corrected == pytest.approx(1.1, abs=0.2)


def test_pairs_change_nothing_for_a_mean():
    statistic = replicated(skewed(64), 16)
    plain = Replicated(statistic.value, 64, statistic.replicates)
    assert jackknife(statistic).ci95 == pytest.approx(jackknife(plain).ci95)


def test_a_size_makes_the_interval_longer_above_and_matters_only_near_zero():
    statistic = replicated(skewed(64), 16)
    symmetric, near, far = (jackknife(statistic, size).ci95 for size in (None, statistic.value, 1e9))
    value = statistic.value
    assert symmetric.high - value == pytest.approx(value - symmetric.low)
    assert near.high - value > value - near.low > 0
    assert far == pytest.approx(symmetric)


def test_impossible_numbers_of_groups_are_refused():
    for groups in (1, 9):
        with pytest.raises(ValueError, match="groups must be between 2 and the 8 samples"):
            Replicated(0.0, 8, (0.0,) * groups)
    with pytest.raises(ValueError, match="8 groups make 4 pairs, got 3"):
        Replicated(0.0, 8, (0.0,) * 8, (0.0,) * 3)
    with pytest.raises(ValueError, match="8 groups of 8 samples against 4 of 8: they do not pair"):
        Replicated(0.0, 8, (0.0,) * 8) - Replicated(0.0, 8, (0.0,) * 4)


def test_the_difference_of_two_means_from_replicates_alone_is_students_paired_interval():
    rng = np.random.default_rng(0)
    b = rng.normal(size=64)
    a = b + rng.normal(0.3, 0.1, size=64)
    found = replicate_difference(replicated(a, 64), replicated(b, 64), higher_is_better=False)
    np.testing.assert_allclose(found.ci95, scipy.stats.ttest_rel(a, b).confidence_interval(), rtol=1e-9)
    assert (found.verdict, found.n, found.left_out) == ("worse", 64, 0)
    assert found.mean == pytest.approx(np.mean(a - b))
    opposite = replicate_difference(replicated(b, 64), replicated(a, 64), higher_is_better=False)
    assert (opposite.verdict, opposite.mean) == ("better", -found.mean)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.97, 1.0])
def test_the_interval_of_a_share_is_wilsons(share):
    found = share_interval(share, share * (1 - share) / 200, 200, groups=10_000)
    expected = scipy.stats.binomtest(int(200 * share), 200).proportion_ci(method="wilson")
    assert found == pytest.approx((expected.low, expected.high), abs=1e-4)
    wider = share_interval(share, 4 * max(share * (1 - share), 0.001) / 200, 200)
    assert 0 <= wider.low <= found.low + 1e-12 and found.high - 1e-12 <= wider.high <= 1


def test_students_interval_is_scipys():
    values = [1.0, 1.4, 0.7]
    assert student_interval(values) == pytest.approx(scipy.stats.ttest_1samp(values, 0).confidence_interval())
    assert student_interval([1.0]) is None
