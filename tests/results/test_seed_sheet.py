"""Methods over their seeds: what stands first where a store holds several."""

import io
import math
from statistics import stdev

import pytest
from handmade import Bench
from rich.console import Console

from dmqbench.results import formats
from dmqbench.results.seed_sheet import seed_sheet
from dmqbench.results.tables import comparable_tables
from dmqbench.results.terminal import fitted_seeds

SEEDS = {"rtn": (30.0, 31.0, 33.5), "dmq": (33.0, 34.2, 36.4), "q_diffusion": (32.0, 36.0, 33.0)}


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path / "runs")
    for method, values in SEEDS.items():
        for seed, psnr in enumerate(values):
            bench.job(method, "w4a6", psnr, 4.0, seed=seed)
    bench.job("rtn", "w8a8", 50.0)
    return bench


def lines(bench: Bench) -> dict[str, list[str]]:
    found = seed_sheet(*comparable_tables(bench.results()))
    assert found is not None
    return {line.cells[0].text: [cell.text for cell in line.cells] for line in found.lines}


def test_each_method_has_the_mean_and_interval_of_its_seeds(bench):
    row = lines(bench)["rtn"]
    assert row[:3] == ["rtn", "w4a6", "3"]
    # Mean 31.5, standard deviation 1.8028, and Student's quantile 4.3027 with two degrees of freedom.
    assert row[4] == f"31.50±{4.3027 * 1.8028 / 3**0.5:.1f}"
    assert row[5] == "4.000", "equal in every seed"


def test_bold_is_the_best_and_what_paired_seeds_cannot_tell_from_it(bench):
    """dmq leads rtn by 3.0, 3.2 and 2.9 dB: seeds tell, though both intervals overlap; q_diffusion by 1, -1.8, 3.4."""
    [table] = comparable_tables(bench.results())
    found = seed_sheet(table)
    bold = {line.cells[0].text for line in found.lines if line.cells[4].best}
    assert bold == {"dmq", "q_diffusion"}
    rows = {line.cells[0].text: line.cells[4].text for line in found.lines}
    means, halves = zip(*(map(float, rows[name].split("±")) for name in ("dmq", "rtn")), strict=True)
    assert means[0] - halves[0] < means[1] + halves[1]


def test_the_calibration_floor_is_pooled_over_methods(bench):
    pooled = math.sqrt(sum(stdev(values) ** 2 for values in SEEDS.values()) / len(SEEDS))
    assert float(lines(bench)["calibration floor"][4]) == pytest.approx(pooled, abs=0.05)


@pytest.mark.parametrize("write", [formats.as_markdown, formats.as_latex])
def test_it_is_the_first_table(bench, write):
    text = write(bench.results())
    assert text.index("over seeds") < text.index("w8a8")


def test_it_is_first_on_a_terminal(bench):
    shown = bench.shown()
    assert shown.index("over seeds") < shown.index("w8a8")


@pytest.mark.parametrize(("width", "says"), [(200, False), (40, True)])
def test_what_a_terminal_does_not_hold_goes_and_is_named(bench, width, says):
    console = Console(width=width, file=io.StringIO())
    sheet, drawn = fitted_seeds(*comparable_tables(bench.results()), console)
    assert ("use a wider terminal" in " ".join(sheet.notes)) is says
    console.print(drawn)
    assert max(map(len, console.file.getvalue().splitlines())) <= width and "33." in console.file.getvalue()


def test_one_seed_is_said_to_be_one_seed(tmp_path):
    bench = Bench(tmp_path / "runs")
    bench.job("rtn", "w4a6", 30.0)
    assert "one calibration seed" not in bench.shown(), "nothing is compared"
    bench.job("dmq", "w4a6", 33.0)
    [table] = comparable_tables(bench.results())
    assert seed_sheet(table) is None
    assert "one calibration seed: another gives other numbers" in " ".join(bench.shown().split())
