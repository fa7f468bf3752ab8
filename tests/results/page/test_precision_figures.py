"""Figures and pictures of mixed precision and low-rank tuning: their numbers, and what is drawn without data."""

import json

import numpy as np
import pytest
from handmade_findings import ALLOCATION, TUNING, FindingsBench, allocation, tuning
from PIL import Image

from dmqbench import report
from dmqbench.results.compare import compare
from dmqbench.results.page.document import page
from dmqbench.results.page.render import render
from dmqbench.results.plots.render import render as draw
from dmqbench.results.studies.low_rank_tuning import LowRankTuning
from dmqbench.results.studies.outlier_allocation import OutlierAllocation
from dmqbench.results.studies.precision_ablation import precision_ablation, variants


@pytest.fixture
def bench(tmp_path) -> FindingsBench:
    return FindingsBench(tmp_path / "runs")


def figures_of(found: dict) -> dict:
    """What the page shows of an allocation."""
    return {key: render(figure) for key, figure in OutlierAllocation.from_json(found).figures.items()}


def tuning_figure(found: dict) -> dict:
    [figure] = LowRankTuning.from_json(found).figures.values()
    return render(figure)


GAINS = {"": 1.0, "distillation=none": 0.6, "rows=random": -0.4}


def fill(bench: FindingsBench) -> None:
    bench.precision("efficient_dm", psnr=20.0)
    for variant, gain in GAINS.items():
        bench.precision(variant=variant, psnr=20.0 + gain)


def test_rows_of_a_layer_add_up_to_one_in_the_network_s_order():
    found = allocation(layers=4)
    figure = figures_of(found)["bits"]
    assert [trace["name"] for trace in figure["data"]] == ["1 bit", "2 bits", "3 bits"]
    np.testing.assert_allclose(np.sum([trace["x"] for trace in figure["data"]], axis=0), 1)
    assert figure["data"][0]["x"] == [0, 0.1, 0.2, 0.3] and figure["data"][0]["y"][0] == "blocks.0.conv"
    assert figure["layout"]["yaxis"]["autorange"] == "reversed" and "3 of 4 layers mixed" in figure["note"]
    json.dumps(figure, allow_nan=False)


def test_errors_of_candidates_are_over_equal_bits_and_the_chosen_is_marked():
    found = allocation(layers=3)
    found["layers"][1]["errors"] = found["layers"][1]["errors"][:2]  # fewer were considered there
    found["layers"][2]["errors"][0] = 0.0
    figure = figures_of(found)["candidates"]
    heat, chosen = figure["data"]
    assert heat["x"] == ["none", "10 %", "20 %", "30 %", "40 %", "50 %"]
    assert heat["z"][0] == pytest.approx([1, 1.1, 1.2, 1.3, 1.4, 1.5])
    assert heat["z"][1] == [1, pytest.approx(1 / 1.1, rel=1e-4), *[None] * 4] and heat["z"][2] == [None] * 6
    assert heat["zmin"] == 0.5 and heat["zmax"] == 1.5
    assert chosen["x"] == ["none", "10 %", "20 %"] and chosen["y"] == heat["y"]
    json.dumps(figure, allow_nan=False)
    assert "candidates" not in figures_of(allocation(tenths=0))


def test_errors_of_tuning_are_per_call_and_per_window():
    figure = tuning_figure(tuning(window=3, calls=8))
    before, after, before_distilled, after_distilled = figure["data"]
    assert before["x"] == list(range(8)) and before["y"] == pytest.approx([0.01 * call for call in range(1, 9)])
    assert after["y"] == pytest.approx([0.005 * call for call in range(1, 9)])
    assert before_distilled["x"] == [1, 4, 6] and after_distilled["y"] == pytest.approx([0.05, 0.1, 0.15])
    assert figure["layout"]["yaxis2"]["title"]["text"] == "relation" and "rank 32" in figure["note"]
    json.dumps(figure, allow_nan=False)
    plain = tuning_figure(tuning("none"))
    assert len(plain["data"]) == 2 and "yaxis2" not in plain["layout"]


