import math

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric
from torchmetrics.image.inception import InceptionScore

from dmqbench.eval.inception_score import inception_score_estimate
from dmqbench.eval.protocol import MetricUnavailable


def logits(n: int, classes: int, sharpness: float, seed: int = 0) -> torch.Tensor:
    return sharpness * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [1000, 1234], ids=["equal-splits", "unequal-splits"])
def test_it_is_what_torch_fidelity_says(n):
    values = logits(n, 50, 3)
    theirs = isc_features_to_metric(values, splits=10, shuffle=False)
    found = inception_score_estimate(values)
    assert found.value == pytest.approx(theirs["inception_score_mean"], rel=1e-10)
    assert found.extra["std"] == pytest.approx(theirs["inception_score_std"], rel=1e-8)


def test_it_is_what_torchmetrics_says_of_one_order(monkeypatch):
    values = logits(1000, 20, 2).double()
    metric = InceptionScore(feature=torch.nn.Identity(), splits=10).set_dtype(torch.float64)
    metric.features = [values]
    monkeypatch.setattr(torch, "randperm", torch.arange)
    mean, _ = metric.compute()
    assert inception_score_estimate(values).value == pytest.approx(float(mean), rel=1e-10)


def test_closed_forms():
    certain = 1000 * torch.nn.functional.one_hot(torch.arange(2000) % 10).float()
    assert inception_score_estimate(certain).value == pytest.approx(10)
    undecided = torch.zeros(1000, 10)
    assert inception_score_estimate(undecided).value == pytest.approx(1)
    one_class = 1000 * torch.nn.functional.one_hot(torch.zeros(1000, dtype=torch.long), 10).float()
    assert inception_score_estimate(one_class).value == pytest.approx(1)
    # Half of the samples in one of two classes for sure, half undecided: p = (3/4, 1/4).
    half = torch.where(torch.arange(1000)[:, None] % 2 == 0, torch.tensor([[1000.0, 0.0]]), torch.zeros(1, 2))
    expected = math.exp(-0.5 * math.log(2) - 0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert inception_score_estimate(half).value == pytest.approx(expected)


def test_deleting_groups_is_what_scoring_the_rest_says():
    values = logits(1300, 12, 2)
    found = inception_score_estimate(values)
    edges = np.linspace(0, 1300, 33).round().astype(int)
    for group in (0, 11, 31):
        rest = torch.cat([values[: edges[group]], values[edges[group + 1] :]])
        expected = isc_features_to_metric(rest, splits=10, shuffle=False)["inception_score_mean"]
        assert found.replicates[group] == pytest.approx(expected, rel=1e-10)
    assert found.ci95 is not None and found.ci95.low < found.value < found.ci95.high


def test_logits_may_be_shifted_by_any_constant():
    values = logits(1000, 10, 2)
    shifted = values + torch.linspace(-500, 500, 1000)[:, None]
    assert inception_score_estimate(shifted).value == pytest.approx(inception_score_estimate(values).value, rel=1e-4)


def test_the_interval_covers_the_expectation_at_this_n():
    found = [inception_score_estimate(logits(1000, 8, 2, seed)) for seed in range(300)]
    expectation = np.mean([one.value for one in found])
    covered = np.mean([one.ci95.low <= expectation <= one.ci95.high for one in found])
    assert abs(covered - 0.95) <= 0.02 + 2.5 * (0.05 * 0.95 / 300) ** 0.5


def test_what_has_no_score_is_refused_in_one_line():
    with pytest.raises(MetricUnavailable, match="at least 1000 samples, got 999"):
        inception_score_estimate(torch.zeros(999, 10))
