import base64
import hashlib
import io
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from handmade import REFERENCE, Bench, diagnosis
from handmade_findings import FindingsBench, powers, scaling
from PIL import Image
from safetensors.numpy import save_file

from dmqbench.config.compose import compose
from dmqbench.config.job import make_job
from dmqbench.launch.sweeps import check
from dmqbench.results.page import gallery
from dmqbench.results.page.document import page
from dmqbench.results.page.gallery import gallery_of
from dmqbench.results.page.jobs import command_of
from dmqbench.store.files import json_text

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


class Parsed(HTMLParser):
    """Tags with their attributes, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def policy_of(parsed: Parsed) -> str:
    [policy] = [meta["content"] for meta in parsed.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    return policy or ""


def data_of(text: str) -> dict:
    return json.loads(text.partition('id="data">')[2].partition("</script>")[0])


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path / "runs")
    bench.job("fp", "w32a32", None, 3.0)
    bench.job("rtn", "w4a6", 29.44, 4.2, diagnosis=diagnosis(1e-2), unavailable={"fid": "weights not found"})
    bench.job("q_diffusion", "w4a6", 33.05, 3.1, diagnosis=diagnosis(1e-3))
    bench.job("rtn", "w8a8", 48.75, 3.2, diagnosis=diagnosis(1e-4))
    return bench


def made(bench: Bench, **more) -> str:
    return page(bench.root, bench.results(), **more)


def test_the_page_loads_nothing(bench):
    parsed = Parsed(made(bench))
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in parsed.tags}
    assert all("src" not in attributes for _, attributes in parsed.tags)
    assert all(attributes["href"].startswith("#") for attributes in parsed.all("a") if attributes["href"])
    assert policy_of(parsed).startswith("default-src 'none'")


def test_the_policy_allows_just_the_scripts_that_are_shipped(bench):
    text = made(bench)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 2 and "plotly.js" in scripts[0]
    allowed = policy_of(Parsed(text)).partition("script-src")[2]
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in allowed
    assert allowed.count("sha256") == 2 and "unsafe" not in allowed


def test_names_from_a_store_are_text(bench):
    bench.job(
        "foreign", "w4a6", 31.0, name=EVIL, unavailable={"fid": EVIL}, ranges=EVIL, config={"method": {"name": EVIL}},
        environment={"device": EVIL}, diagnosis=diagnosis() | {"layers": diagnosis()["layers"] | {"names": [EVIL] * 3}},
    )  # fmt: skip
    text = made(bench)
    parsed = Parsed(text)
    assert len(parsed.all("script")) == 3 and not parsed.all("img")
    assert not [attributes for _, attributes in parsed.tags if any(name.startswith("on") for name in attributes)]
    job = next(job for job in data_of(text)["jobs"].values() if "alert" in job["label"])
    assert job["label"].startswith(EVIL)
    assert "<" not in job["figures"]["layers"]["data"][0]["y"][0]


def test_every_row_stands_in_the_page_with_its_protocols_and_what_was_not_available(bench):
    text = made(bench)
    parsed, data = Parsed(text), data_of(text)
    rows = [tag["data-job"] for tag in parsed.all("tr") if "data-job" in tag]
    assert len(rows) == 4 and set(rows) == data["jobs"].keys()
    for result in bench.results():
        job = data["jobs"][result.folder.name]
        assert {name: found["protocol"] for name, found in job["metrics"].items()} == {
            name: found.protocol for name, found in result.measurements.items()
        }
    job = data["jobs"][f"{2:016x}"]
    assert job["unavailable"] == {"fid": "weights not found"}
    assert any("n = 256" in line for line in job["metrics"]["psnr"]["lines"])
    assert any("numerical floor 92.1" in line for line in job["metrics"]["psnr"]["lines"])
    assert "simulated in floating point" in text and "can never show" in text


def test_columns_say_which_direction_is_better(bench):
    headings = re.findall(r'<th scope="col"[^>]*><button[^>]*>(.*?)</button>', made(bench))
    headings = [re.sub("<[^>]*>", "", heading) for heading in headings]
    assert "psnr ↑" in headings and "method" in headings
    assert any(heading.startswith("fd_") and heading.endswith(" ↓") for heading in headings)


def test_tables_of_other_protocols_have_sections_of_their_own(bench):
    bench.job("dmq", "w4a6", 35.0, protocol={"timesteps": tuple(range(50))})
    text = made(bench)
    assert [tag["data-table"] for tag in Parsed(text).all("section") if "data-table" in tag] == ["0", "1"]
    assert "protocols differ: steps" in text


def test_differences_are_against_the_method_asked_for(bench):
    def sentences(**more) -> list[str]:
        return [tag["data-sentence"] or "" for tag in Parsed(made(bench, **more)).all("td") if "data-sentence" in tag]

    assert all(sentence.partition(" in ")[0].count("rtn") for sentence in sentences())
    assert any("rtn w4a6" in sentence for sentence in sentences(against="q_diffusion"))
    assert "Against q_diffusion" in made(bench, against="q_diffusion")


def test_differences_of_other_ranges_have_lines_of_their_own(bench):
    for ranges in ("step", "shared"):
        for method, psnr in (("rtn", 29.0), ("dmq", 34.0)):
            bench.job(method, "w4a6", psnr, ranges=ranges)
    rows = made(bench).partition('class="differences"')[2].partition("</table>")[0]
    assert [rows.count(f'<td class="word">{ranges}</td>') for ranges in ("step", "shared", "method")] == [1, 1, 1]


def test_equal_stores_give_equal_pages(bench):
    assert made(bench) == made(bench)


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        "[]",
        '{"version": 1}',
        json_text(diagnosis() | {"steps": {"local": [1]}}),
        json_text(diagnosis() | {"layers": {"names": ["a"], "calls": [99], "error": [[1.0]]}}),
        json_text(diagnosis() | {"timesteps": ["x"]}),
        json_text(diagnosis() | {"proxies": None}),
    ],
)
def test_a_damaged_diagnosis_is_a_line(bench, damage):
    folder = bench.job("dmq", "w4a6", 35.0)
    (folder / "diagnosis.json").write_text(damage)
    job = data_of(made(bench))["jobs"][folder.name]
    assert "damaged" in job["problem"] and job["figures"] == {}


def test_a_job_without_a_diagnosis_says_so(bench):
    assert "no diagnosis" in data_of(made(bench))["jobs"][f"{1:016x}"]["problem"]


def test_without_any_diagnosis_there_are_no_empty_plots(tmp_path):
    bench = Bench(tmp_path / "runs")
    bench.job("rtn", "w4a6", 30.0)
    text = made(bench)
    assert [tag["data-plot"] for tag in Parsed(text).all("div") if "data-plot" in tag] == ["tradeOff"]


def test_missing_and_damaged_samples_are_lines(bench):
    for chunk in (bench.root / "samples" / f"{2:016x}").glob("*.safetensors"):
        chunk.unlink()
    for chunk in (bench.root / "samples" / f"{3:016x}").glob("*.safetensors"):
        chunk.write_bytes(b"nonsense")
    bench.job("dmq", "w4a6", 35.0, samples={"fp": None, "quantized": "../../etc"})
    galleries = data_of(made(bench))["galleries"]
    assert set(galleries["missing"]) == {f"{2:016x}", f"{3:016x}", "../../etc"}
    assert all(line.startswith("no images") and "\n" not in line for line in galleries["missing"].values())
    assert set(galleries["strips"]) == {REFERENCE, f"{4:016x}"}


def test_images_are_exact(bench):
    strip = data_of(made(bench))["galleries"]["strips"][REFERENCE]
    with Image.open(io.BytesIO(base64.b64decode(strip["source"].partition(",")[2]))) as image:
        pixels = np.asarray(image).reshape(strip["count"], strip["height"], strip["width"])
    assert np.array_equal(pixels, (np.arange(4 * 64).reshape(4, 8, 8) % 200).astype(np.uint8))


def large_store(root: Path, jobs: int, side: int) -> tuple[Bench, list[str]]:
    bench = Bench(root)
    images = np.zeros((30, 3, side, side), np.uint8)
    ids = [f"{number + 50:016x}" for number in range(jobs)]
    for id in ids:
        bench.publish("samples", id, {"chunk_00000.safetensors": {"images": images}})
    return bench, ids


def test_many_jobs_share_the_budget_of_images(tmp_path):
    bench, ids = large_store(tmp_path / "runs", 6, 16)
    image = 16 * 16 * 3
    assert {strip.count for strip in gallery_of(bench.root, ids).strips.values()} == {24}
    shared = gallery_of(bench.root, ids, budget=6 * 8 * image)
    assert [strip.count for strip in shared.strips.values()] == [8] * 6
    scarce = gallery_of(bench.root, ids, budget=2 * 4 * image)
    assert [strip.count for strip in scarce.strips.values()] == [4, 4]
    assert len(scarce.missing) == 4 and "--sweep" in scarce.missing[ids[-1]]


def test_large_images_are_reduced_and_that_is_said(tmp_path):
    bench, [id] = large_store(tmp_path / "runs", 1, 200)
    found = gallery_of(bench.root, [id])
    assert found.reduced and found.strips[id].width == gallery.LONGEST_SIDE


def test_images_of_another_form_are_refused(tmp_path):
    bench, [id] = large_store(tmp_path / "runs", 1, 8)
    save_file({"images": np.zeros((2, 8), np.float32)}, bench.root / "samples" / id / "chunk_00000.safetensors")
    assert "float32" in gallery_of(bench.root, [id]).missing[id]


def test_layer_maps_are_bounded(bench, monkeypatch):
    monkeypatch.setattr("dmqbench.results.page.jobs.LAYER_BUDGET", 8)
    jobs = data_of(made(bench))["jobs"].values()
    assert sum("layers" in job["figures"] for job in jobs) == 1
    assert sum("bound the page" in job["problem"] for job in jobs) == 2


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=fp"],
        ["method=rtn", "bits=w4a6", "seed=3", "bits.ranges=step"],
        ["method=rtn", "bits.ranges=group3", "calibration.steps=10", "calibration.match=nearest"],
        ["method=dmq", "bits=w4a4", "method.stages=[equivalent_scaling,weight_range,activation_range]"],
        ["method=dmq", "method.equivalent_scaling.weighting=linear", "method.power_of_two_scaling.layers=all"],
        ["method=accuquant", "bits=w3a6", "method.trajectory_reconstruction.horizon=2"],
        ["method=q_diffusion", "bits.weight=5", "sampler.steps=7", "budget.samples=64", "metrics.names=[psnr,ssim]"],
    ],
)
def test_the_command_runs_the_same_job_again(overrides):
    config = json.loads(json.dumps(make_job(compose(overrides)).config))
    command = shlex.split(command_of(config))
    assert command[0] == "dmqbench"
    again = check(command[1:])
    assert again.result == check(overrides).result
    assert json.loads(json.dumps(again.job.config)) == config


def test_no_configuration_no_command():
    assert command_of({}) == "" and command_of({"method": {}}) == ""


def test_secrets_of_a_configuration_stay_out(bench):
    bench.job("dmq", "w4a6", 35.0, config={"tracker": {"api_key": "0123secret"}})
    assert "0123secret" not in made(bench)


@pytest.fixture
def with_parts(tmp_path: Path) -> FindingsBench:
    bench = FindingsBench(tmp_path / "runs")
    for number, model in enumerate(("digits", "ladder_1", "ladder_2")):
        for place, rung in enumerate(("q_diffusion", "scaling", "powers")):
            bench.rung(model, rung, 25.0 + number * place, 2.0 + number)
    return bench


def test_what_the_parts_of_a_method_do_is_on_the_page(with_parts):
    text = made(with_parts)
    parsed, data = Parsed(text), data_of(text)
    assert set(data["parts"]) == {"dose"}
    assert [tag["data-part"] for tag in parsed.all("div") if "data-part" in tag] == ["dose"]
    assert sum(bool(job["ranges"]) for job in data["jobs"].values()) == 6
    assert made(with_parts) == text


def test_without_findings_there_is_no_section_of_parts(bench):
    text = made(bench)
    assert data_of(text)["parts"] == {} and 'id="parts"' not in text and "#parts" not in text


def test_damaged_findings_are_a_line_and_leave_the_page_whole(with_parts):
    for path in (with_parts.root / "quantized").glob("*/findings.json"):
        path.write_text(json.dumps({"weighting": EVIL}))
    text = made(with_parts)
    jobs = data_of(text)["jobs"].values()
    assert data_of(text)["parts"] == {} and sum("damaged" in job["problem"] for job in jobs) == 6


def test_names_of_layers_in_findings_are_text(tmp_path):
    bench = FindingsBench(tmp_path / "runs")
    found, voted = scaling(), powers()
    found["channels"] = {EVIL: found["channels"]["blocks.0.conv"]}
    voted["layers"] = {EVIL: voted["layers"]["blocks.0.conv"]}
    bench.made("dmq", "w4a4", 30.0, {"equivalent_scaling": found, "power_of_two_scaling": voted})
    text = made(bench)
    assert len(Parsed(text).all("script")) == 3
    [job] = data_of(text)["jobs"].values()
    assert "<" not in job["figures"]["exponents"]["data"][0]["y"][0] and list(job["ranges"]) == [EVIL]
