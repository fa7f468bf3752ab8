"""Standard output that cannot carry everything, or that nobody reads: it degrades, and no result is lost by it."""

import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from handmade import Bench

from dmqbench import cli, doctor, report
from dmqbench.launch.findings import ABSENT, OK, Finding
from dmqbench.launch.launcher import Outcome
from dmqbench.launch.streams import exact, hold_streams

FOUND = [Finding("machine", "cpu", OK, "2 cores … × ≥"), Finding("packages", "[ray]", ABSENT, "no", "pip → Köln ✓")]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    bench = Bench(tmp_path_factory.mktemp("bench") / "runs")
    bench.job("fp", "w32a32", None)
    bench.job("rtn", "w4a6", 30.0, unavailable={"lpips": "Fréchet → 字"})
    return bench.root


def results(store: Path) -> int:
    """What ``dmqbench`` does when its jobs are finished."""
    hold_streams()
    measured = SimpleNamespace(job=SimpleNamespace(task="evaluate"))
    cli.show([(measured, Outcome(str(folder))) for folder in sorted((store / "result").iterdir())])  # type: ignore[misc]
    return 0


COMMANDS = {
    "dmqbench": results,
    "dmqbench --help": lambda store: cli.main(["--help"]),
    "dmqbench-report": lambda store: report.main([str(store)]),
    "dmqbench-report --format md": lambda store: report.main([str(store), "--format", "md"]),
    "dmqbench-doctor": lambda store: doctor.main([]),
}
SETTINGS = {
    "ascii": ("ascii", {}),
    "latin-1": ("latin-1", {}),
    "cp1252": ("cp1252", {}),
    "20 columns": ("utf-8", {"COLUMNS": "20"}),
    "20 columns of ascii on a dumb terminal": ("ascii", {"COLUMNS": "20", "TERM": "dumb", "TTY_COMPATIBLE": "1"}),
    "no colour": ("utf-8", {"NO_COLOR": "1", "TTY_COMPATIBLE": "1"}),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_writes_what_its_output_can_carry(store, monkeypatch, command, setting):
    encoding, variables = SETTINGS[setting]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(doctor, "findings", lambda weights: FOUND)
    monkeypatch.setattr(report, "_draw", lambda *_: ())
    monkeypatch.setattr(report, "_draw_parts", lambda *_: ())
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    assert COMMANDS[command](store) == 0
    sys.stdout.flush()
    text = written.getvalue().decode(encoding)
    assert text.isascii() or encoding != "ascii"
    if command == "dmqbench":
        assert text.splitlines()[-1] == str(sorted((store / "result").iterdir())[-1])
    if "report" in command or command == "dmqbench":
        assert "rtn" in text and ("30.0" in text or "COLUMNS" in variables)
    if setting == "no colour":
        assert "\x1b[3" not in text


def test_letters_of_others_are_escaped_and_ours_are_spelled(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    hold_streams()
    print("30.1 ± 0.2 → Käse ↑ ×", flush=True)
    assert written.getvalue() == b"30.1 +- 0.2 -> K\\xe4se ^ x\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("name", ["plain", "Müller", "字", os.fsdecode(b"\xff\xfe")])
def test_a_folder_is_written_as_the_system_has_it(monkeypatch, encoding, name):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    hold_streams()
    print(exact(Path("runs") / name), flush=True)
    shown = written.getvalue().removesuffix(b"\n")
    assert shown in (os.fsencode(f"runs/{name}"), f"runs/{name}".encode(encoding, "ignore"))
    assert b"?" not in shown and b"\\" not in shown and len(shown) > len("runs/")


def test_whoever_reads_may_go_away_and_other_errors_are_told(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as pipe:
        for name in ("stdout", "__stdout__"):
            monkeypatch.setattr(sys, name, pipe)
        hold_streams()
        print("x" * 2**20, flush=True)
        sys.stdout.close()
    with open("/dev/full", "w", encoding="utf-8") as full:
        for name in ("stdout", "__stdout__"):
            monkeypatch.setattr(sys, name, full)
        hold_streams()
        with pytest.raises(OSError, match="No space"):
            print("x" * 2**20, flush=True)
        sys.stdout = full


def test_output_that_was_closed_from_the_start(monkeypatch, store):
    monkeypatch.setattr(sys, "stdout", None)
    assert results(store) == 0


@pytest.mark.parametrize("words", [("dmqbench.cli", "--help"), ("dmqbench.report", "{store}", "--format", "csv")])
def test_a_command_whose_reader_is_gone_ends_as_if_it_were_there(store, words):
    module, *arguments = (word.format(store=store) for word in words)
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=200, check=False)
    os.close(writer)
    assert done.returncode == 0
    assert "Error" not in done.stderr and "Traceback" not in done.stderr
