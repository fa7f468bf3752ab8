"""The tables of results, in every format."""

import csv
import json
import re
from pathlib import Path

import pytest
from handmade import Bench, fill, measured

from dmqbench.results import formats
from dmqbench.results.tables import comparable_tables, why_apart


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "runs")


@pytest.fixture
def filled(bench: Bench) -> Bench:
    fill(bench)
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
    assert "psnr↑" in text and "digits↓" in text and "↑ higher is better" in text
    assert "scope common: the same layers of every method" in text and "ranges: calls of the network" in text


def test_eighty_columns_hold_the_demos_table_with_its_calibration(bench):
    paired = {name: measured(name, 4.29e-4, 1e-5, higher=name == "ssim", scope="common") for name in ("ssim", "mse")}
    metrics = {**paired, "fd2fp32_digits": measured("fd2fp32_digits", 0.645, higher=False, scope="common")}
    for method, ranges in (("q_diffusion", "shared"), ("dmq", "step"), ("accuquant", "group5")):
        bench.job(method, "w4a6", 36.94, 3.11, metrics=metrics, ranges=ranges)
    shown = bench.shown(80)
    assert max(map(len, shown.splitlines())) <= 80 and "…" not in shown
    assert "no room" not in shown and "calib." in shown and shown.count("4 min") == 3
    assert re.search(r"accuquant +w4a6 +group5 +1\.1 +36\.9±0\.1 +4\.29e-4 +4\.29e-4 +3\.11 +0\.645 +4 min", shown)
    headings = [column.strip() for column in formats.as_markdown(bench.results()).splitlines()[2].split("|")]
    assert {"psnr ↑", "ssim ↑", "mse ↓", "fd_digits ↓"} <= set(headings)
    assert "psnr" in formats.as_csv(bench.results()).splitlines()[0].split(","), "keys stay"


def test_columns_that_vary_are_shown_and_those_without_room_are_named(filled):
    filled.job("rtn", "w4a6", 29.5, seed=1, ranges="step")
    shown = filled.shown()
    assert re.search(r"method\s+bits\s+ranges\s+seed\s+MiB\s+psnr ?↑", shown)
    assert re.search(r"rtn\s+w4a6\s+step\s+1\s", shown)
    narrow = filled.shown(width=46)
    assert "no room for calib., MiB" in " ".join(narrow.split())
    assert "33." in narrow
    assert "…" not in narrow


def test_the_best_of_each_bits_is_bold_and_so_is_what_cannot_be_told_from_it(filled):
    filled.job("dmq", "w4a6", 33.0, 9.9, per_image=[33.1, 33.0, 33.1])
    lines = {line.split("|")[1].strip() + line.split("|")[2].strip(): line for line in
             formats.as_markdown(filled.results()).splitlines() if line.startswith("|")}  # fmt: skip
    assert "**33.05±0.10**" in lines["q_diffusionw4a6"] and "**3.100±0.20**" in lines["q_diffusionw4a6"]
    assert "**33.00±0.10**" in lines["dmqw4a6"] and "**9.900" not in lines["dmqw4a6"]
    assert "**" not in lines["rtnw4a6"]
    assert "**" not in lines["rtnw8a8"], "nothing competes with it"
    assert "**" not in lines["fpw32a32"]


def test_identical_images_are_best(bench):
    bench.job("rtn", "w8a8", 50.0)
    bench.job("dmq", "w8a8", None, per_image=[None] * 3)
    assert "**identical**" in formats.as_markdown(bench.results())


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
    assert [result.bits for result in formats.load_results(folders)] == ["w4a6", "w3a6"]
    (tmp_path / "result.json").write_text('{"method": "rtn"}')
    with pytest.raises(ValueError, match="lacks model, bits, metrics"):
        formats.load_results([tmp_path])


def test_json_and_csv_keep_every_digit_and_protocol(filled):
    results = filled.results()
    rows = json.loads(formats.as_json(results))
    assert [row["metrics"]["psnr"]["value"] for row in rows] == [None, 48.75, 33.05, 29.44, 22.94]
    assert all(row["embedded"] and row["table"] == 0 for row in rows)
    lines = list(csv.DictReader(formats.as_csv(results).splitlines()))
    assert [line["psnr"] for line in lines] == ["", "48.75", "33.05", "29.44", "22.94"]
    assert [line["psnr_exact"] for line in lines] == ["True", *["False"] * 4]
    assert lines[1]["psnr_protocol"] == rows[1]["metrics"]["psnr"]["protocol"]
    assert float(lines[1]["fd_digits_high"]) == pytest.approx(3.4)


def test_names_from_a_store_command_neither_terminal_nor_markdown(bench):
    bench.job("foreign", "w4a6", 30.0, name="\x1b[2J|[red]<b>")
    shown = bench.shown()
    assert "\x1b" not in shown and "[red]<b>" in shown
    row = next(line for line in formats.as_markdown(bench.results()).splitlines() if "[red]" in line)
    assert "<b>" not in row and "\\|" in row


def test_the_mean_is_over_seeds_and_not_over_other_settings(bench):
    bench.job("rtn", "w4a6", 30.0, config={"method": {"candidates": 80}})
    bench.job("rtn", "w4a6", 33.0, seed=1, config={"method": {"candidates": 10}})
    assert "seeds" not in bench.shown()


def foreign(bench: Bench, **changes) -> None:
    unknown = {"sampler": None, "timesteps": (), "eta": None, "guidance": None, "chunk": None, "engine": None}
    bench.job(
        "foreign", changes.pop("bits", "w4a6"), 31.0, name="their model", scope="unknown", **changes,
        protocol={**unknown, "scope": None, "unknown": (*unknown, "scope")},
    )  # fmt: skip


def test_a_row_made_elsewhere_says_what_is_unknown(filled):
    foreign(filled, declared=["bits"])
    [table] = comparable_tables(filled.results())
    assert [row.label for row in table.rows].count("their model") == 1
    text = " ".join(filled.shown().split())
    assert "w4a6†" in text and "as its author declares" in text
    assert re.search(r"their model: made elsewhere; unknown .*: .*sampler.*steps", text)
    assert "sampler ddim, steps 20" in text
    assert json.loads(formats.as_json(filled.results()))[-1]["label"] != "foreign"


def test_unknown_bits_carry_no_mark(filled):
    foreign(filled, bits="unknown")
    shown = filled.shown()
    assert "unknown" in shown and "†" not in shown


def test_metrics_of_stand_ins_never_reach_a_table(bench):
    bench.job("rtn", "w4a6", 30.0, metrics={"stand-in-fid": measured("stand-in-fid", 7.77)})
    results = bench.results()
    for text in (bench.shown(), formats.as_json(results), formats.as_csv(results), formats.as_latex(results)):
        assert "stand-in" not in text and "7.77" not in text
