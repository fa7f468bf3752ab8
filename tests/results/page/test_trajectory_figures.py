"""Figures and pictures of calibration over several steps: their numbers, and that nothing is drawn without data."""

import json

import pytest
from handmade import diagnosis
from handmade_findings import TRAJECTORY, FindingsBench, trajectory
from PIL import Image

from dmqbench import report
from dmqbench.results.page.document import page
from dmqbench.results.page.render import render
from dmqbench.results.plots import pictures
from dmqbench.results.studies.findings import FindingsReader
from dmqbench.results.studies.trajectory_ablation import ablation, curves_of
from dmqbench.results.studies.trajectory_reconstruction import TrajectoryReconstruction


@pytest.fixture
def bench(tmp_path) -> FindingsBench:
    return FindingsBench(tmp_path / "runs")


def figure_of(key: str, found: dict) -> dict:
    return render(TrajectoryReconstruction.from_json(found).figures[key])


def fill(bench: FindingsBench) -> None:
    """Two bit-widths over four horizons and three gradients, diagnosed, with un-tuned jobs and other methods."""
    for bits, base in (("w4a6", 28.0), ("w3a6", 24.0)):
        bench.trial(None, psnr=base, bits=bits, diagnosis=diagnosis(1e-2, steps=20))
        for horizon in (1, 2, 5, 20):
            facts = {"calls": 20, "factor": 0.8 / horizon**0.3, "cosine": 1 - horizon / 50, "ratio": 1 + horizon / 40}
            own = diagnosis(1e-3 * (1 + horizon / 10), steps=20)
            bench.trial(horizon, psnr=base + 2 + horizon / 20, bits=bits, found=facts, diagnosis=own)
        for gradient, gain in (("replayed", 2.4), ("linear", -1.0)):
            bench.trial(5, gradient, base + gain, bits=bits, found={"calls": 20, "factor": 0.4})
        for method, scale in (("rtn", 3e-2), ("q_diffusion", 8e-3)):
            bench.job(method, bits, base - 1, diagnosis=diagnosis(scale, steps=20), protocol={"n": 16})


def test_errors_of_groups_lie_over_their_calls():
    figure = figure_of("ends", trajectory(horizon=3, calls=5))
    before, after = figure["data"]
    assert before["x"] == after["x"] == [0, 3, None, 3, 5, None]
    assert before["y"] == pytest.approx([0.03, 0.03, None, 0.05, 0.05, None])
    assert after["y"] == pytest.approx([0.015, 0.015, None, 0.05, 0.05, None])
    assert figure["layout"]["yaxis"]["type"] == "log" and "validation" in figure["note"]
    json.dumps(figure, allow_nan=False)


def test_the_agreement_of_gradients_may_be_negative_or_unknown():
    found = trajectory(cosine=-0.5)
    found["spans"][1] |= {"gradient_cosine": None, "gradient_ratio": None}
    figure = figure_of("gradients", found)
    cosine, ratio = figure["data"]
    assert cosine["y"] == [-0.5, -0.5, None, None, None, None] and ratio["y"] == [1.2, 1.2, None, None, None, None]
    assert (cosine.get("yaxis", "y"), ratio["yaxis"]) == ("y", "y2") and "identity" in figure["note"]
    json.dumps(figure, allow_nan=False)


@pytest.mark.parametrize(("varied", "places"), [("horizon", ["1", "2", "5", "20"]),
                                                ("gradient", ["replayed", "identity", "linear"])])  # fmt: skip
