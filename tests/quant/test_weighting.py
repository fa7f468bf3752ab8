"""Weights of denoising steps, against plain loops over the formulas of the specification."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmqbench.quant.weighting import BIN_ERRORS, WEIGHTINGS, TimestepWeighting, bins_of_calls

ERROR = st.floats(1e-6, 1e4)
MOMENTUM = st.floats(0, 1)


def weighting(name="adaptive", strength=20.0, momentum=0.95, bin_error="mean"):
    return TimestepWeighting(name, strength, momentum, bin_error)


@st.composite
def batches(draw):
    """(number of bins, batches of (bin, error) pairs)."""
    bins = draw(st.integers(1, 6))
    pair = st.tuples(st.integers(0, bins - 1), ERROR)
    return bins, draw(st.lists(st.lists(pair, min_size=1, max_size=8), min_size=1, max_size=5))


def after(rule, bins, batches):
    running = torch.zeros(bins, dtype=torch.float64)
    for batch in batches:
        where, errors = zip(*batch, strict=True)
        running = rule.updated(running, torch.tensor(where), torch.tensor(errors, dtype=torch.float64))
    return running


@given(batches(), MOMENTUM)
def test_running_error_in_the_form_of_the_published_code(case, momentum):
    bins, given_batches = case
    expected = [0.0] * bins
    for batch in given_batches:
        sums = [0.0] * bins
        for where, error in batch:
            sums[where] += error
        expected = [momentum * old + (1 - momentum) * new for old, new in zip(expected, sums, strict=True)]
    found = after(weighting(momentum=momentum, bin_error="sum"), bins, given_batches)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@given(batches(), MOMENTUM)
def test_running_error_in_the_form_of_the_paper(case, momentum):
    bins, given_batches = case
    expected = [0.0] * bins
    started = [False] * bins
    for batch in given_batches:
        for which in range(bins):
            errors = [error for where, error in batch if where == which]
            if not errors:
                continue
            mean = sum(errors) / len(errors)
            expected[which] = momentum * expected[which] + (1 - momentum) * mean if started[which] else mean
            started[which] = True
    found = after(weighting(momentum=momentum), bins, given_batches)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=20), st.floats(0, 30))
def test_adaptive_weights(running, strength):
    total, count = sum(running), len(running)
    if sum(error > 0 for error in running) < 2:  # nothing to weigh against: as if all errors were equal
        expected = [(1 - 1 / count) ** strength if count > 1 else 1.0] * count
    else:
        expected = [max(0.0, 1 - error / total) ** strength for error in running]
    found = weighting(strength=strength).weights(torch.tensor(running, dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-9)


def test_uniform_errors_of_20_bins_leave_about_a_third():
    """The specification's own figure: 0.95^20 ≈ 0.358."""
    torch.testing.assert_close(
        weighting().weights(torch.full((20,), 3.0)), torch.full((20,), 0.3585), atol=1e-4, rtol=0
    )


@given(st.lists(ERROR, min_size=2, max_size=20, unique=True), st.floats(0.1, 30))
def test_the_smaller_the_share_the_greater_the_weight(running, strength):
    errors = torch.tensor(running, dtype=torch.float64)
    order = errors.argsort()
    weights = weighting(strength=strength).weights(errors)
    assert (weights[order].diff() <= 0).all()
    assert ((weights >= 0) & (weights <= 1)).all()


def test_weights_do_not_depend_on_the_scale_of_the_errors():
    errors = torch.rand(7)
    torch.testing.assert_close(weighting().weights(errors), weighting().weights(1e-6 * errors))


@pytest.mark.parametrize("bins", [1, 4, 20])
def test_fixed_weights(bins):
    running = torch.rand(bins)
    strength = 1.5
    linear = [1 + (1 - index / bins) * strength for index in range(bins)]
    quadratic = [1 + (1 - index / bins) ** 2 * strength for index in range(bins)]
    assert weighting("uniform").weights(running).tolist() == [1] * bins
    torch.testing.assert_close(weighting("linear", strength).weights(running), torch.tensor(linear))
    torch.testing.assert_close(weighting("quadratic", strength).weights(running), torch.tensor(quadratic))


@pytest.mark.parametrize("bin_error", BIN_ERRORS)
def test_no_error_at_all_weights_all_bins_alike(bin_error):
    rule = weighting(bin_error=bin_error)
    running = rule.updated(torch.zeros(4), torch.tensor([0, 2]), torch.zeros(2))
    assert running.tolist() == [0] * 4
    torch.testing.assert_close(rule.weights(running), torch.full((4,), 0.75**20))


def test_a_bin_that_a_batch_lacks_stays_in_one_form_and_decays_in_the_other():
    running, where, errors = torch.tensor([4.0, 8.0]), torch.tensor([0, 0]), torch.tensor([1.0, 3.0])
    assert weighting(momentum=0.5).updated(running, where, errors).tolist() == [3.0, 8.0]
    assert weighting(momentum=0.5, bin_error="sum").updated(running, where, errors).tolist() == [4.0, 4.0]


def test_a_bin_that_alone_has_an_error_is_still_learned_from():
    """By the formula its λ would be (1 − 1)^α = 0, and nothing would be learned, in silence."""
    assert weighting().weights(torch.tensor([2.0])).tolist() == [1.0]
    torch.testing.assert_close(weighting().weights(torch.tensor([0.0, 2.0])), torch.full((2,), 0.5**20))


def test_double_errors_do_not_change_the_type_of_the_running_error():
    for bin_error in BIN_ERRORS:
        rule = weighting(bin_error=bin_error)
        updated = rule.updated(torch.zeros(2), torch.tensor([1]), torch.ones(1, dtype=torch.float64))
        assert updated.dtype == torch.float32


@given(st.integers(1, 60), st.integers(0, 80))
def test_bins_are_runs_of_calls_of_almost_one_length(calls, bins):
    found = bins_of_calls(calls, bins)
    count = min(bins, calls) if bins else calls
    assert found.dtype == torch.int64
    assert found[0] == 0
    assert sorted(set(found.tolist())) == list(range(count))
    assert (found.diff() >= 0).all()
    sizes = found.bincount()
    assert sizes.max() - sizes.min() <= 1


def test_20_bins_and_20_steps_are_the_published_bijection():
    """bin(t) = 19 − ⌊(t − 1)/50⌋ of the published code, for its 20 steps t = 951, 901, …, 1."""
    published = [19 - (t - 1) // 50 for t in range(951, 0, -50)]
    assert bins_of_calls(20, 20).tolist() == published == list(range(20))
    assert bins_of_calls(20, 0).tolist() == published


def test_25_steps_share_20_bins_as_published():
    """Five bins receive two steps; which ones is another matter, because there the bins are of time, here of calls."""
    assert sorted(bins_of_calls(25, 20).bincount().tolist()) == [1] * 15 + [2] * 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "cubic"}, "weighting=cubic is not known (allowed: uniform, linear, quadratic, adaptive)"),
        ({"bin_error": "max"}, "bin_error=max is not known (allowed: mean, sum)"),
        ({"momentum": 1.5}, "momentum=1.5 is out of range (allowed: 0 to 1)"),
        ({"momentum": math.nan}, "momentum=nan is out of range (allowed: 0 to 1)"),
    ],
)
def test_what_is_not_known_is_refused_with_one_line(settings, message):
    with pytest.raises(ValueError) as caught:
        weighting(**settings)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weights_are_never_negative(name):
    assert (weighting(name).weights(torch.tensor([0.0, 1.0, 100.0])) >= 0).all()
