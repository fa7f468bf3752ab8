"""The command dmqbench-report: what it prints, writes and refuses."""

import csv
import json
import re
from pathlib import Path

import pytest
from handmade import Bench, fill

from dmqbench import report
from dmqbench.launch.sweeps import check, sweep_jobs
from dmqbench.results import formats
from dmqbench.results.tables import comparable_tables


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "runs")


@pytest.fixture
def filled(bench: Bench) -> Bench:
    fill(bench)
    return bench


def test_the_command_prints_the_table_and_says_where_the_picture_lies(filled, capsys, monkeypatch):
    monkeypatch.setenv("DMQBENCH_RUNS", str(filled.root))
    assert report.main([]) == 0
    out = capsys.readouterr().out
    assert "q_diffusion" in out
    page, picture = filled.root / "report.html", filled.root / "report.png"
    assert out.splitlines()[-2:] == [f"page: {page}", f"picture: {picture}"]
    assert picture.stat().st_size > 1000
    assert "q_diffusion" in page.read_text()


@pytest.mark.parametrize("form", ["table", "md", "json", "csv", "latex", "html"])
def test_the_command_writes_a_file_with_the_picture_beside_it(filled, form, tmp_path, capsys):
    target = tmp_path / f"out.{form}"
    assert report.main([str(filled.root), "--format", form, "--out", str(target)]) == 0
    assert "33.05" in target.read_text()
    said = [f"report: {target}", f"page: {target.with_suffix('.html')}", f"picture: {target.with_suffix('.png')}"]
    assert capsys.readouterr().out.splitlines() == [line for line in said if form != "html" or "page" not in line]
    assert target.with_suffix(".png").exists()


def test_data_on_standard_output_is_not_mixed_with_messages(filled, capsys):
    assert report.main([str(filled.root), "--format", "json"]) == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == 5
    assert [line.partition(":")[0] for line in captured.err.splitlines()] == ["page", "picture"]


