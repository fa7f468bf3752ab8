import pytest
from handmade import Bench

from dmqbench.results.differences import baselines, contrasts, difference_sheet
from dmqbench.results.tables import comparable_tables

N = {"n": 32}
BASE = [30.0 + index % 5 for index in range(32)]


def values(shift: float) -> list[float]:
    return [value + shift + 0.01 * (index % 2) for index, value in enumerate(BASE)]


@pytest.fixture
def bench(tmp_path) -> Bench:
    bench = Bench(tmp_path / "runs")
    for bits, level in (("w8a8", 10.0), ("w4a6", 0.0)):
        for method, shift in (("rtn", 0.0), ("dmq", 2.0)):
            own = values(level + shift)
            bench.job(method, bits, sum(own) / 32, per_image=own, protocol=N)
    bench.job("fp", "w32a32", None, protocol=N)
    return bench


def table(bench: Bench):
    [only] = comparable_tables(bench.results())
    return only


def psnr(bench: Bench, against: str):
    return [one for one in contrasts(table(bench), against) if one.metric == "psnr"]


def test_rows_are_compared_at_equal_bits(bench):
    found = psnr(bench, "rtn")
    assert [(one.row.label, one.row.bits, one.seeds) for one in found] == [("dmq", "w8a8", "0"), ("dmq", "w4a6", "0")]
    assert [one.comparison.difference for one in found] == pytest.approx([2.0, 2.0], abs=0.02)
    assert {one.comparison.verdict for one in found} == {"better"}
    assert {one.comparison.verdict for one in psnr(bench, "dmq")} == {"worse"}


def test_full_precision_compares_with_every_row(bench):
    assert len(psnr(bench, "fp")) == 4


@pytest.mark.parametrize("changes", [{"seed": 1}, {"ranges": "step"}])
def test_other_seeds_and_ranges_are_apart(bench, changes):
    bench.job("q_diffusion", "w4a6", 33.0, per_image=values(3), protocol=N, **changes)
    assert [one.row.label for one in psnr(bench, "rtn")] == ["dmq", "dmq"]


def test_seeds_are_compared_together_where_there_are_several(bench):
    for method, shift in (("rtn", 0.1), ("dmq", 2.2)):
        bench.job(method, "w4a6", 30.0 + shift, per_image=values(shift), protocol=N, seed=1)
    [over] = [one for one in psnr(bench, "rtn") if not one.single]
    assert over.seeds == "2 seeds" and over.count == "2"
    assert over.comparison.difference == pytest.approx(2.05)


def test_the_simplest_method_is_the_first_baseline(bench):
    assert baselines(table(bench)) == ["rtn", "dmq"]


def test_a_sheet_says_the_difference_and_the_verdict(bench):
    sheet = difference_sheet(table(bench), "rtn")
    assert sheet is not None
    line = next(line for line in sheet.lines if line.cells[3].text == "psnr")
    assert [cell.text for cell in line.cells][:2] == ["dmq", "w8a8"]
    assert line.cells[-3].text.startswith("+2.0") and line.cells[-2].text == "32" and line.cells[-1].text == "better"
    assert difference_sheet(table(bench), "unheard of") is None
