import numpy as np
import pytest
import torch
from cleanfid.fid import frechet_distance as cleanfid_distance
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group

from dmqbench.eval.distribution import (
    Extractor,
    Gaussian,
    TooFewSamples,
    extract,
    fit_gaussian,
    frechet_distance,
    frechet_with_interval,
    metric_name,
)
from dmqbench.eval.protocol import MetricUnavailable, Protocol
from dmqbench.images import ImageError, to_signed


def features(n: int, d: int, seed: int) -> torch.Tensor:
    """Correlated features with a mean."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + torch.arange(d) / d


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return frechet_distance(fit_gaussian(a), fit_gaussian(b))


@pytest.mark.parametrize("d", [2, 5, 64])
def test_the_fit_and_the_distance_are_numpys_and_clean_fids(d):
    a, b = features(300, d, 0), features(200, d, 1)
    gaussian = fit_gaussian(a)
    covariance = np.cov(a.numpy(), rowvar=False).reshape(d, d)
    np.testing.assert_allclose(gaussian.mean, a.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(gaussian.covariance, covariance, atol=1e-10)
    moments = [(x.numpy().mean(0), np.cov(x.numpy(), rowvar=False).reshape(d, d)) for x in (a, b)]
    expected = cleanfid_distance(*moments[0], *moments[1])
    assert distance(a, b) == pytest.approx(expected, rel=1e-6)


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


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 12), st.floats(1e-3, 1e3))
def test_laws_of_the_distance(seed, d, scale):
    a, b = features(2 * d + 20, d, seed) * scale, features(2 * d + 30, d, seed + 1) * scale
    size = scale**2 * d
    assert distance(a, a) == pytest.approx(0, abs=1e-9 * size)
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
        frechet_with_interval(features(15, 8, 0), features(64, 8, 1), paired=False)
    assert (error.value.n, error.value.needed) == (15, 16)
    assert isinstance(error.value, MetricUnavailable)
    with pytest.raises(TooFewSamples):
        frechet_with_interval(features(64, 8, 0), features(15, 8, 1), paired=False)


@pytest.mark.parametrize(
    ("a", "b", "paired", "said"),
    [
        (torch.full((64, 4), float("nan")), features(64, 4, 0), False, "NaN"),
        (features(64, 4, 0), features(64, 5, 0), False, "dimensions"),
        (features(64, 4, 0), features(65, 4, 0), True, "same rows"),
        (torch.zeros(64), features(64, 4, 0), False, "N×d"),
    ],
    ids=["nan", "dimensions", "rows", "shape"],
)
def test_features_that_do_not_compare_are_refused(a, b, paired, said):
    with pytest.raises(ValueError, match=said):
        frechet_with_interval(a, b, paired)


@pytest.mark.parametrize("paired", [True, False], ids=["paired", "fixed-reference"])
def test_deleting_groups_is_what_brute_force_says(paired):
    a, b = features(70, 4, 0), features(70, 4, 1)
    found = frechet_with_interval(a, b, paired, groups=70)
    kept = [torch.arange(70) != row for row in range(70)]
    replicates = torch.tensor([distance(a[rows], b[rows] if paired else b) for rows in kept])
    assert found.value == pytest.approx(distance(a, b), rel=1e-9)
    assert found.debiased == pytest.approx(70 * found.value - 69 * float(replicates.mean()), rel=1e-5)
    half = 1.99495 * float(np.sqrt(69 / 70 * replicates.sub(replicates.mean()).square().sum()))  # t(69), 97.5 %
    assert found.ci95.high - found.value == pytest.approx(half, rel=1e-4)


# A naive bootstrap of this estimate covers nothing at all: its interval lies above the estimate.
@pytest.mark.parametrize(
    ("d", "paired", "shift", "noise"),
    [(8, True, 0.1, 0.1), (16, True, 0.0, 0.05), (8, False, 0.0, 0.0), (16, False, 0.3, 0.2)],
    ids=["paired-8", "paired-16", "equal-distributions-8", "shifted-16"],
)
def test_the_interval_covers_the_expectation_at_this_n(d, paired, shift, noise):
    n, repetitions = 256, 200
    generator = torch.Generator().manual_seed(5)
    fixed = torch.randn(n, d, generator=generator, dtype=torch.float64)

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        base = torch.randn(n, d, generator=generator, dtype=torch.float64)
        moved = base * (1 + noise) + shift
        if paired:
            moved = moved + noise * torch.randn(n, d, generator=generator, dtype=torch.float64)
        return moved, base if paired else fixed

    expectation = np.mean([distance(*draw()) for _ in range(1000)])
    found = [frechet_with_interval(*draw(), paired) for _ in range(repetitions)]
    covered = np.mean([estimate.ci95.low <= expectation <= estimate.ci95.high for estimate in found])
    # Nominal 95 %; 200 repetitions alone scatter by 1.5 %.
    assert 0.90 <= covered <= 0.99
    if paired:
        return
    reference = fit_gaussian(fixed)
    eye = torch.eye(d, dtype=torch.float64)
    truth = frechet_distance(Gaussian(torch.full((d,), shift, dtype=torch.float64), eye * (1 + noise) ** 2), reference)
    plug_in, debiased = (np.mean([getattr(one, name) for one in found]) for name in ("value", "debiased"))
    assert abs(debiased - truth) < 0.2 * abs(plug_in - truth)


def test_metric_names_are_never_fid():
    assert [metric_name("digits", against) for against in ("dataset", "fp")] == [
        "fd_digits",
        "fd2fp32_digits",
    ]


def test_measurement_carries_n_in_its_protocol():
    estimate = frechet_with_interval(features(64, 4, 0), features(64, 4, 1), paired=False)
    shared = {
        "rounding": "uint8",
        "seed": 0,
        "sampler": "ddim",
        "timesteps": (1,),
        "eta": 0.0,
        "guidance": 1.0,
    }
    entries = {
        "metric": "fd_digits",
        "version": 1,
        "tool": "dmqbench",
        "chunk": 32,
        "engine": "simulate",
    } | shared
    measurement = estimate.measurement(Protocol(n=64, **entries))
    assert measurement.value == estimate.value
    assert measurement.extra == {"debiased": estimate.debiased}
    assert measurement.higher_is_better is False
    with pytest.raises(ValueError, match="64 samples"):
        estimate.measurement(Protocol(n=65, **entries))


def test_extraction_converts_once_and_returns_doubles():
    images = torch.randint(0, 256, (130, 1, 4, 4), dtype=torch.uint8)
    extractor = Extractor("flat", "0", lambda batch: batch.flatten(1))
    found = extract(extractor, images)
    assert found.dtype == torch.float64
    assert torch.equal(found, to_signed(images).flatten(1).double())
    with pytest.raises(ImageError):
        extract(extractor, to_signed(images))
