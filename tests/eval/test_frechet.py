import numpy as np
import pytest
import torch
from cleanfid.fid import frechet_distance as cleanfid_distance
from examples import costly
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ortho_group
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from dmqbench.eval.frechet import Gaussian, TooFewSamples, fit_gaussian, frechet_distance, frechet_estimate
from dmqbench.eval.protocol import MetricUnavailable, Protocol
from dmqbench.eval.statistics import Replicated, jackknife


def features(n: int, d: int, seed: int) -> torch.Tensor:
    """Correlated features with a mean."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + torch.arange(d) / d


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return frechet_distance(fit_gaussian(a), fit_gaussian(b))


@pytest.mark.parametrize("d", [2, 5, 64])
def test_the_fit_and_the_distance_are_numpys_clean_fids_and_torch_fidelitys(d):
    a, b = features(300, d, 0), features(200, d, 1)
    gaussian = fit_gaussian(a)
    covariance = np.cov(a.numpy(), rowvar=False).reshape(d, d)
    np.testing.assert_allclose(gaussian.mean, a.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(gaussian.covariance, covariance, atol=1e-10)
    moments = [(x.numpy().mean(0), np.cov(x.numpy(), rowvar=False).reshape(d, d)) for x in (a, b)]
    assert distance(a, b) == pytest.approx(cleanfid_distance(*moments[0], *moments[1]), rel=1e-6)
    theirs = fid_statistics_to_metric(*(fid_features_to_statistics(x) for x in (a, b)), verbose=False)
    assert distance(a, b) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)


@given(st.lists(st.tuples(*[st.floats(0, 100)] * 4), min_size=1, max_size=8))
def test_diagonal_covariances_have_a_closed_form(entries):
    m1, m2, v1, v2 = (torch.tensor(column, dtype=torch.float64) for column in zip(*entries, strict=True))
    expected = float((m1 - m2).square().sum() + (v1.sqrt() - v2.sqrt()).square().sum())
    assert frechet_distance(Gaussian(m1, v1.diag()), Gaussian(m2, v2.diag())) == pytest.approx(
        expected, rel=1e-6, abs=1e-6
    )


def test_rank_deficient_covariances_give_a_real_exact_distance():
    # Two lines in space: tr sqrt(A^½ B A^½) = |cos| · length · length.
    u, v = torch.zeros(50, dtype=torch.float64), torch.zeros(50, dtype=torch.float64)
    u[0], v[0], v[1] = 3.0, 1.2, 1.6
    zero = torch.zeros(50, dtype=torch.float64)
    found = frechet_distance(Gaussian(zero, torch.outer(u, u)), Gaussian(zero, torch.outer(v, v)))
    assert found == pytest.approx(9 + 4 - 2 * abs(float(u @ v)), abs=1e-9)


@costly(25)
@given(st.integers(0, 1000), st.integers(1, 12), st.floats(1e-3, 1e3))
def test_laws_of_the_distance(seed, d, scale):
    a, b = features(2 * d + 20, d, seed) * scale, features(2 * d + 30, d, seed + 1) * scale
    size = scale**2 * d
    assert distance(a, a) == 0
    assert distance(a, b) > 1e-9 * size
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-9)
    rotation = torch.from_numpy(ortho_group.rvs(d, random_state=seed)) if d > 1 else -torch.eye(1, dtype=torch.float64)
    assert distance(a @ rotation, b @ rotation) == pytest.approx(distance(a, b), rel=1e-8)
    assert distance(a, a + 2 * scale) == pytest.approx(4 * scale**2 * d, rel=1e-8)


def test_constant_and_duplicated_features_do_not_break_it():
    a, b = features(60, 4, 0), features(60, 4, 1)
    padded = [torch.cat([x, x, torch.full((60, 1), 7.0)], dim=1).double() for x in (a, b)]
    assert distance(*padded) == pytest.approx(2 * distance(a, b), rel=1e-8)


def test_too_few_samples_are_unavailable_with_the_number_needed():
    with pytest.raises(TooFewSamples, match="at least 16 samples, got 15") as error:
        frechet_estimate(features(15, 8, 0), features(64, 8, 1))
    assert (error.value.n, error.value.needed) == (15, 16)
    assert isinstance(error.value, MetricUnavailable)
    with pytest.raises(TooFewSamples):
        frechet_estimate(features(64, 8, 0), features(15, 8, 1))
    assert frechet_estimate(features(16, 8, 0), features(16, 8, 1), paired=True).n == 16
    assert frechet_estimate(features(8, 1, 0), features(8, 1, 1)).n == 8


GAUSSIAN = Gaussian(torch.zeros(4), torch.eye(4))


@pytest.mark.parametrize(
    ("a", "b", "paired", "said"),
    [
        (features(64, 5, 0), GAUSSIAN, False, r"5 dimensions needs a mean \[5\]"),
        (features(64, 4, 0), GAUSSIAN, True, "no rows that could pair"),
        (features(64, 4, 0), Gaussian(torch.full((4,), float("inf")), torch.eye(4)), False, "infinity"),
        (features(64, 4, 0), Gaussian(torch.zeros(4), torch.ones(4, 4).triu()), False, "not symmetric"),
    ],
    ids=["statistics", "paired-statistics", "infinite", "lopsided"],
)
def test_statistics_that_do_not_compare_are_refused(a, b, paired, said):
    with pytest.raises(ValueError, match=said) as error:
        frechet_estimate(a, b, paired)
    assert "\n" not in str(error.value)


def test_odd_numbers_of_groups_are_refused():
    with pytest.raises(ValueError, match="even number of groups, got 7"):
        frechet_estimate(features(64, 4, 0), GAUSSIAN, groups=7)


@pytest.mark.parametrize("paired", [True, False], ids=["paired", "fixed-reference"])
def test_deleting_groups_is_what_brute_force_says(paired):
    a, b = features(70, 4, 0), features(70, 4, 1)
    found = frechet_estimate(a, b, paired, groups=10)
    kept = [torch.arange(70) // 7 != group for group in range(10)]
    without = [distance(a[rows], b[rows] if paired else b) for rows in kept]
    pairs = [kept[group] & kept[group + 1] for group in range(0, 10, 2)]
    without_pairs = [distance(a[rows], b[rows] if paired else b) for rows in pairs]
    assert found.value == pytest.approx(distance(a, b), rel=1e-9)
    np.testing.assert_allclose(found.replicates, without, rtol=1e-9)
    np.testing.assert_allclose(found.extra["pairs"], without_pairs, rtol=1e-9)
    assert found.extra["debiased"] == pytest.approx(10 * found.value - 9 * np.mean(without), rel=1e-6)


def test_a_reference_of_statistics_is_one_of_features():
    a, b = features(100, 6, 0), features(90, 6, 1)
    ours, theirs = frechet_estimate(a, b), frechet_estimate(a.float(), fit_gaussian(b))
    assert theirs.value == pytest.approx(ours.value, rel=1e-6)
    np.testing.assert_allclose(theirs.replicates, ours.replicates, rtol=1e-6)
    assert ours.ci95 is not None and ours.ci95.low < ours.value < ours.ci95.high


def test_many_dimensions_take_fewer_groups():
    assert len(frechet_estimate(features(520, 256, 0), features(520, 256, 1)).replicates) == 16
    assert len(frechet_estimate(features(520, 4, 0), features(520, 4, 1)).replicates) == 32


def test_identical_sets_are_at_zero_with_certainty():
    a = features(64, 4, 0)
    found = frechet_estimate(a, a.clone(), paired=True)
    assert (found.value, found.ci95) == (0, (0, 0))
    assert set(found.replicates) == {0}


class Study:
    """Gaussian samples whose distance to a reference is estimated again and again.

    The reference is the exact standard Gaussian (``rows`` = 0), a fixed draw of ``rows``, or, paired, the draw from
    which the samples are made by adding noise.
    """

    def __init__(self, n: int, d: int, shift: float, scale: float, noise: float = 0, rows: int = 0, paired=False):
        self.n, self.d, self.shift, self.scale, self.noise, self.paired = n, d, shift, scale, noise, paired
        self.generator = torch.Generator().manual_seed(5)
        exact = Gaussian(torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64))
        self.fixed = self.normal(rows) if rows else exact

    def normal(self, rows: int) -> torch.Tensor:
        return torch.randn(rows, self.d, generator=self.generator, dtype=torch.float64)

    def draw(self, base: torch.Tensor) -> torch.Tensor:
        return base * self.scale + self.shift + self.noise * self.normal(self.n)

    def one(self) -> tuple[torch.Tensor, torch.Tensor | Gaussian]:
        base = self.normal(self.n)
        return self.draw(base), base if self.paired else self.fixed

    def expectation(self, repetitions: int) -> tuple[float, float]:
        """Mean and variance of the estimate at this n."""
        fixed = self.fixed if isinstance(self.fixed, Gaussian) else fit_gaussian(self.fixed)
        pairs = (self.one() for _ in range(repetitions))
        values = [frechet_distance(fit_gaussian(a), fit_gaussian(b) if self.paired else fixed) for a, b in pairs]
        return float(np.mean(values)), float(np.var(values))

    def pairs(self, other: "Study") -> list[tuple[torch.Tensor, torch.Tensor | Gaussian]]:
        """Samples of two models with the same noise, each with its reference."""
        base = self.normal(self.n)
        return [(model.draw(base), base if self.paired else self.fixed) for model in (self, other)]

    def plain_difference(self, other: "Study") -> float:
        """Of the distances alone, without their replicates, which take fifty times as long."""
        ours, theirs = (
            frechet_distance(fit_gaussian(a), b if isinstance(b, Gaussian) else fit_gaussian(b))
            for a, b in self.pairs(other)
        )
        return ours - theirs

    def difference(self, other: "Study") -> tuple[Replicated, Replicated]:
        """Distances of two models with the same noise."""
        found = [frechet_estimate(a, b, self.paired) for a, b in self.pairs(other)]
        return tuple(Replicated(one.value, one.n, one.replicates, tuple(one.extra["pairs"])) for one in found)


STUDIES = {
    "equal": {"n": 256, "d": 8, "shift": 0, "scale": 1},
    "equal-to-a-draw": {"n": 256, "d": 8, "shift": 0, "scale": 1, "rows": 256},
    "two-dimensions": {"n": 512, "d": 2, "shift": 0, "scale": 1},
    "near": {"n": 256, "d": 8, "shift": 0.1, "scale": 1},
    "far": {"n": 256, "d": 16, "shift": 0.3, "scale": 1.2, "rows": 256},
    "fewest-samples": {"n": 64, "d": 32, "shift": 0, "scale": 1},
    "paired-equal": {"n": 256, "d": 8, "shift": 0, "scale": 0.8, "noise": 0.6, "paired": True},
    "paired-near": {"n": 256, "d": 16, "shift": 0, "scale": 1, "noise": 0.05, "paired": True},
    "paired-far": {"n": 256, "d": 8, "shift": 0.1, "scale": 1.1, "noise": 0.1, "paired": True},
}
EVERY_STUDY = pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)


def scatter(repetitions: int, sigmas: float) -> float:
    return sigmas * (0.05 * 0.95 / repetitions) ** 0.5


# A naive bootstrap of this estimate covers nothing at all: its interval lies above the estimate.
@EVERY_STUDY
def test_the_interval_covers_the_expectation_at_this_n(study):
    repetitions = 60
    work = Study(**study)
    expectation, variance = work.expectation(500)
    found = [frechet_estimate(*work.one(), work.paired) for _ in range(repetitions)]
    covered = np.mean([one.ci95.low <= expectation <= one.ci95.high for one in found])
    assert covered >= 0.93 - scatter(repetitions, 3)
    # Sixty repetitions cannot see that an interval is too wide; its variance can: a plain jackknife has twice it
    # where the distributions are equal.
    estimated = [jackknife(Replicated(one.value, one.n, one.replicates, tuple(one.extra["pairs"]))).variance
                 for one in found]  # fmt: skip
    assert 0.7 < np.mean(estimated) / variance < 1.5


@pytest.mark.slow
@pytest.mark.timeout(3600)
@EVERY_STUDY
def test_coverage_is_between_93_and_97_percent(study):
    repetitions = 2500
    work = Study(**study)
    expectation, _ = work.expectation(5000)
    found = [frechet_estimate(*work.one(), work.paired).ci95 for _ in range(repetitions)]
    covered = np.mean([interval.low <= expectation <= interval.high for interval in found])
    assert 0.93 - scatter(repetitions, 2) <= covered <= 0.97 + scatter(repetitions, 2)


DIFFERENCES = {
    "near": ({"n": 256, "d": 8, "shift": 0, "scale": 1.02, "noise": 0.1}, {"scale": 1.01, "noise": 0.15}),
    "same": ({"n": 256, "d": 16, "shift": 0, "scale": 1, "noise": 0.1, "rows": 512}, {}),
    "far": ({"n": 256, "d": 16, "shift": 0.2, "scale": 1.1, "noise": 0.1, "rows": 256}, {"shift": 0.3, "noise": 0.2}),
    "paired-same": ({"n": 256, "d": 16, "shift": 0, "scale": 1, "noise": 0.1, "paired": True}, {}),
    "paired-far": (
        {"n": 256, "d": 16, "shift": 0.2, "scale": 1.1, "noise": 0.1, "paired": True},
        {"shift": 0.3, "scale": 1, "noise": 0.2},
    ),
}


@pytest.mark.parametrize(
    ("repetitions", "sigmas"), [(30, 3), pytest.param(1500, 2, marks=pytest.mark.slow)], ids=["fast", "thorough"]
)
@pytest.mark.parametrize("studies", DIFFERENCES.values(), ids=DIFFERENCES)
@pytest.mark.timeout(3600)
def test_the_interval_of_a_difference_covers_it(studies, repetitions, sigmas):
    first, changes = studies
    a, b = Study(**first), Study(**first | changes)
    b.generator = a.generator
    found = [a.difference(b) for _ in range(repetitions)]
    more = [a.plain_difference(b) for _ in range(repetitions)]
    expectation = np.mean([*(ours.value - theirs.value for ours, theirs in found), *more])
    intervals = [jackknife(ours - theirs).ci95 for ours, theirs in found]
    covered = np.mean([interval.low <= expectation <= interval.high for interval in intervals])
    assert 0.93 - scatter(repetitions, sigmas) <= covered <= 0.97 + scatter(repetitions, sigmas)


def test_debiasing_removes_most_of_the_bias():
    work = Study(256, 16, 0.3, 1.2, rows=256)
    eye = torch.eye(16, dtype=torch.float64)
    truth = frechet_distance(
        Gaussian(torch.full((16,), 0.3, dtype=torch.float64), eye * 1.44), fit_gaussian(work.fixed)
    )
    found = [frechet_estimate(*work.one()) for _ in range(100)]
    plug_in, debiased = np.mean([(one.value, one.extra["debiased"]) for one in found], axis=0)
    assert abs(debiased - truth) < 0.2 * abs(plug_in - truth)


def test_a_measurement_carries_n_in_its_protocol():
    estimate = frechet_estimate(features(64, 4, 0), features(64, 4, 1))
    entries = {
        **{"metric": "fd_digits", "version": 1, "tool": "dmqbench", "chunk": 32, "engine": "simulate"},
        **{"rounding": "uint8", "seed": 0, "sampler": "ddim", "timesteps": (1,), "eta": 0.0, "guidance": 1.0},
    }
    measurement = estimate.measurement(Protocol(n=64, **entries), higher_is_better=False)
    assert measurement.value == estimate.value
    assert measurement.extra["replicates"] == list(estimate.replicates)
    assert measurement.extra["debiased"] == estimate.extra["debiased"]
    with pytest.raises(ValueError, match="64 samples"):
        estimate.measurement(Protocol(n=65, **entries), higher_is_better=False)
