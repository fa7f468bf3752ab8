"""Accumulated errors side by side: which jobs share a panel and a line."""

import pytest
from handmade import diagnosis
from handmade_findings import TRAJECTORY, FindingsBench, trajectory

from dmqbench.results.studies.error_accumulation import MAX_LINES, error_panels
from dmqbench.results.studies.findings import FindingsReader


@pytest.fixture
def bench(tmp_path) -> FindingsBench:
    return FindingsBench(tmp_path / "runs")


def panels(bench: FindingsBench):
    return error_panels(bench.results(), FindingsReader(bench.root))


def test_a_panel_per_bit_width_and_a_line_per_method(bench):
    for bits in ("w4a6", "w3a6"):
        for method, scale in (("rtn", 1e-2), ("q_diffusion", 1e-3)):
            bench.job(method, bits, 30.0, diagnosis=diagnosis(scale))
        bench.made("accuquant", bits, 35.0, {TRAJECTORY: trajectory()}, diagnosis=diagnosis(1e-4))
    bench.job("fp", "w32a32", None)
    bench.job("dmq", "w4a6", 30.0)
    first, second = panels(bench)
    assert [first.title, second.title] == ["digits, scope common, 4 calls, w4a6", "digits, scope common, 4 calls, w3a6"]
    assert [line.name for line in first.lines] == ["accuquant", "q_diffusion", "rtn"], "dmq has no diagnosis"
    assert first.lines[1].errors == pytest.approx(diagnosis(1e-3)["steps"]["accumulated"])
    assert [line.boundaries for line in first.lines] == [(0, 2, 4), (), ()]


def test_seeds_are_one_line_their_geometric_mean(bench):
    for seed, scale in enumerate((1e-2, 1e-3, 1e-4)):
        bench.job("rtn", "w4a6", 30.0, seed=seed, diagnosis=diagnosis(scale))
    [panel] = panels(bench)
    [line] = panel.lines
    assert line.name == "rtn (3 seeds)" and len(line.of_seeds) == 3
    assert line.errors[0] == 0 and line.errors[1:] == pytest.approx(diagnosis(1e-3)["steps"]["accumulated"][1:])


def test_methods_of_one_name_are_told_apart_by_their_ranges(bench):
    for ranges in ("shared", "group5"):
        for seed in (0, 1):
            bench.job("q_diffusion", "w4a6", 30.0, ranges=ranges, seed=seed, diagnosis=diagnosis())
    bench.job("rtn", "w4a6", 20.0, diagnosis=diagnosis())
    [panel] = panels(bench)
    assert sorted(line.name for line in panel.lines) == [
        "q_diffusion, ranges group5 (2 seeds)", "q_diffusion, ranges shared (2 seeds)", "rtn",
    ]  # fmt: skip


def test_methods_of_one_name_and_ranges_are_told_apart_by_their_jobs(bench):
    jobs = [
        bench.job("dmq", "w4a6", 30.0, diagnosis=diagnosis(), config={"method": {"strength": strength}})
        for strength in (1, 2)
    ]
    [panel] = panels(bench)
    assert {line.name for line in panel.lines} == {f"dmq, job {folder.name[:8]}" for folder in jobs}


def test_variants_come_after_the_methods_themselves(bench):
    bench.job("accuquant", "w4a6", 30.0, variant="horizon=1", diagnosis=diagnosis())
    for method in ("rtn", "accuquant"):
        bench.job(method, "w4a6", 30.0, diagnosis=diagnosis())
    [panel] = panels(bench)
    assert [line.name for line in panel.lines] == ["accuquant", "rtn", "accuquant horizon=1"]


def test_groups_of_another_number_of_calls_are_not_marked(bench):
    found = {TRAJECTORY: trajectory(calls=20)}
    bench.made("accuquant", "w4a6", 35.0, found, diagnosis=diagnosis(steps=4))
    assert panels(bench)[0].lines[0].boundaries == ()


def test_other_calls_are_another_panel_and_damage_is_left_out(bench):
    bench.job("rtn", "w4a6", 30.0, diagnosis=diagnosis(steps=4))
    bench.job("q_diffusion", "w4a6", 30.0, diagnosis=diagnosis(steps=6))
    bench.job("dmq", "w4a6", 30.0, diagnosis={"version": 1})
    assert [(panel.title, len(panel.lines)) for panel in panels(bench)] == [
        ("digits, w4a6, scope common, 6 calls", 1), ("digits, w4a6, scope common, 4 calls", 1),
    ]  # fmt: skip


def test_lines_are_bounded_and_the_rest_counted(bench):
    for number in range(MAX_LINES + 3):
        bench.job("dmq", "w4a6", 30.0, variant=f"number {number:02}", diagnosis=diagnosis())
    [panel] = panels(bench)
    assert len(panel.lines) == MAX_LINES and panel.left_out == 3


def test_without_a_diagnosis_there_is_no_panel(bench):
    bench.job("rtn", "w4a6", 30.0)
    assert panels(bench) == ()