def test_variants_are_compared_with_efficient_dm_pair_by_pair(bench):
    fill(bench)
    found = precision_ablation(bench.results())
    assert found is not None and found.metrics == ("psnr",)
    labels = ["mpq_dm", "mpq_dm distillation=none", "mpq_dm rows=random"]
    assert [bar.name for bar in found.bars] == labels, "the best comes first"
    assert found.setting == "digits, w2a4, ranges step, budget quick, seed 0"
    rows = {row.label: row for row in bench.results()}
    figure = render(variants(found))
    [bars] = figure["data"]
    for label, value, up, down in zip(
        labels, bars["x"], bars["error_x"]["array"], bars["error_x"]["arrayminus"], strict=True
    ):
        expected = compare(rows[label], rows["efficient_dm"], "psnr")
        assert expected.ci95 is not None and value == pytest.approx(expected.difference, rel=1e-4)
        assert (value + up, value - down) == pytest.approx((expected.ci95.high, expected.ci95.low), abs=1e-3)
    colours = bars["marker"]["color"]
    assert colours[0] == colours[1] != colours[2], "better, better, worse"
    json.dumps(figure, allow_nan=False)


def test_other_settings_are_no_variants_and_two_jobs_no_ablation(bench):
    bench.precision("efficient_dm")
    bench.precision()
    assert precision_ablation(bench.results()) is None
    bench.precision(variant="plus=true", seed=1, config={"seed": 1})
    bench.precision(variant="plus=true", bits="w2a6")
    bench.precision(variant="plus=true", config={"sampler": {"name": "ddim", "steps": 5}})
    bench.precision(variant="plus=true", config={"budget": {"name": "ladder"}})
    bench.job("rtn", "w2a4", 5.0)
    assert precision_ablation(bench.results()) is None
    bench.precision(variant="faithful")
    found = precision_ablation(bench.results())
    assert found is not None and [bar.name for bar in found.bars] == ["mpq_dm faithful", "mpq_dm"]


def test_without_the_baseline_or_under_another_protocol_there_is_none(bench):
    for variant in GAINS:
        bench.precision(variant=variant)
    assert precision_ablation(bench.results()) is None
    bench.precision("efficient_dm", protocol={"n": 16, "chunk": 4})
    assert precision_ablation(bench.results()) is None


def test_the_setting_with_most_variants_is_shown_and_the_others_counted(bench):
    fill(bench)
    bench.precision("efficient_dm", bits="w3a4")
    for variant in ("", "plus=true"):
        bench.precision(variant=variant, bits="w3a4")
    found = precision_ablation(bench.results())
    assert found is not None and len(found.bars) == 3 and found.left_out == 1 and "1 more" in found.sentences[-1]


def test_the_page_has_what_each_job_found_and_the_ablation(bench):
    fill(bench)
    text = page(bench.root, bench.results())
    data = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    assert "precision" in data["parts"] and 'data-part="precision"' in text
    methods = {row.folder.name: row.method for row in bench.results()}
    for id, job in data["jobs"].items():
        assert "tuning" in job["figures"]
        assert ({"bits", "candidates"} <= set(job["figures"])) == (methods[id] == "mpq_dm")
    assert all(f'id="{name}"' in text for name in ("bits", "candidates", "tuning"))


def test_the_report_draws_bits_tuning_and_ablation(bench, capsys):
    fill(bench)
    assert report.main([str(bench.root), "--format", "md"]) == 0
    captured = capsys.readouterr()
    for name in ("bits", "tuning", "precision"):
        path = bench.root / f"report-{name}.png"
        assert f"picture: {path}" in captured.err
        with Image.open(path) as image:
            assert min(image.size) > 200
            assert len(set(image.convert("L").resize((64, 64)).getdata())) > 5, "something is drawn"
    assert "no pictures" not in captured.err


@pytest.mark.parametrize("found", [allocation(tenths=0), allocation(layers=200), allocation(bits=7)])
def test_bits_of_any_network_are_drawn(found):
    found["layers"][0]["errors"] = [0.0] * len(found["layers"][0]["errors"])
    found["layers"][0]["name"] = "a $x^2 $ <b>name</b>"
    [picture] = OutlierAllocation.from_json(found).pictures.values()
    labels = draw(picture).axes[0].get_yticklabels()
    assert labels[0].get_text() == r"a \$x^2 \$ <b>name</b>"
    assert "&lt;b&gt;" in figures_of(found)["bits"]["data"][0]["y"][0]


def test_a_job_of_mpq_dm_names_the_stages_that_are_looked_for():
    from dmqbench.config.compose import compose
    from dmqbench.config.job import make_job

    stages = [stage.name for stage in make_job(compose(["method=mpq_dm"])).method.stages]
    assert {ALLOCATION, TUNING} <= set(stages)
