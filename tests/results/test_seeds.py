import math

import pytest
from handmade import Bench
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dmqbench.results.seeds import seed_groups, spread


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9))
def test_a_spread_is_the_interval_of_a_mean(values):
    found = spread(values)
    low, high = stats.t.interval(0.95, len(values) - 1, sum(values) / len(values), max(stats.sem(values), 1e-300))
    assert found.mean == pytest.approx(sum(values) / len(values), abs=1e-9)
    assert found.half == pytest.approx((high - low) / 2, abs=1e-6)
    assert found.n == len(values)


def test_one_value_has_no_spread():
    with pytest.raises(ValueError, match="at least two"):
        spread([1.0])


def test_groups_differ_in_the_seed_alone(tmp_path):
    bench = Bench(tmp_path / "runs")
    for seed in range(3):
        bench.job("rtn", "w4a6", 30.0 + seed, seed=seed)
        bench.job("fp", "w32a32", None, id=f"{seed + 900:016x}")
    bench.job("rtn", "w8a8", 50.0)
    bench.job("rtn", "w8a8", 51.0, seed=1, ranges="step")
    [group] = seed_groups(bench.results())
    assert [row.seed for row in group.rows] == [0, 1, 2]
    found = group.spread("psnr")
    assert found is not None and math.isclose(found.mean, 31.0)


def test_a_seed_without_a_value_leaves_no_mean(tmp_path):
    bench = Bench(tmp_path / "runs")
    bench.job("rtn", "w8a8", 50.0)
    bench.job("rtn", "w8a8", None, seed=1)
    [group] = seed_groups(bench.results())
    assert group.spread("psnr") is None