def test_an_ablation_has_four_axes_with_a_trace_per_bit_width(bench, varied, places):
    fill(bench)
    found = ablation(bench.results(), FindingsReader(bench.root), varied)
    assert found is not None
    figure = render(curves_of(found))
    assert figure["layout"]["xaxis"]["categoryarray"] == places
    for axis, numbers in (("y", found.gain), ("y2", lambda one: one.error), ("y3", lambda one: one.cosine),
                          ("y4", lambda one: one.ratio)):  # fmt: skip
        traces = [trace for trace in figure["data"] if trace["yaxis"] == axis]
        assert [trace["name"] for trace in traces] == [curve.name for curve in found.curves] == ["w4a6", "w3a6"]
        for trace, curve in zip(traces, found.curves, strict=True):
            assert trace["x"] == places and trace["y"] == pytest.approx(list(map(numbers, curve.trials)), rel=1e-4)
            assert trace["customdata"] == [trial.row.folder.name for trial in curve.trials]
    [top, _] = [trace for trace in figure["data"] if trace["yaxis"] == "y"]
    ends = [trial.over_untuned.ci95 for trial in found.curves[0].trials if trial.over_untuned]
    for at, up, down, end in zip(top["y"], top["error_y"]["array"], top["error_y"]["arrayminus"], ends, strict=True):
        assert end is not None and (at + up, at - down) == pytest.approx((end.high, end.low), abs=1e-3)
    assert len({trace["marker"]["symbol"] for trace in figure["data"]}) == 2
    assert "over un-tuned" in figure["layout"]["yaxis"]["title"]["text"]
    json.dumps(figure, allow_nan=False)


def test_the_page_has_the_ablations_and_what_each_job_found(bench):
    fill(bench)
    text = page(bench.root, bench.results())
    data = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    assert {"horizon", "gradient"} <= set(data["parts"])
    assert all(f'data-part="{name}"' in text for name in ("horizon", "gradient"))
    ids = {row.folder.name: row for row in bench.results()}
    for id, job in data["jobs"].items():
        tuned = FindingsReader(bench.root).of(ids[id], TrajectoryReconstruction) is not None
        assert ({"ends", "gradients"} <= set(job["figures"])) == tuned
    lines = [trace for trace in data["tables"][0]["trajectories"]["data"] if "customdata" in trace]
    dotted = {trace["customdata"][0] for trace in lines if trace["mode"] == "markers"}
    assert dotted and all(ids[id].method == "accuquant" for id in dotted)
    assert "validation" in data["tables"][0]["trajectories"]["note"]


def test_the_report_draws_the_ablation_and_the_errors(bench, capsys):
    fill(bench)
    assert report.main([str(bench.root), "--format", "md"]) == 0
    captured = capsys.readouterr()
    for name in ("ablation", "errors"):
        path = bench.root / f"report-{name}.png"
        assert f"picture: {path}" in captured.err
        with Image.open(path) as image:
            assert min(image.size) > 500
            assert len(set(image.convert("L").resize((64, 64)).getdata())) > 5, "something is drawn"
    assert "no pictures" not in captured.err


def test_errors_are_drawn_without_findings_and_nothing_without_diagnoses(bench):
    bench.job("rtn", "w4a6", 20.0)
    assert list(pictures.draw(bench.root, bench.results(), bench.root / "report")) == []
    bench.job("q_diffusion", "w4a6", 20.0, diagnosis=diagnosis())
    drawn = pictures.draw(bench.root, bench.results(), bench.root / "report")
    assert [path.name for path in drawn] == ["report-errors.png"]


@pytest.mark.parametrize("facts", [{"cosine": None, "ratio": None}, {"factor": 0.0}])
def test_an_ablation_with_nothing_known_but_psnr_is_drawn(bench, facts):
    for horizon in (1, 2):
        bench.trial(horizon, found=facts)
    drawn = pictures.draw(bench.root, bench.results(), bench.root / "report")
    assert [path.name for path in drawn] == ["report-ablation.png"]


def test_names_of_strangers_are_drawn_letter_by_letter(bench):
    for name in ("a $x^2 $ row", "<b>bold</b>", "x" * 300):
        bench.job("dmq", "w4a6", 20.0, variant=name, diagnosis=diagnosis())
        bench.trial(2, own={"recipe": name}, ranges=name)
        bench.trial(1, own={"recipe": name}, ranges=name)
    drawn = list(pictures.draw(bench.root, bench.results(), bench.root / "report"))
    assert {path.name for path in drawn} == {"report-ablation.png", "report-errors.png"}
    found = ablation(bench.results(), FindingsReader(bench.root), "horizon")
    assert found is not None and not any("<" in trace["name"] for trace in render(curves_of(found))["data"])


def test_a_job_of_accuquant_names_its_stage():
    """The stage's name in the store is the one that is looked for."""
    from dmqbench.config.compose import compose
    from dmqbench.config.job import make_job

    assert make_job(compose(["method=accuquant"])).method.stages[-1].name == TRAJECTORY
