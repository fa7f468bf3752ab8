"""The dial: which jobs are its points, over which seeds, and when there is none."""

import pytest
from handmade_findings import FindingsBench

from dmqbench.results.studies.findings import FindingsReader
from dmqbench.results.studies.outlier_dial import dials, figure


@pytest.fixture
def bench(tmp_path) -> FindingsBench:
    return FindingsBench(tmp_path / "runs")


def planted(bench, method, dose, psnr, seed=0, where=("value",), **changes):
    model = {"name": "digits", "source": "embedded", "path": None}
    if dose != 1:
        model["planted"] = {"dose": dose, "share": 0.125, "where": list(where), "seed": 0}
    config = {"model": model, "method": {"name": method, "stages": ["weight_range"]}, "budget": {"name": "quick"}}
    bench.job(method, "w4a6", psnr, seed=seed, config=config | changes.pop("config", {}), ranges="step", **changes)


def found(bench):
    return dials(bench.results(), FindingsReader(bench.root))


def test_points_are_means_over_seeds_of_the_same_channels(bench):
    for seed, gain in enumerate((0.0, 1.0, 2.0)):
        for dose, psnr in ((1, 30.0), (8, 28.0), (64, 20.0)):
            planted(bench, "rtn", dose, psnr + gain, seed)
            planted(bench, "dmq", dose, 33.0, seed)
    planted(bench, "rtn", 8, 5.0, where=("group_norm",))
    planted(bench, "fp", 8, 99.0)
    [dial, other] = found(bench)
    assert dial.doses == [1, 8, 64] and set(dial.curves) == {"rtn", "dmq"}
    rtn = dial.curves["rtn"]
    assert [point.value for point in rtn] == pytest.approx([31.0, 29.0, 21.0])
    assert rtn[0].ends == pytest.approx((31.0 - 4.3027 / 3**0.5, 31.0 + 4.3027 / 3**0.5), abs=1e-3)
    assert [point.value for point in other.curves["rtn"]] == pytest.approx([31.0, 5.0]), "dose 1 belongs to both"
    drawn = figure([dial, other])
    assert [panel.title for panel in drawn.panels] == [
        "0.125 of the channels of each value", "0.125 of the channels of each group_norm",
    ]  # fmt: skip
    assert "one seed" in drawn.notes[-1]
    assert figure([dial]).notes[0].startswith("digits, w4a6, ranges step, budget quick")
    assert "3 of each point" in figure([dial]).notes[-1]


def test_other_budgets_and_one_dose_are_no_dial(bench):
    planted(bench, "rtn", 8, 28.0)
    planted(bench, "rtn", 1, 30.0, config={"budget": {"name": "paper"}})
    assert found(bench) is None
