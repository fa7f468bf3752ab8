import cleanfid.fid
import numpy as np
import pytest
import torch
from examples import costly
from hypothesis import given
from hypothesis import strategies as st
from torch_fidelity.metric_kid import kid_features_to_metric
from torchmetrics.image.kid import poly_mmd

from dmqbench.eval import kid
from dmqbench.eval.kid import kid_estimate
from dmqbench.eval.protocol import MetricUnavailable
from dmqbench.eval.statistics import Replicated, jackknife


def normal(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force(x: torch.Tensor, y: torch.Tensor) -> float:
    """The definition, pair by pair."""

    def k(u, v):
        return (float(u @ v) / len(u) + 1) ** 3

    n, m = len(x), len(y)
    within_x = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_y - 2 * sum(k(u, v) for u in x for v in y) / (n * m)


def test_it_is_what_other_implementations_say_of_one_subset_of_everything():
    x, y = normal(200, 24, 0) * 1.2 + 0.1, normal(200, 24, 1)
    ours = kid_estimate(x, y).value
    theirs = kid_features_to_metric(x, y, kid_subsets=1, kid_subset_size=200, verbose=False)
    assert ours == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    assert ours == pytest.approx(float(poly_mmd(x, y)), rel=1e-9)
    clean = cleanfid.fid.kernel_distance(x.numpy(), y.numpy(), num_subsets=1, max_subset_size=200)
    assert ours == pytest.approx(clean, rel=1e-9)


def test_features_of_an_inception_keep_their_digits():
    x = torch.rand(64, 2048, generator=torch.Generator().manual_seed(0)) * 0.8
    y = x.roll(1, 0) + 0.01 * torch.rand(64, 2048, generator=torch.Generator().manual_seed(1))
    expected = kid_features_to_metric(x.double(), y.double(), kid_subsets=1, kid_subset_size=64, verbose=False)
    assert kid_estimate(x, y).value == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-6)


def test_sets_of_different_size_are_the_definition():
    x, y = normal(17, 3, 0), normal(11, 3, 1) + 0.5
    assert kid_estimate(x, y).value == pytest.approx(brute_force(x, y), rel=1e-10)


def test_point_masses_have_a_closed_form():
    x, y = torch.full((10, 1), 2.0), torch.full((20, 1), -1.0)
    # k(2, 2) + k(−1, −1) − 2 k(2, −1) = 125 + 8 + 2.
    assert kid_estimate(x, y).value == pytest.approx(135)


def test_the_mean_over_samples_is_the_distance_of_the_distributions():
    # In one dimension the kernel is Σ binomial(3, p) (xy)^p, so the distance is 3 δ1² + 3 δ2² + δ3² of the moments.
    shift = 0.4
    moments = (shift, shift**2, 3 * shift + shift**3)
    truth = 3 * moments[0] ** 2 + 3 * moments[1] ** 2 + moments[2] ** 2
    values = [kid_estimate(normal(64, 1, seed) + shift, normal(64, 1, 1000 + seed)).value for seed in range(300)]
    assert np.mean(values) == pytest.approx(truth, abs=4 * np.std(values) / 17)
    equal = [kid_estimate(normal(64, 1, seed), normal(64, 1, 1000 + seed)).value for seed in range(300)]
    assert np.mean(equal) == pytest.approx(0, abs=4 * np.std(equal) / 17)
    assert min(equal) < 0


@costly(20)
@given(st.integers(0, 1000), st.integers(1, 6))
def test_laws(seed, d):
    x, y = normal(20, d, seed), normal(24, d, seed + 1) * 1.5
    value = kid_estimate(x, y).value
    assert kid_estimate(y, x).value == pytest.approx(value, rel=1e-9, abs=1e-12)
    assert kid_estimate(x.flip(0), y).value == pytest.approx(value, rel=1e-9, abs=1e-12)
    rotation = torch.linalg.qr(normal(d, d, seed + 2)).Q
    assert kid_estimate(x @ rotation, y @ rotation).value == pytest.approx(value, rel=1e-7, abs=1e-10)


@pytest.mark.parametrize("paired", [True, False], ids=["paired", "fixed-reference"])
def test_block_sums_give_exact_replicates(paired, monkeypatch):
    monkeypatch.setattr(kid, "_ROWS_AT_ONCE", 3)
    x, y = normal(40, 4, 0), normal(40 if paired else 33, 4, 1)
    found = kid_estimate(x, y, paired)
    groups = len(found.replicates)
    assert groups == 20

    def without(*deleted: int) -> float:
        kept = ~torch.isin(torch.arange(40) // 2, torch.tensor(deleted))
        return brute_force(x[kept], y[kept] if paired else y)

    for group in (0, 7, 19):
        assert found.replicates[group] == pytest.approx(without(group), rel=1e-9)
    assert found.extra["pairs"][3] == pytest.approx(without(6, 7), rel=1e-9)


def test_too_few_samples_are_unavailable():
    with pytest.raises(MetricUnavailable, match="at least 8 features, got 7"):
        kid_estimate(normal(7, 3, 0), normal(9, 3, 1))


def remembering(block_sums):
    """Sums over a fixed reference, computed once: only samples differ between repetitions."""
    known = {}

    def sums(a, a_edges, b, b_edges):
        if a is not b or len(a_edges) > 2:
            return block_sums(a, a_edges, b, b_edges)
        if a not in known:
            known[a] = block_sums(a, a_edges, b, b_edges)
        return known[a]

    return sums


STUDIES = {
    "equal": (0.0, 256, 2000),
    "near": (0.1, 256, 256),
    "far": (0.4, 256, 256),
    "paired-equal": (0.0, 256, None),
    "paired-far": (0.3, 256, None),
}


@pytest.mark.parametrize(
    ("repetitions", "sigmas"), [(100, 3), pytest.param(1500, 2, marks=pytest.mark.slow)], ids=["fast", "thorough"]
)
@pytest.mark.parametrize(("shift", "n", "rows"), STUDIES.values(), ids=STUDIES)
@pytest.mark.timeout(3600)
def test_the_interval_covers_the_expectation(shift, n, rows, repetitions, sigmas, monkeypatch):
    monkeypatch.setattr(kid, "_block_sums", remembering(kid._block_sums))
    generator = torch.Generator().manual_seed(3)
    d = 8
    fixed = None if rows is None else torch.randn(rows, d, generator=generator, dtype=torch.float64)

    def estimate():
        base = torch.randn(n, d, generator=generator, dtype=torch.float64)
        noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
        return kid_estimate(0.8 * base + 0.6 * noise + shift, base if fixed is None else fixed, fixed is None)

    found = [estimate() for _ in range(repetitions)]
    values = [one.value for one in found] + [estimate().value for _ in range(repetitions)]
    expectation, variance = np.mean(values), np.var(values)
    covered = np.mean([one.ci95.low <= expectation <= one.ci95.high for one in found])
    tolerance = sigmas * (0.05 * 0.95 / repetitions) ** 0.5
    assert 0.93 - tolerance <= covered <= 0.97 + tolerance
    estimated = [jackknife(Replicated(one.value, one.n, one.replicates, tuple(one.extra["pairs"]))).variance
                 for one in found]  # fmt: skip
    assert 0.65 < np.mean(estimated) / variance < 1.5
