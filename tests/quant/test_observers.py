"""Range estimators against the published forms, written naively."""

import numpy as np
import pytest
import torch
from examples import costly
from hypothesis import given
from hypothesis import strategies as st

from dmqbench.quant.functional import affine_parameters, fake_quantize, quantize
from dmqbench.quant.observers import MovingRange, Observer, min_max, mse_search, percentile

CANDIDATES, EXPONENT = 80, 2.4


def published_search(row: np.ndarray, levels: int) -> tuple[float, float, list[float]]:
    """Q-Diffusion's search for one row, in doubles: (scale, zero-point, score of every candidate)."""
    top, bottom = row.max(), row.min()
    best, scale, zero_point, scores = float("inf"), 0.0, 0.0, []
    for i in range(CANDIDATES):
        high, low = top * (1 - 0.01 * i), bottom * (1 - 0.01 * i)
        delta = (high - low) / (levels - 1)
        zero = np.round(-low / delta)
        codes = np.clip(np.round(row / delta) + zero, 0, levels - 1)
        score = (np.abs(row - (codes - zero) * delta) ** EXPONENT).mean()
        scores.append(score)
        if score < best:
            best, scale, zero_point = score, delta, zero
    return scale, zero_point, scores


def clearly_best(scores: list[float]) -> bool:
    """Is the winner ahead by more than single precision can blur?"""
    first, second = sorted(scores)[:2]
    return second > first * (1 + 1e-5)


@pytest.mark.parametrize("levels", [2, 4, 8, 16, 64, 256])
@pytest.mark.parametrize("kind", ["normal", "heavy tails", "lopsided"])
def test_mse_search_finds_the_scales_of_the_published_search(levels, kind):
    generator = torch.Generator().manual_seed(levels)
    weight = torch.randn(24, 300, generator=generator) * 0.05
    if kind == "heavy tails":
        weight = weight**3
    if kind == "lopsided":
        weight = weight.exp() - 0.97
    assert (weight.amin(1) < 0).all() and (weight.amax(1) > 0).all()
    low, high = mse_search(weight, torch.tensor(levels))
    scale, zero_point = affine_parameters(low, high, levels)
    compared = 0
    for row in range(len(weight)):
        expected_scale, expected_zero_point, scores = published_search(weight[row].double().numpy(), levels)
        if clearly_best(scores):
            compared += 1
            assert scale[row].item() == pytest.approx(expected_scale, rel=1e-6)
            assert zero_point[row].item() == expected_zero_point
    assert compared >= 20


def test_rows_with_their_own_levels_are_searched_as_if_alone():
    values = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    levels = torch.tensor([2, 4, 8, 16, 256])
    low, high = mse_search(values, levels)
    for row in range(5):
        alone = mse_search(values[row : row + 1], levels[row])
        assert (low[row], high[row]) == (alone[0][0], alone[1][0])


def test_the_result_does_not_depend_on_how_rows_are_chunked(monkeypatch):
    values = torch.randn(37, 50, generator=torch.Generator().manual_seed(0))
    together = mse_search(values, torch.tensor(8))
    monkeypatch.setattr("dmqbench.quant.observers.CHUNK_ELEMENTS", 1)
    one_by_one = mse_search(values, torch.tensor(8))
    assert all(torch.equal(a, b) for a, b in zip(together, one_by_one, strict=True))


def test_the_first_of_equally_good_ranges_wins():
    low, high = mse_search(torch.zeros(3, 4), torch.tensor(4))
    assert low.tolist() == high.tolist() == [0, 0, 0]
    two_values = torch.tensor([[-1.0, 1.0, 1.0, 0.0]])
    low, high = mse_search(two_values, torch.tensor(3))
    assert (low.item(), high.item()) == (-1, 1)


def test_given_ends_are_shrunk_instead_of_the_observed_ones():
    values = torch.tensor([[-1.0, -0.5, 0.6, 1.0]])
    low, high = mse_search(values, torch.tensor(16), ends=(torch.tensor([-1.5]), torch.tensor([2.0])))
    errors = {}
    for percent in range(100, 20, -1):
        scale, zero_point = affine_parameters(torch.tensor(-1.5 * percent / 100), torch.tensor(2.0 * percent / 100), 16)
        error = fake_quantize(values, scale, zero_point, 16) - values
        errors[percent] = error.abs().pow(EXPONENT).mean().item()
    best = min(errors, key=errors.__getitem__)
    assert best < 100
    assert low.item() == pytest.approx(-1.5 * best / 100)
    assert high.item() == pytest.approx(2.0 * best / 100)


