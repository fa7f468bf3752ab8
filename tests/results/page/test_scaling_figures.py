"""Figures and pictures of what the parts of DMQ do: their numbers, and that nothing is drawn without data."""

import json

import numpy as np
import pytest
from handmade_findings import POWERS, SCALING, FindingsBench, powers, scaling
from PIL import Image

from dmqbench import report
from dmqbench.results.page.jobs import CHANNEL_BUDGET, figures_of_jobs, job_data
from dmqbench.results.page.render import render
from dmqbench.results.plots import pictures
from dmqbench.results.studies.dose_response import RUNGS, dose, dose_curve
from dmqbench.results.studies.equivalent_scaling import EquivalentScaling
from dmqbench.results.studies.findings import FindingsReader
from dmqbench.results.studies.power_of_two_scaling import SHOWN_LINES, PowerOfTwoScaling
from dmqbench.results.studies.vote_selection import samples_against_votes, selection_curves

NONE = "no diagnosis: this job was run without one"


def figures_of(found: dict) -> dict:
    """What the page shows of power-of-two scaling."""
    return {key: render(figure) for key, figure in PowerOfTwoScaling.from_json(found).figures.items()}


def shown(bench: FindingsBench, rows: dict) -> dict:
    """What the page holds of jobs without a diagnosis."""
    drawn = figures_of_jobs(rows, dict.fromkeys(rows, NONE), FindingsReader(bench.root))
    return {id: job_data(row, drawn[id]) for id, row in rows.items()}


DISPARITIES = {"digits": 2.0, "ladder_1": 1.5, "ladder_2": 4.0, "ladder_3": 8.0}


@pytest.fixture
def bench(tmp_path) -> FindingsBench:
    return FindingsBench(tmp_path / "runs")


def fill_dose(bench: FindingsBench) -> None:
    for number, (model, disparity) in enumerate(DISPARITIES.items()):
        for place, rung in enumerate(RUNGS):
            noise = [25 + place * disparity / 4 + 0.1 * ((number + place * index) % 5) for index in range(16)]
            bench.rung(model, rung, float(np.mean(noise)), disparity, per_image=noise)


def fill_votes(bench: FindingsBench) -> None:
    for selection, factor in (("vote", 0.6), ("mse", 0.7)):
        for samples in (64, 128, 256):
            method = {"name": "dmq", "stages": [POWERS], POWERS: {"selection": selection, "samples": samples}}
            found = powers(selection, samples, factor=factor)
            bench.made("dmq", "w4a4", 30.0, {POWERS: found}, config={"method": method})


def test_channels_stand_by_falling_range_before_and_after_scaling():
    whole = scaling()
    found = whole["channels"]["blocks.0.conv"]
    found["input_before"] = [1.0, 0.0, 4.0, 2.0, 3.0]
    figure = render(EquivalentScaling.from_json(whole).layer_figures["blocks.0.conv"])
    order = [2, 4, 3, 0, 1]
    keys = ("input_before", "input_after", "weight_before", "weight_after")
    for trace, key in zip(figure["data"], keys, strict=True):
        wanted = [found[key][channel] for channel in order]
        assert trace["y"] == [pytest.approx(value, rel=1e-4) if value else None for value in wanted]
    assert [trace["yaxis"] for trace in figure["data"]] == ["y", "y", "y2", "y2"]
    assert figure["data"][0]["text"][0] == "channel 2, scale 4"
    assert figure["layout"]["yaxis"]["type"] == figure["layout"]["yaxis2"]["type"] == "log"
    json.dumps(figure, allow_nan=False)


def test_weights_of_steps_are_looked_up_through_their_bins():
    weighting = {"name": "linear<b>", "lambda": [0.5, 0.25], "error": [0.1, 0.9], "bin_of_call": [0, 0, 1, 1, 1]}
    [figure] = map(render, EquivalentScaling.from_json(scaling() | {"weighting": weighting}).figures.values())
    assert figure["data"][0]["y"] == [0.5, 0.5, 0.25, 0.25, 0.25]
    assert figure["data"][1]["y"] == [0.1, 0.1, 0.9, 0.9, 0.9]
    assert "linear<b>" in figure["note"], "the page sets notes as text"


def test_exponents_are_shares_that_add_up_to_one_in_each_layer():
    figure = figures_of(powers())["exponents"]
    assert [trace["name"] for trace in figure["data"]] == ["the whole scale", "1/2", "1/4", "1/8"]
    np.testing.assert_allclose(np.sum([trace["x"] for trace in figure["data"]], axis=0), 1, rtol=1e-4)
    assert figure["data"][1]["x"] == pytest.approx([2 / 8, 3 / 9, 4 / 10], rel=1e-4)
    assert figure["note"] == "chosen by vote from 80 calibration samples"


def test_agreement_is_of_the_layers_that_agree_least_and_needs_steps():
    found = powers(layers=SHOWN_LINES + 4)
    figure = figures_of(found)["agreement"]
    assert len(figure["data"]) == SHOWN_LINES and f"of {SHOWN_LINES + 4}" in figure["note"]
    styles = {(trace["line"]["color"], trace["line"]["dash"]) for trace in figure["data"]}
    assert len(styles) == SHOWN_LINES, "more lines than colours"
    means = [np.mean(trace["y"]) for trace in figure["data"]]
    hidden = {name for name in found["layers"]} - {trace["text"][0].partition(",")[0] for trace in figure["data"]}
    assert max(means) <= min(np.mean(found["layers"][name]["agreement"]) for name in hidden) + 1e-9
    assert "agreement" not in figures_of(powers(rows=1))