def test_an_empty_store_is_refused_in_one_line(tmp_path, capsys):
    assert report.main([str(tmp_path / "nowhere")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and "no finished result in" in captured.err
    assert not (tmp_path / "nowhere").exists()


def test_a_store_without_samples_still_gives_the_table(filled, capsys):
    for chunk in (filled.root / "samples").glob("*/*.safetensors"):
        chunk.unlink()
    assert report.main([str(filled.root)]) == 0
    captured = capsys.readouterr()
    assert "q_diffusion" in captured.out
    assert "no picture of digits: the store holds no samples" in captured.err


@pytest.fixture
def rivals(bench: Bench) -> Bench:
    """Images on which dmq is better than rtn by 1 ± a little, and q_diffusion no better."""
    base, n = [30 + index % 7 for index in range(64)], {"n": 64}
    better = [value + 1 + 0.1 * (index % 3) for index, value in enumerate(base)]
    other = [value + (-1) ** index for index, value in enumerate(base)]
    for method, values in (("rtn", base), ("dmq", better), ("q_diffusion", other)):
        bench.job(method, "w4a6", sum(values) / 64, per_image=values, protocol=n)
    return bench


def test_differences_against_a_method_have_verdicts(rivals, capsys):
    assert report.main([str(rivals.root), "--against", "rtn"]) == 0
    out = capsys.readouterr().out
    assert "against rtn" in out
    assert re.search(r"dmq\s+w4a6\s+0\s+psnr\s+\+1\.\d+.*better", out)
    assert re.search(r"q_diffusion\s+w4a6\s+0\s+psnr.*cannot tell", out)


def test_differences_are_in_every_format(rivals):
    results = rivals.results()
    row = next(row for row in json.loads(formats.as_json(results, "rtn")) if row["method"] == "dmq")
    found = {entry["metric"]: entry for entry in row["against"]["differences"]}["psnr"]
    assert found["verdict"] == "better" and found["ci95"][0] > 0 and found["n"] == 64
    line = next(line for line in csv.DictReader(formats.as_csv(results, "rtn").splitlines()) if line["method"] == "dmq")
    assert float(line["psnr_difference"]) == found["difference"] and line["psnr_verdict"] == "better"
    assert "against rtn" in formats.as_markdown(results, "rtn") and "against rtn" in formats.as_latex(results, "rtn")


def test_a_method_that_is_not_there_is_refused_in_one_line(filled, capsys):
    assert report.main([str(filled.root), "--against", "gptq"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "gptq" in err and "q_diffusion" in err


def test_few_images_behind_many_samples_are_said_below_the_table(bench, capsys):
    bench.job("rtn", "w4a8", 30.0, task_kind="edit", strength=0.5, input_images=3)
    assert report.main([str(bench.root)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "samples start from 3 images, in turn" in said
    bench.job("rtn", "w4a6", 30.0, task_kind="restore", input_images=100_000)
    assert report.main([str(bench.root), "--format", "md"]) == 0
    assert "100000" not in capsys.readouterr().out


def test_a_sweep_shows_its_results_alone_and_names_what_is_missing(bench, capsys):
    jobs = [check(overrides) for overrides in sweep_jobs("demo")]
    done = [job for job in jobs if job.job.method.name == "rtn"]
    for job in done:
        bench.job("rtn", job.job.bits.name, 30.0, id=job.result)
    bench.job("rtn", "w2a4", 12.0)
    assert report.main([str(bench.root), "--sweep", "demo"]) == 0
    out = capsys.readouterr().out
    assert "w2a4" not in out and "w3a6" in out
    [missing] = [line for line in out.splitlines() if line.startswith("sweep demo: ")]
    assert f"{len(jobs) - len(done)} of {len(jobs)} jobs" in missing
    assert "q_diffusion w4a6" in missing and missing.endswith(f"dmqbench +sweeps=demo store.root={bench.root}")


def test_a_sweep_is_found_by_the_overrides_it_was_run_with(bench, capsys):
    job = check(["model=digits", "method=fp", "sampler.steps=7"])
    bench.job("fp", "w32a32", None, id=job.result)
    assert report.main([str(bench.root), "--sweep", "demo", "sampler.steps=7"]) == 0
    assert "identical" in capsys.readouterr().out
    assert report.main([str(bench.root), "--sweep", "demo"]) == 2
    count = len(sweep_jobs("demo"))
    assert f"{count} of {count} jobs have no result" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["nothing"], ["demo", "runs"], ["demo", "sampler.stepz=3"]])
def test_a_wrong_sweep_is_refused_in_one_line(filled, words, capsys):
    assert report.main([str(filled.root), "--sweep", *words]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and words[-1].partition("=")[0] in err


def test_damaged_samples_cost_the_picture_and_nothing_else(filled, capsys):
    for chunk in (filled.root / "samples").glob("*/*.safetensors"):
        chunk.write_bytes(b"nonsense")
    assert report.main([str(filled.root)]) == 0
    captured = capsys.readouterr()
    assert "q_diffusion" in captured.out and "no picture of digits" in captured.err
    assert (filled.root / "report.html").exists()


def test_push_sends_the_dashboards_after_the_report(filled, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("dmqbench.tracking.push.push", lambda root, console: asked.append(root) or 1)
    assert report.main([str(filled.root), "--push"]) == 1, "its exit status is the command's"
    assert asked == [filled.root]
    assert "q_diffusion" in capsys.readouterr().out
    assert report.main([str(filled.root)]) == 0 and len(asked) == 1


def test_a_picture_of_many_results_shows_the_first(filled, monkeypatch, capsys):
    monkeypatch.setattr(report, "_PICTURE_ROWS", 2)
    assert report.main([str(filled.root)]) == 0
    assert "shows the first 2 of 5 results" in capsys.readouterr().err


def test_a_store_that_cannot_be_written_still_gives_the_table(filled, monkeypatch, capsys):
    def refuse(path, data):
        raise PermissionError(f"cannot write {path}")

    monkeypatch.setattr("dmqbench.results.page.document.save_atomic", refuse)
    assert report.main([str(filled.root)]) == 0
    captured = capsys.readouterr()
    assert "q_diffusion" in captured.out and "no page: cannot write" in captured.err


def test_models_of_ones_own_are_called_by_their_folders_and_never_mixed(bench, capsys):
    for number, path in enumerate(("/nets/one.v2", "/nets/the other", "/nets/the other")):
        bench.job("rtn", "w4a6", 30.0 + number, seed=number, model="local", config={"model": {"path": path}})
    tables = comparable_tables(bench.results())
    assert [[row.model for row in table.rows] for table in tables] == [["one.v2"], ["the other"] * 2]
    shown = bench.shown()
    assert "one.v2 (embedded)" in shown and "the other (embedded)" in shown and "local" not in shown
    page = bench.root / "page.html"
    assert report.main([str(bench.root), "--format", "html", "--out", str(page)]) == 0
    assert all(f"{name} (embedded)" in page.read_text() for name in ("one.v2", "the other"))
    assert {row["model"] for row in json.loads(formats.as_json(bench.results()))} == {"one.v2", "the other"}


def test_a_picture_is_called_by_its_model_whatever_that_is_called(bench, capsys):
    bench.samples("e" * 16, 0)
    for path, reference in (("/nets/the other", "f" * 16), ("/nets/..", "e" * 16)):
        samples = {"fp": reference, "quantized": reference}
        bench.job("rtn", "w4a6", 30.0, model="local", config={"model": {"path": path}}, samples=samples)
    assert report.main([str(bench.root)]) == 0
    names = {path.name for path in bench.root.glob("report-*.png")}
    assert names == {"report-the-other-ffffffff.png", "report-..-eeeeeeee.png"}
