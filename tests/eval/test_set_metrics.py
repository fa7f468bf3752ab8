"""What holds of every statistic of a set of samples, whatever it computes."""

import numpy as np
import pytest
import torch

from dmqbench.eval.registry import SET_METRICS, SetMetric
from dmqbench.eval.statistics import group_edges

CASES = [(name, paired) for name, metric in SET_METRICS.items() for paired in {False, metric.against != "nothing"}]
EVERY_METRIC = pytest.mark.parametrize(("name", "paired"), CASES, ids=[f"{name}-{paired}" for name, paired in CASES])
COMPARING = [name for name, metric in SET_METRICS.items() if metric.against != "nothing"]


def sides(metric: SetMetric) -> tuple[torch.Tensor, torch.Tensor]:
    """Enough samples for it even without a group of them, and as many of a reference that is another but near."""
    generator = torch.Generator().manual_seed(0)
    rows = 1100 if metric.against == "nothing" else 96
    features, reference = torch.randn(2, rows, 4, generator=generator, dtype=torch.float64)
    return features, 1.2 * reference + 0.3


def estimate(metric: SetMetric, features, reference, paired=False):
    return metric.estimates(features, None if metric.against == "nothing" else reference, paired)[metric.name]


@EVERY_METRIC
def test_replicates_are_what_it_says_without_each_group(name, paired):
    metric = SET_METRICS[name]
    features, reference = sides(metric)
    found = estimate(metric, features, reference, paired)
    edges = group_edges(len(features), len(found.replicates))
    for group in (0, 5, len(found.replicates) - 1):
        kept = np.r_[0 : edges[group], edges[group + 1] : len(features)]
        rest = estimate(metric, features[kept], reference[kept] if paired else reference, paired)
        assert found.replicates[group] == pytest.approx(rest.value, rel=1e-7, abs=1e-12)


@EVERY_METRIC
def test_the_interval_holds_the_value_and_order_inside_groups_does_not_matter(name, paired):
    metric = SET_METRICS[name]
    features, reference = sides(metric)
    found = estimate(metric, features, reference, paired)
    assert found.n == len(features) and found.ci95.low < found.value < found.ci95.high
    assert np.isfinite([*found.replicates, *found.extra.get("pairs", ())]).all()
    swapped = torch.arange(len(features))
    swapped[:2] = torch.tensor([1, 0])
    again = estimate(metric, features[swapped], reference[swapped] if paired else reference, paired)
    assert again.value == pytest.approx(found.value, rel=1e-9)
    assert again.replicates == pytest.approx(found.replicates, rel=1e-7, abs=1e-12)


@pytest.mark.parametrize("name", SET_METRICS)
def test_what_are_no_features_is_refused_in_one_line(name):
    metric = SET_METRICS[name]
    features, reference = sides(metric)
    for wrong, problem in ((features[:, 0], "must be N×"), (features.clone().fill_(torch.nan), "hold NaN or infinity")):
        with pytest.raises(ValueError, match=problem) as error:
            estimate(metric, wrong, reference)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", COMPARING)
def test_what_does_not_compare_is_refused_in_one_line(name):
    metric = SET_METRICS[name]
    features, reference = sides(metric)
    for other, paired, problem in (
        (reference[:, :3], False, "features of 4 and 3 dimensions do not compare"),
        (reference[:-1], True, "paired features must have the same rows, got 96 and 95"),
        (torch.full_like(reference, torch.inf), False, "hold NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=problem) as error:
            estimate(metric, features, other, paired)
        assert "\n" not in str(error.value)