def test_one_candidate_is_min_max():
    values = torch.randn(3, 20)
    assert all(
        torch.equal(a, b)
        for a, b in zip(mse_search(values, torch.tensor(4), candidates=1), min_max(values), strict=True)
    )


@pytest.mark.parametrize("candidates", [0, 101])
def test_impossible_numbers_of_candidates_are_refused(candidates):
    with pytest.raises(ValueError, match="1 to 100"):
        mse_search(torch.zeros(1, 1), torch.tensor(4), candidates=candidates)


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=12),
    st.sampled_from([2, 4, 256]),
)
@costly(50)
def test_any_finite_row_has_a_finite_range_inside_its_ends(row, levels):
    values = torch.tensor([row])
    low, high = mse_search(values, torch.tensor(levels))
    assert values.amin() <= low.clamp(max=0) or low > 0
    assert low.isfinite().all() and high.isfinite().all()
    assert low.abs() <= values.amin().abs() and high.abs() <= values.amax().abs()


@pytest.mark.parametrize("size", [1e-25, 1e-12, 1e12, 1e25])
def test_the_search_does_not_depend_on_the_unit(size):
    values = torch.randn(6, 200, generator=torch.Generator().manual_seed(1))
    low, _ = mse_search(values, torch.tensor(4))
    scaled, _ = mse_search(values * size, torch.tensor(4))
    torch.testing.assert_close(scaled / size, low, rtol=1e-5, atol=0)


@given(st.integers(0, 2**31), st.integers(2, 400), st.floats(0.5, 1))
def test_percentile_is_an_order_statistic_next_to_the_quantile(seed, count, fraction):
    values = torch.randn(3, count, generator=torch.Generator().manual_seed(seed))
    low, high = percentile(values, fraction)
    tail = (1 - fraction) / 2
    for end, share in ((low, tail), (high, 1 - tail)):
        neighbours = [
            np.quantile(values.numpy(), np.clip(share + shift / (count - 1), 0, 1), axis=1, method=method)
            for shift, method in ((-1e-3, "lower"), (1e-3, "higher"))
        ]
        assert (neighbours[0] <= end.numpy()).all() and (end.numpy() <= neighbours[1]).all()


def test_percentile_of_everything_is_min_max():
    values = torch.randn(4, 33)
    assert all(torch.equal(a, b) for a, b in zip(percentile(values, 1.0), min_max(values), strict=True))


def test_percentile_leaves_the_outliers_outside():
    values = torch.cat((torch.linspace(-1, 1, 1998), torch.tensor([-50.0, 80.0])))[None]
    low, high = percentile(values, 0.998)
    assert -1 <= low.item() < -0.99 and 0.99 < high.item() <= 1


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5])
def test_impossible_fractions_are_refused(fraction):
    with pytest.raises(ValueError, match="0 < fraction <= 1"):
        percentile(torch.zeros(1, 1), fraction)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=8), st.floats(0, 1))
def test_moving_range_is_an_exponential_average(batches, momentum):
    moving = MovingRange(momentum)
    for value in batches:
        moving.update(torch.tensor([[value, value + 1.0]]))
    first, *rest = batches
    weights = [momentum ** len(rest)]
    weights += [(1 - momentum) * momentum ** (len(rest) - 1 - i) for i in range(len(rest))]
    expected = sum(weight * value for weight, value in zip(weights, [first, *rest], strict=True))
    assert moving.low is not None and moving.high is not None
    assert moving.low.item() == pytest.approx(expected, abs=1e-4)
    assert moving.high.item() == pytest.approx(expected + 1, abs=1e-4)


