import json
from dataclasses import replace

import pytest
from handmade import Bench, diagnosis
from hypothesis import given
from hypothesis import strategies as st

from dmqbench.results.correlations import ProxyCorrelation, ProxyPoint, correlations
from dmqbench.results.diagnosis_figures import diagnosis_figures
from dmqbench.results.page.figures import (
    COSTS,
    MAX_LINES,
    colours,
    frontier,
    proxy_scatter,
    trade_off,
    trajectories,
)
from dmqbench.results.page.render import plain, render
from dmqbench.results.record import Cost
from dmqbench.results.tables import Table, comparable_tables

SIZE, BOPS = COSTS
POINTS = st.lists(st.tuples(st.integers(0, 6).map(float), st.integers(0, 6).map(float)), max_size=12)


@given(POINTS, st.booleans())
def test_the_frontier_is_what_nothing_dominates(points, higher):
    """Against the definition, by comparing all pairs."""
    sign = 1 if higher else -1

    def dominated(a: tuple[float, float]) -> bool:
        return any(b[0] <= a[0] and sign * b[1] >= sign * a[1] and b != a for b in points)

    assert frontier(points, higher) == sorted({point for point in points if not dominated(point)})


@pytest.fixture
def table(tmp_path):
    bench = Bench(tmp_path / "runs")
    for bits, psnr, fd in (("w8a8", 50.0, 1.0), ("w4a6", 30.0, 90.0)):
        for method, better in (("rtn", 0.0), ("dmq", 3.0)):
            size = {"all_layers": 2.0 if bits == "w8a8" else 1.0, "packed": None}
            bench.job(
                method, bits, psnr + better, fd - better / 10, cost={"size_mib": size, "bops": size["all_layers"] * 1e9}
            )
    bench.job("fp", "w32a32", None)
    [only] = comparable_tables(bench.results())
    return only


def test_a_trade_off_has_every_job_with_its_interval_and_the_frontier(table):
    figure = render(trade_off(table, "psnr", SIZE, colours([table])))
    line, *methods = figure["data"]
    assert (line["x"], line["y"]) == ([1.0, 2.0], [33.0, 53.0])
    points = {trace["name"]: list(zip(trace["x"], trace["y"], strict=True)) for trace in methods}
    assert points == {"dmq": [(2.0, 53.0), (1.0, 33.0)], "rtn": [(2.0, 50.0), (1.0, 30.0)]}
    assert methods[0]["error_y"]["array"] == pytest.approx([0.1, 0.1])
    assert set(methods[0]["customdata"]) == {row.folder.name for row in table.rows if row.label == "dmq"}
    assert "higher is better" in figure["layout"]["yaxis"]["title"]["text"]
    assert figure["note"].startswith("1 without a point")
    json.dumps(figure, allow_nan=False)


def test_distances_that_span_orders_are_on_a_logarithmic_axis(table):
    assert render(trade_off(table, "fd_digits", BOPS, {}))["layout"]["yaxis"]["type"] == "log"
    assert "type" not in render(trade_off(table, "psnr", BOPS, {}))["layout"]["yaxis"]


def test_a_row_of_unknown_cost_is_named_and_not_drawn(table):
    first = replace(table.rows[0], cost=Cost())
    assert trade_off(Table((first, *table.rows[1:])), "fd_digits", SIZE, {}).notes


def test_trajectories_are_bounded_and_leave_zeros_out(table):
    jobs = [(row, diagnosis()) for row in table.rows] * 10
    figure = render(trajectories(jobs, colours([table]), {}))
    lines = [trace for trace in figure["data"] if "customdata" in trace]
    assert len(lines) == MAX_LINES and str(len(jobs)) in figure["note"]
    assert lines[0]["y"][0] is None and all(value > 0 for value in lines[0]["y"][1:])
    assert sum(trace["showlegend"] for trace in lines) == 3, "each method once"


def test_boundaries_between_groups_of_calls_are_dots_on_their_line(table):
    jobs = [(row, diagnosis()) for row in table.rows[:3]]
    boundaries = {table.rows[1].folder.name: [0, 2, 4], table.rows[2].folder.name: []}
    figure = render(trajectories(jobs, colours([table]), boundaries))
    traces = [trace for trace in figure["data"] if "customdata" in trace]
    assert [trace["mode"] for trace in traces] == ["lines", "lines", "markers", "lines"]
    _, line, dots, _ = traces
    assert dots["x"] == [0, 2, 4] and dots["y"] == [line["y"][place] for place in (0, 2, 4)]
    assert set(dots["customdata"]) == set(line["customdata"]) and dots["line"]["color"] == line["line"]["color"]
    assert "validation trajectories" in figure["note"]
    assert trajectories(jobs, colours([table]), {}).notes == ()


def test_steps_show_four_errors(table):
    figure = render(diagnosis_figures(diagnosis(steps=5))["steps"])
    assert [len(trace["x"]) for trace in figure["data"]] == [6, 6, 5, 5]
    assert figure["data"][0]["text"][-1] == "the end"


def test_layers_are_powers_of_ten_and_zeros_are_gaps():
    found = diagnosis(1e-3)
    found["layers"]["error"] = [[0.0, 1e-2], [1e-3, 1.0], [1e-4, 1e-5]]
    [heat] = render(diagnosis_figures(found)["layers"])["data"]
    assert heat["z"] == [[None, -2.0], [-3.0, 0.0], [-4.0, -5.0]]
    assert heat["y"][0].endswith("skip") and heat["x"] == ["t = 900", "t = 870"]


def test_proxies_come_with_their_correlation(tmp_path):
    bench = Bench(tmp_path / "runs")
    for number, scale in enumerate((1e-5, 1e-4, 1e-3, 1e-2, 3e-2)):
        bench.job("rtn", f"w{8 - number}a8", 50 - 8 * number, diagnosis=diagnosis(scale))
    found = correlations(bench.results())[0]
    figure = render(proxy_scatter(found, {}))
    assert len(figure["data"][0]["x"]) == 5
    assert figure["note"].startswith("Pearson -0.9") and "over 5 jobs: falls" in figure["note"]


def test_too_few_jobs_do_not_correlate():
    found = ProxyCorrelation("layer_error", "psnr", None, (ProxyPoint("rtn", "w4a6", -2.0, 30.0),))
    assert found.sentence == "1 jobs: too few, or too equal, to correlate"


@given(st.text(max_size=20))
def test_names_are_no_markup_for_plotly(name):
    assert "<" not in plain(name) and ">" not in plain(name)
