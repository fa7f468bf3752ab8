"""The table of what calibration took, in text, in Markdown and on the page."""

import csv
import io
import json

import pytest
from handmade import Bench

from dmqbench.report import main
from dmqbench.results.cost_sheet import cost_sheet
from dmqbench.results.formats import as_csv, as_json, as_markdown
from dmqbench.results.page.document import page
from dmqbench.results.tables import comparable_tables

PAPER, QUICK = {"name": "paper"}, {"name": "quick"}


def timing(trajectories: float, stages: float, calls: int) -> dict:
    return {"trajectories_s": trajectories, "calibrate_s": stages, "unet_forwards_calibration": calls}


def parts(*peaks: int | None, device: int | None = None) -> list[dict]:
    return [{"stage": "s", "peak_memory_mib": peak, "peak_device_memory_mib": device} for peak in peaks]


@pytest.fixture
def bench(tmp_path):
    filled = Bench(tmp_path / "runs")
    filled.job("fp", "w32a32", None)
    return filled


def job(bench, method, bits="w4a6", budget=QUICK, calibration=None, cost=None, device="cpu", **changes):
    """A job whose configuration and device are those; ``cost`` is its timing."""
    config = {"budget": budget, **({} if calibration is None else {"calibration": calibration})}
    changes |= {"config": config, "environment": {"device": device}, "timing": cost or timing(1, 9, 100)}
    return bench.job(method, bits, 30.0, **changes)


def shown(bench):
    """The cells of the one table, by what the first of them says."""
    [table] = comparable_tables(bench.results())
    sheet = cost_sheet(table)
    assert sheet is not None
    return sheet, [dict(zip(sheet.columns, (cell.text for cell in line.cells), strict=True)) for line in sheet.lines]


def test_it_says_what_calibration_and_its_trajectories_took(bench):
    job(bench, "q_diffusion", cost=timing(10, 190, 60000))
    job(bench, "accuquant", cost=timing(10, 90, 1234567))
    sheet, rows = shown(bench)
    assert sheet.columns == ("method", "bits", "network calls", "seconds", "seconds / q_diffusion")
    assert [list(row.values()) for row in rows] == [
        ["accuquant", "w4a6", "1,234,567", "100", "0.500"],
        ["q_diffusion", "w4a6", "60,000", "200", "1.00"],
    ]
    assert sheet.title.endswith("calibration cost")


def test_the_processors_time_has_a_column_and_is_what_is_compared(bench):
    """A busy machine makes the clock's seconds long; a job from before has only those."""
    processor = {"trajectories_s": 8.0, "calibrate_s": 92.0}
    job(bench, "q_diffusion", cost=timing(10, 690, 60000) | {"processor": processor})
    job(bench, "accuquant", cost=timing(10, 190, 70000) | {"processor": {"trajectories_s": 8.0, "calibrate_s": 42.0}})
    job(bench, "dmq", cost=timing(10, 340, 80000))
    job(bench, "rtn", cost=timing(10, 60, 1000) | {"processor": {"calibrate_s": 5.0}})  # its trajectories are older
    _, rows = shown(bench)
    found = {row["method"]: (row["seconds"], row["CPU s"], row["seconds / q_diffusion"]) for row in rows}
    assert found["accuquant"] == ("200", "50.0", "0.500")
    assert found["q_diffusion"] == ("700", "100", "1.00")
    assert found["dmq"] == ("350", "–", "0.500")
    assert found["rtn"] == ("70.0", "–", "0.100")


def test_the_peak_is_the_largest_of_the_parts_where_all_are_known(bench):
    for name, found in (("a", []), ("b", parts(700, 1900, 800)), ("c", parts(700, None))):
        bench.job(name, "w4a6", 30.0, timing=timing(1, 9, 100), calibration=found)
    _, rows = shown(bench)
    assert [row["peak MiB"] for row in rows] == ["–", "1,900", "–"]
    assert "peak GPU MiB" not in rows[0]


def test_memory_of_a_gpu_has_a_column_where_there_is_one(bench):
    bench.job("a", "w4a6", 30.0, timing=timing(1, 9, 100), calibration=parts(700, 900, device=2048))
    _, [row] = shown(bench)
    assert (row["peak MiB"], row["peak GPU MiB"]) == ("900", "2,048")


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": "w4a8"},
        {"budget": PAPER},
        {"seed": 1},
        {"device": "another"},
        {"calibration": {"steps": 10, "match": "refuse"}},
        {"variant": "learning_rate=1"},
        {"cost": timing(0, 0, 100)},
    ],
)
def test_times_are_compared_with_q_diffusion_of_the_same_setting_alone(bench, changes):
    job(bench, "q_diffusion", **changes)
    job(bench, "accuquant")
    _, rows = shown(bench)
    [row] = [row for row in rows if row["method"] == "accuquant"]
    assert row.get("seconds / q_diffusion", "–") == "–"


def test_of_several_the_one_with_the_same_ranges_is_taken(bench):
    job(bench, "q_diffusion", ranges="shared", cost=timing(0, 40, 9))
    job(bench, "q_diffusion", ranges="group5", cost=timing(0, 20, 9))
    job(bench, "accuquant", ranges="group5", cost=timing(0, 10, 9))
    job(bench, "dmq", ranges="step", cost=timing(0, 10, 9))
    _, rows = shown(bench)
    found = {(row["method"], row["ranges"]): row["seconds / q_diffusion"] for row in rows}
    assert found["accuquant", "group5"] == "0.500"
    assert found["dmq", "step"] == "0.250"


def test_a_store_without_calibrations_has_no_such_table(bench):
    bench.job("rtn", "w8a8", 40.0)  # from before network calls were counted
    [table] = comparable_tables(bench.results())
    assert cost_sheet(table) is None
    assert "calibration cost" not in as_markdown(bench.results())
    assert "What calibration took" not in page(bench.root, bench.results())


def test_it_stands_in_every_report(bench, capsys):
    job(bench, "q_diffusion", cost=timing(10, 190, 60000))
    results = bench.results()
    assert "calibration cost" in as_markdown(results) and "60,000" in as_markdown(results)
    html = page(bench.root, results)
    assert "What calibration took" in html and "60,000" in html
    assert main([str(bench.root)]) == 0
    assert "60,000" in capsys.readouterr().out
    [row] = [row for row in csv.DictReader(io.StringIO(as_csv(results))) if row["method"] == "q_diffusion"]
    assert row["calibration_calls"] == "60000"
    assert all("calibration" in row for row in json.loads(as_json(results)))


def test_a_row_is_named_by_what_it_was_calibrated_on(bench):
    job(bench, "rtn", calibration={"steps": 10, "eta": None, "guidance": 1.5, "match": "nearest"})
    job(bench, "rtn", seed=1)
    labels = {result.seed: result.label for result in bench.results() if result.method == "rtn"}
    assert labels == {0: "rtn calibration.steps=10, calibration.guidance=1.5", 1: "rtn"}


def test_groups_are_sorted_by_their_size(bench):
    for ranges in ("group10", "group5", "step", "shared"):
        job(bench, "rtn", ranges=ranges)
    assert [row["ranges"] for row in shown(bench)[1]] == ["group5", "group10", "shared", "step"]
