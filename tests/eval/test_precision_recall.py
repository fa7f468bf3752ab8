import numpy as np
import pytest
import torch
from examples import costly
from hypothesis import given
from hypothesis import strategies as st
from torch_fidelity.metric_prc import prc_features_to_metric

from dmqbench.eval import precision_recall
from dmqbench.eval.precision_recall import precision_recall_estimates
from dmqbench.eval.protocol import MetricUnavailable


def normal(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covered(points: torch.Tensor, members: torch.Tensor, k: int = 3) -> float:
    """The definition, with loops."""
    radii = []
    for i, member in enumerate(members):
        others = torch.cat([members[:i], members[i + 1 :]])
        radii.append(float((others - member).norm(dim=1).sort().values[k - 1]))
    inside = [any(float((point - m).norm()) <= r for m, r in zip(members, radii, strict=True)) for point in points]
    return float(np.mean(inside))


def test_it_is_what_torch_fidelity_says():
    x, y = normal(300, 16, 0) * 1.1 + 0.2, normal(400, 16, 1)
    found = precision_recall_estimates(x, y)
    theirs = prc_features_to_metric(x, y, prc_neighborhood=3, prc_batch_size=128, save_cpu_ram=True, verbose=False)
    assert found.precision.value == pytest.approx(theirs["precision"], abs=1e-6)
    assert found.recall.value == pytest.approx(theirs["recall"], abs=1e-6)
    assert 0 < found.recall.value < 1 and 0 < found.precision.value < 1


@pytest.mark.parametrize("paired", [True, False], ids=["paired", "fixed-reference"])
@pytest.mark.parametrize("d", [1, 4])
def test_replicates_are_brute_forces(paired, d, monkeypatch):
    # Blocks of a few rows; one dimension has the neighbours of many points in one group.
    monkeypatch.setattr(precision_recall, "_DISTANCES_AT_ONCE", 300)
    x, y = normal(64, d, 0).sort(dim=0).values * 1.3, normal(64 if paired else 70, d, 1)
    found = precision_recall_estimates(x, y, paired)
    assert (found.precision.value, found.recall.value) == (covered(x, y), covered(y, x))
    for group in (0, 5, 17, 31):
        kept = torch.arange(64) // 2 != group
        theirs = y[kept] if paired else y
        assert found.precision.replicates[group] == pytest.approx(covered(x[kept], theirs), abs=1e-12)
        assert found.recall.replicates[group] == pytest.approx(covered(theirs, x[kept]), abs=1e-12)


@costly(20)
@given(st.integers(0, 1000), st.integers(1, 5), st.floats(1e-3, 1e3))
def test_laws(seed, d, scale):
    x, y = normal(64, d, seed), normal(70, d, seed + 1) + 0.5
    found, swapped = precision_recall_estimates(x, y), precision_recall_estimates(y, x)
    assert (found.precision.value, found.recall.value) == (swapped.recall.value, swapped.precision.value)
    scaled = precision_recall_estimates(x * scale + 7, y * scale + 7)
    assert (found.precision.value, found.recall.value) == (scaled.precision.value, scaled.recall.value)
    for estimate in found:
        assert 0 <= estimate.ci95.low <= estimate.value <= estimate.ci95.high <= 1


def test_a_set_covers_itself_and_nothing_far_away():
    x = normal(64, 8, 0)
    same, apart = precision_recall_estimates(x, x.clone(), paired=True), precision_recall_estimates(x, x + 100)
    assert (same.precision.value, same.recall.value) == (1, 1)
    assert (apart.precision.value, apart.recall.value) == (0, 0)
    # No variance is seen, and yet 64 samples leave room.
    assert same.precision.ci95.low < 0.97 and apart.recall.ci95.high > 0.03


def test_duplicates_have_balls_of_radius_zero_that_hold_themselves():
    x = normal(16, 500, 0).float().repeat(8, 1)
    assert precision_recall_estimates(x, x + 0).recall.value == 1
    assert precision_recall_estimates(x, x.roll(3, 0)).precision.value == 1
    assert precision_recall_estimates(x * 1.001, x).precision.value == 0


def test_the_interval_of_precision_covers_the_share():
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(100, 6, generator=generator)
    radii = torch.cdist(y.double(), y.double()).sort(dim=1).values[:, 3]  # the nearest is the member itself
    points = torch.randn(10_000, 6, generator=generator) * 1.2
    many = float((torch.cdist(points.double(), y.double()) <= radii).any(dim=1).double().mean())
    found = [precision_recall_estimates(torch.randn(64, 6, generator=generator) * 1.2, y) for _ in range(100)]
    hits = np.mean([one.precision.ci95.low <= many <= one.precision.ci95.high for one in found])
    assert hits >= 0.93 - 3 * (0.05 * 0.95 / 100) ** 0.5
    recalls = np.array([one.recall.value for one in found])
    hits = np.mean([one.recall.ci95.low <= recalls.mean() <= one.recall.ci95.high for one in found])
    assert hits >= 0.93 - 3 * (0.05 * 0.95 / 100) ** 0.5


def test_too_few_samples_are_unavailable():
    with pytest.raises(MetricUnavailable, match="at least 64 samples, got 63"):
        precision_recall_estimates(normal(63, 2, 0), normal(64, 2, 1))
    with pytest.raises(MetricUnavailable, match="at least 64 reference images, got 63"):
        precision_recall_estimates(normal(64, 2, 0), normal(63, 2, 1))