def test_the_dose_has_a_line_per_part_above_and_below(bench):
    fill_dose(bench)
    curve = dose_curve(bench.results(), FindingsReader(bench.root))
    assert curve is not None
    figure = render(dose(curve))
    assert len(figure["data"]) == 2 * 4
    above = [trace for trace in figure["data"] if trace["yaxis"] == "y"]
    for trace, rung in zip(above, RUNGS[1:], strict=True):
        points = curve.of(rung)
        assert trace["x"] == pytest.approx(sorted(DISPARITIES.values()))
        assert trace["y"] == pytest.approx([point.over_base.difference for point in points], rel=1e-4)
        for point, up, down in zip(points, trace["error_y"]["array"], trace["error_y"]["arrayminus"], strict=True):
            ends, value = point.over_base.ci95, point.over_base.difference
            assert ends is not None and value is not None and ends.low < value < ends.high
            assert (up, down) == pytest.approx((ends.high - value, value - ends.low), rel=1e-3)
        assert trace["customdata"] == [point.row.folder.name for point in points]
    assert sum(trace["showlegend"] for trace in figure["data"]) == 4
    json.dumps(figure, allow_nan=False)


def test_samples_have_a_line_per_selection(bench):
    fill_votes(bench)
    curves = selection_curves(bench.results(), FindingsReader(bench.root))
    assert curves is not None
    figure = render(samples_against_votes(curves))
    assert [(trace["name"], trace["x"]) for trace in figure["data"]] == [
        ("mse", [16, 32, 64]), ("vote", [16, 32, 64]),
    ]  # fmt: skip
    assert figure["data"][0]["y"] == pytest.approx([0.7] * 3) and figure["data"][1]["y"] == pytest.approx([0.6] * 3)
    json.dumps(figure, allow_nan=False)


def test_a_job_shows_what_its_stages_found(bench):
    id = bench.made("dmq", "w4a4", 30.0, {SCALING: scaling(), POWERS: powers()})
    plain = bench.job("rtn", "w4a4", 20.0).name
    rows = {row.folder.name: row for row in bench.results()}
    jobs = shown(bench, rows)
    assert set(jobs[id]["figures"]) == {"weights", "exponents", "agreement"}
    assert list(jobs[id]["ranges"]) == ["blocks.0.conv", "blocks.1.conv"]
    assert jobs[plain]["figures"] == {} and jobs[plain]["ranges"] == {} and jobs[plain]["problem"] == NONE


def test_a_model_on_which_nothing_is_scaled_has_no_empty_figures(bench):
    """Power-of-two scaling that found no layer, and equivalent scaling that learned none."""
    nothing = {"weighting": {"name": "adaptive", "lambda": [], "error": [], "bin_of_call": []}}
    nothing |= {"layers": {}, "channels": {}}
    id = bench.made("dmq", "w4a4", 30.0, {SCALING: nothing, POWERS: powers(layers=0)})
    rows = {row.folder.name: row for row in bench.results()}
    job = shown(bench, rows)[id]
    assert (job["figures"], job["ranges"], job["problem"]) == ({}, {}, NONE)
    assert list(pictures.draw(bench.root, bench.results(), bench.root / "report")) == []


def test_channels_are_bounded_on_the_page(bench):
    wide = scaling(channels=CHANNEL_BUDGET // 15)
    ids = [bench.made("dmq", bits, 30.0, {SCALING: wide}) for bits in ("w4a8", "w4a4")]
    rows = {row.folder.name: row for row in bench.results()}
    jobs = shown(bench, rows)
    assert [bool(jobs[id]["ranges"]) for id in ids] == [True, False]
    assert "bound the page" in jobs[ids[1]]["problem"] and "bound the page" not in jobs[ids[0]]["problem"]


def test_the_report_draws_every_picture_that_there_are_findings_for(bench, capsys):
    fill_dose(bench)
    fill_votes(bench)
    assert report.main([str(bench.root)]) == 0
    captured = capsys.readouterr()
    names = {"ranges", "weights", "votes", "dose", "samples"}
    assert {path.stem for path in bench.root.glob("report-*.png")} >= {f"report-{name}" for name in names}
    for name in names:
        path = bench.root / f"report-{name}.png"
        assert f"picture: {path}" in captured.out
        with Image.open(path) as image:
            assert min(image.size) > 300
            assert len(set(image.convert("L").resize((64, 64)).getdata())) > 5, "something is drawn"
    assert "no pictures" not in captured.err


def test_without_findings_there_are_no_such_pictures(bench, capsys):
    bench.job("rtn", "w4a4", 20.0)
    assert report.main([str(bench.root)]) == 0
    assert [path.name for path in bench.root.glob("*.png")] == ["report.png"]


@pytest.mark.parametrize("name", ["a $x^2 $ layer", "<b>bold</b>", "x" * 300, "tab\there"])
def test_names_of_strangers_are_drawn_letter_by_letter(bench, name):
    found, voted = scaling(), powers()
    found["channels"] = {name: found["channels"]["blocks.0.conv"]}
    voted["layers"] = {name: voted["layers"]["blocks.0.conv"]}
    bench.made("dmq", "w4a4", 30.0, {SCALING: found, POWERS: voted})
    drawn = list(pictures.draw(bench.root, bench.results(), bench.root / "report"))
    assert [path.stem for path in drawn] == ["report-ranges", "report-weights", "report-votes"]
