"""Statistics of weight rows against SciPy and a search written out, and what they do with rows that say nothing."""

import numpy as np
import pytest
import torch
from scipy import stats

from dmqbench.anatomy.weight_rows import BINS, rounding_errors, row_histograms, row_statistics


def random_weight(rows=24, seed=0, heavy=3):
    """Gaussian rows [rows, 4, 3, 3], the last ``heavy`` with a single outlier each."""
    weight = torch.randn(rows, 4, 3, 3, generator=torch.Generator().manual_seed(seed))
    for number in range(heavy):
        weight[rows - 1 - number, 0, 0, 0] = 12.0 + number
    return weight


def least_error(row: np.ndarray, bits: int) -> float:
    """Squared error of a row in the grid of least mean |error|^2.4 among 80 shrunken ranges, by the definition."""
    found = []
    for shrink in range(80):
        low, high = (end * (1 - shrink / 100) for end in (min(row.min(), 0), max(row.max(), 0)))
        scale = (high - low) / (2**bits - 1)
        zero = round(-low / scale)
        codes = np.clip(np.round(row / scale) + zero, 0, 2**bits - 1)
        error = (codes - zero) * scale - row
        found.append((np.mean(np.abs(error) ** 2.4), np.sum(error**2)))
    return min(found)[1]


def test_kurtosis_is_that_of_scipy():
    weight = random_weight()
    found = row_statistics(weight, [2])
    np.testing.assert_allclose(found.kurtosis, stats.kurtosis(weight.flatten(1).double(), axis=1, fisher=False))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_error_of_a_row_is_that_of_its_best_range(bits):
    rows = random_weight(12).flatten(1)
    expected = [least_error(row, bits) for row in rows.double().numpy()]
    np.testing.assert_allclose(rounding_errors(rows, bits), expected, rtol=1e-4)


def test_shares_of_the_heaviest_and_of_the_largest_errors():
    weight = random_weight(24, heavy=3)
    found = row_statistics(weight, [2, 3])
    assert found.tenth == 2 and set(found.rounding) == {2, 3}
    rows = weight.flatten(1).double().numpy()
    heaviest = np.argsort(stats.kurtosis(rows, axis=1))[-2:]
    for bits, shares in found.rounding.items():
        errors = np.array([least_error(row, bits) for row in rows])
        assert shares.by_kurtosis == pytest.approx(errors[heaviest].sum() / errors.sum(), rel=1e-4)
        assert shares.by_error == pytest.approx(np.sort(errors)[-2:].sum() / errors.sum(), rel=1e-4)


def test_few_rows_have_no_tenth_and_exact_ones_no_shares():
    few = row_statistics(random_weight(9), [2])
    assert few.tenth == 0 and few.to_json()["rounding"] == {"2": {"by_kurtosis": None, "by_error": None}}
    exact = torch.zeros(20, 5)
    exact[:, 0] = 1.0
    assert row_statistics(exact, [2]).rounding[2].by_error is None


def test_constant_rows_are_never_the_heaviest():
    weight = random_weight(20, heavy=2)
    weight[3] = 0.25
    found = row_statistics(weight, [2])
    assert found.to_json()["kurtosis"][3] is None
    errors = rounding_errors(weight.flatten(1), 2)
    assert found.rounding[2].by_kurtosis == pytest.approx(float(errors[-2:].sum() / errors.sum()))


def test_histograms_are_of_the_highest_and_the_median_row():
    weight = random_weight(25, heavy=1)
    found = row_histograms(weight)
    rows = weight.flatten(1).double().numpy()
    order = np.argsort(stats.kurtosis(rows, axis=1))
    assert [one["row"] for one in found["rows"]] == [order[-1], order[12]]
    edges = np.array(found["edges"])
    assert len(edges) == BINS + 1 and edges[-1] == -edges[0]
    for one in found["rows"]:
        values = (rows[one["row"]] - rows[one["row"]].mean()) / rows[one["row"]].std()
        counts, _ = np.histogram(values, np.linspace(edges[0] * (1 + 1e-4), edges[-1] * (1 + 1e-4), BINS + 1))
        assert sum(one["share"]) == pytest.approx(1, rel=1e-4)
        np.testing.assert_allclose(np.array(one["share"]) * rows.shape[1], counts, atol=1.01)
        assert abs(np.array(one["share"]) * rows.shape[1] - counts).sum() <= 2, "an edge moves a value at most"
    with pytest.raises(ValueError, match="constant"):
        row_histograms(torch.ones(4, 5))
