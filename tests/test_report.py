import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from dmqbench import report
from dmqbench.eval.protocol import Floor, Measurement, Protocol
from dmqbench.results import Result, comparable_tables, why_apart
from dmqbench.store import Store

REFERENCE = "f" * 16


def measured(metric: str, value: float | None, half: float = 0.1, higher: bool = True, **changes) -> dict:
    """A record of ``metric`` as the evaluation writes it."""
    paired = not metric.startswith("fd")
    entries = {"version": 1, "tool": "dmqbench", "rounding": "uint8", "n": 256 if paired else 512, "seed": 0}
    entries |= {"sampler": "ddim", "timesteps": tuple(range(20)), "eta": 0.0, "guidance": 1.0, "chunk": 32}
    protocol = Protocol(metric=metric, engine="simulate", reference="fp", **entries | changes)
    floor = Floor("numerical", 92.13, 256) if paired else Floor("other_seed", 0.6125, 512)
    interval = None if value is None else (value - half, value + half)
    return Measurement(value, interval, protocol.n, protocol.id, value is None, higher, floor).to_json()


class Bench:
    """A run store that is filled by hand."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store(root)
        self.count = 0
        self.samples(REFERENCE, 0)

    def publish(self, kind: str, id: str, files: dict[str, dict | str]) -> Path:
        folder = self.store.work(id)
        for name, content in files.items():
            if isinstance(content, str):
                (folder / name).write_text(content)
            else:
                save_file(content, folder / name)
        return self.store.publish(kind, id, folder, {}).path

    def samples(self, id: str, error: int) -> None:
        images = (np.arange(4 * 64).reshape(4, 1, 8, 8) % 200 + error).astype(np.uint8)
        chunk = {"images": images, "state": images.astype(np.float32)}
        self.publish("samples", id, {"chunk_00000.safetensors": chunk})

    def job(self, method: str, bits: str, psnr: float | None, fd: float = 1.0, **changes) -> Path:
        """Publish one result; protocol entries in ``protocol``, other keys replace those of the record."""
        self.count += 1
        id = f"{self.count:016x}"
        scope = None if method == "fp" else changes.get("scope", "common")
        entries = {"scope": scope} | changes.pop("protocol", {})
        per_image = changes.pop("per_image", None)
        if method != "fp":
            self.samples(id, 5)
        record = {
            "job_id": id, "method": method, "model": "digits", "bits": bits, "scope": "common",
            "ranges": "method", "dataset": "digits", "seed": 0, "config": {}, "unavailable": {},
            "environment": {}, "embedded": True,
            "metrics": {
                "psnr": measured("psnr", psnr, **entries),
                "fd_digits": measured("fd_digits", fd, 0.2, higher=False, **entries),
            },
            "cost": {"size_mib": {"all_layers": 1.0625, "packed": None}, "simulated": method != "fp"},
            "timing": {"calibrate_s": 240.0},
            "samples": {"fp": REFERENCE, "quantized": REFERENCE if method == "fp" else id},
        } | changes  # fmt: skip
        values = json.dumps({"psnr": per_image or [psnr] * 3})
        return self.publish("result", id, {"result.json": json.dumps(record), "per_image.json": values})

    def results(self) -> list[Result]:
        return report.load_results(self.root)

    def shown(self, width: int = 140) -> str:
        console = Console(width=width, color_system=None, force_terminal=False)
        with console.capture() as captured:
            report.print_results(self.root, console)
        return captured.get()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "runs")


@pytest.fixture
def filled(bench: Bench) -> Bench:
    bench.job("rtn", "w3a6", 22.94, 5.95)
    bench.job("rtn", "w4a6", 29.44, 4.2, per_image=[29.0, 29.5, 29.9])
    bench.job("q_diffusion", "w4a6", 33.05, 3.1, per_image=[33.0, 33.1, 33.2])
    bench.job("fp", "w32a32", None, 3.0)
    bench.job("rtn", "w8a8", 48.75, 3.2)
    return bench


def test_rows_go_from_full_precision_down_the_bits(filled):
    rows = [(result.method, result.bits) for result in filled.results()]
    assert rows == [
        ("fp", "w32a32"),
        ("rtn", "w8a8"),
        ("q_diffusion", "w4a6"),
        ("rtn", "w4a6"),
        ("rtn", "w3a6"),
    ]


@pytest.mark.parametrize("width", [60, 80])
def test_the_table_says_what_was_measured(filled, width):
    shown = filled.shown(width)
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown
    assert "digits (embedded) · scope common · ranges method · seed 0" in " ".join(shown.split())
    [row] = [line for line in shown.splitlines() if line.strip().startswith("q_diffusion")]
    assert row.split()[:2] == ["q_diffusion", "w4a6"]
    assert (" 33.05±0.10  3.100±0.20 " if width == 80 else " 33.0±0.1 ") in row
    assert row.split()[-2:] == ["4", "min"]
    assert "identical" in next(line for line in shown.splitlines() if line.strip().startswith("fp "))
    text = " ".join(shown.split())
    assert "256 (psnr), 512 (fd_digits); sampler ddim, steps 20, eta 0" in text
    assert "numerical" in text and "92.1" in text and "other seed" in text and "0.61" in text
    assert "no speed is claimed" in text
    assert "separate tables" not in text


def test_columns_that_vary_are_shown_and_those_without_room_are_named(filled):
    filled.job("rtn", "w4a6", 29.5, seed=1, ranges="step")
    shown = filled.shown()
    assert re.search(r"method\s+bits\s+ranges\s+seed\s+MiB\s+psnr", shown)
    assert re.search(r"rtn\s+w4a6\s+step\s+1\s", shown)
    narrow = filled.shown(width=50)
    assert "no room for calib., MiB" in " ".join(narrow.split())
    assert "33." in narrow
    assert "…" not in narrow


def test_the_best_of_each_bits_is_bold_and_so_is_what_cannot_be_told_from_it(filled):
    filled.job("dmq", "w4a6", 33.0, 9.9, per_image=[33.1, 33.0, 33.1])
    lines = {line.split("|")[1].strip() + line.split("|")[2].strip(): line for line in
             report.as_markdown(filled.results()).splitlines() if line.startswith("|")}  # fmt: skip
    assert "**33.05±0.10**" in lines["q_diffusionw4a6"] and "**3.100±0.20**" in lines["q_diffusionw4a6"]
    assert "**33.00±0.10**" in lines["dmqw4a6"] and "**9.900" not in lines["dmqw4a6"]
    assert "**" not in lines["rtnw4a6"]
    assert "**" not in lines["rtnw8a8"], "nothing competes with it"
    assert "**" not in lines["fpw32a32"]


def test_identical_images_are_best(bench):
    bench.job("rtn", "w8a8", 50.0)
    bench.job("dmq", "w8a8", None, per_image=[None] * 3)
    assert "**identical**" in report.as_markdown(bench.results())


def test_protocols_never_share_a_column(filled):
    filled.job("dmq", "w4a6", 35.0, protocol={"timesteps": tuple(range(50))})
    tables = comparable_tables(filled.results())
    assert [len(table.rows) for table in tables] == [5, 1]
    for table in tables:
        for metric in table.metrics:
            without_scope = {re.sub(r" scope=\S+| #.*", "", protocol) for protocol in table.protocols(metric)}
            assert len(without_scope) == 1
    why = why_apart(tables)
    assert why is not None
    assert re.search(r"protocols differ: steps 20@\w+ \| 50@\w+$", why)
    assert why in " ".join(filled.shown().split())


def test_scopes_are_apart_and_full_precision_stands_in_both(filled):
    filled.job("dmq", "w4a6", 35.0, scope="paper")
    tables = comparable_tables(filled.results())
    assert [(table.scope, len(table.rows)) for table in tables] == [("common", 5), ("paper", 2)]
    assert all(table.rows[0].full_precision for table in tables)
    assert "scope common | paper" in (why_apart(tables) or "")


def test_models_are_apart_without_excuse(filled):
    filled.job("rtn", "w4a6", 20.0, model="ddpm_cifar10", dataset="cifar10", embedded=False)
    shown = filled.shown()
    assert "separate tables" not in shown
    assert re.search(r"^ddpm_cifar10 · data cifar10 · scope", shown, re.MULTILINE)


def test_unavailable_metrics_are_listed_with_the_reason(bench):
    bench.job("rtn", "w4a6", 30.0, unavailable={"fid": "Inception weights not found"})
    assert "fid not available: Inception weights not found" in bench.shown()


def test_damaged_results_are_left_out_with_one_line_each(filled, capsys):
    folder = filled.job("dmq", "w2a4", 10.0)
    (folder / "result.json").write_text("{}")
    assert len(filled.results()) == 5
    [line] = capsys.readouterr().err.splitlines()
    assert folder.name in line and "result.json" in line
    unfinished = filled.root / "result" / ("a" * 16)
    unfinished.mkdir()
    (unfinished / "result.json").write_text("{}")
    assert len(filled.results()) == 5


def test_folders_can_be_named_one_by_one(filled, tmp_path):
    folders = sorted((filled.root / "result").iterdir())[:2]
    assert [result.bits for result in report.load_results(folders)] == ["w4a6", "w3a6"]
    (tmp_path / "result.json").write_text('{"method": "rtn"}')
    with pytest.raises(ValueError, match="lacks model, bits, metrics"):
        report.load_results([tmp_path])


def test_json_and_csv_keep_every_digit_and_protocol(filled):
    results = filled.results()
    rows = json.loads(report.as_json(results))
    assert [row["metrics"]["psnr"]["value"] for row in rows] == [None, 48.75, 33.05, 29.44, 22.94]
    assert all(row["embedded"] and row["table"] == 0 for row in rows)
    lines = list(csv.DictReader(report.as_csv(results).splitlines()))
    assert [line["psnr"] for line in lines] == ["", "48.75", "33.05", "29.44", "22.94"]
    assert [line["psnr_exact"] for line in lines] == ["True", *["False"] * 4]
    assert lines[1]["psnr_protocol"] == rows[1]["metrics"]["psnr"]["protocol"]
    assert float(lines[1]["fd_digits_high"]) == pytest.approx(3.4)


def test_the_command_prints_the_table_and_says_where_the_picture_lies(filled, capsys, monkeypatch):
    monkeypatch.setenv("DMQBENCH_RUNS", str(filled.root))
    assert report.main([]) == 0
    out = capsys.readouterr().out
    assert "q_diffusion" in out
    assert out.splitlines()[-1] == f"picture: {filled.root / 'report.png'}"
    assert (filled.root / "report.png").stat().st_size > 1000


@pytest.mark.parametrize("form", ["table", "md", "json", "csv"])
def test_the_command_writes_a_file_with_the_picture_beside_it(filled, form, tmp_path, capsys):
    target = tmp_path / f"out.{form}"
    assert report.main([str(filled.root), "--format", form, "--out", str(target)]) == 0
    assert "33.05" in target.read_text()
    assert capsys.readouterr().out.splitlines() == [
        f"report: {target}",
        f"picture: {target.with_suffix('.png')}",
    ]
    assert target.with_suffix(".png").exists()


def test_data_on_standard_output_is_not_mixed_with_messages(filled, capsys):
    assert report.main([str(filled.root), "--format", "json"]) == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == 5
    assert captured.err.startswith("picture: ")


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