@given(st.integers(0, 2**31), st.sampled_from([4, 16]), st.sampled_from([-3.0, 0.0, 3.0]))
def test_a_search_without_zero_is_the_published_one(seed, levels, shift):
    """BRECQ's and DMQ's: both ends shrink in 80 steps, and the zero-point is not held to the codes."""
    rows = torch.randn(3, 40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift
    low, high = mse_search(rows, torch.tensor(levels), with_zero=False)
    for row, ends in zip(rows, zip(low.tolist(), high.tolist(), strict=True), strict=True):
        errors = []
        for step in range(80):
            bottom, top = (1 - 0.01 * step) * float(row.min()), (1 - 0.01 * step) * float(row.max())
            scale = (top - bottom) / (levels - 1)
            zero_point = round(-bottom / scale)
            codes = (torch.round(row / scale) + zero_point).clamp(0, levels - 1)
            errors.append((float(((codes - zero_point) * scale - row).abs().pow(2.4).mean()), bottom, top))
        least = min(error for error, *_ in errors)
        (chosen,) = [error for error, bottom, top in errors if (bottom, top) == pytest.approx(ends)]
        assert chosen == pytest.approx(least, rel=1e-9)


@pytest.mark.parametrize("constant", [0.0, 2.0, -0.3])
def test_a_row_of_one_value_is_reproduced_without_zero_too(constant):
    row = torch.full((1, 5), constant)
    grid = affine_parameters(*mse_search(row, torch.tensor(16), with_zero=False), torch.tensor([16]), with_zero=False)
    scale, zero_point = (table[:, None] for table in grid)
    torch.testing.assert_close(fake_quantize(row, scale, zero_point, 16), row, rtol=1e-6, atol=0)


@pytest.mark.parametrize("width", [0.0, 1e-7, 1e-4, 1e-2, 1.0])
def test_integers_of_a_narrow_range_without_zero_fit_sixteen_bits(width):
    """Engines keep them so; a range too narrow for that is widened to hold zero."""
    row = torch.tensor([[1.0, 1.0 + width]])
    scale, zero_point = affine_parameters(row[:, 0], row[:, 1], 256, with_zero=False)
    assert quantize(row, scale, zero_point, 256).abs().max() < 2**15
    torch.testing.assert_close(fake_quantize(row, scale, zero_point, 256), row, rtol=3e-3, atol=0)


def test_observers_are_found_by_name():
    values = torch.randn(2, 50)
    levels = torch.tensor(16)
    by_name = {
        "min_max": min_max(values),
        "mse": mse_search(values, levels, candidates=10, exponent=2.0),
        "percentile": percentile(values, 0.9),
    }
    settings_of = {"mse": {"candidates": 10, "exponent": 2.0}, "percentile": {"fraction": 0.9}}
    for name, expected in by_name.items():
        actual = Observer(name, **settings_of.get(name, {}))(values, levels)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    with pytest.raises(ValueError, match=r"observer=median is not known .*min_max, mse, percentile"):
        Observer("median")


def test_what_an_observer_is_given_arrives_at_the_search():
    """Values whose best candidate is far from the first, so that a number of candidates that is lost is seen."""
    values = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    levels, ends = torch.tensor(4), (torch.tensor([-2.0]), torch.tensor([3.0]))
    few, many = (Observer("mse", candidates=count)(values, levels) for count in (10, 80))
    assert few == mse_search(values, levels, candidates=10) and few != many
    assert Observer("mse")(values, levels, ends) == mse_search(values, levels, ends=ends) != many


def test_a_hundred_candidates_are_allowed():
    values = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    low, high = mse_search(values, torch.tensor(16), candidates=100)
    assert (low <= 0).all() and (high >= 0).all()


def test_doubles_are_searched_in_doubles():
    values = torch.randn(4, 200, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    low, high = mse_search(values, torch.tensor(8))
    assert low.dtype == high.dtype == torch.float64
    hundredths = 100 * low / values.amin(1)
    assert (hundredths - hundredths.round()).abs().max() < 1e-12


def test_the_usual_share_of_percentiles_is_999_in_a_thousand():
    values = torch.randn(2, 5000, generator=torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip(percentile(values), percentile(values, 0.999), strict=True))


def test_a_moving_range_of_which_one_end_is_known_begins_anew():
    moving = MovingRange(0.9, low=torch.zeros(1))
    moving.update(torch.tensor([[1.0, 2.0]]))
    assert (moving.low, moving.high) == (torch.tensor([1.0]), torch.tensor([2.0]))
