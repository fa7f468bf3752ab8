"""Runs of wandb itself, in processes of their own."""

import json
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from loopback import KEY, serving, silence
from processes import in_fresh_process, with_wandb_imported
from wandbfile import read_run

JOB = "0123456789abcdef"


def test_disabled_does_not_import_wandb(tmp_path):
    done = in_fresh_process(
        """
        import sys
        from pathlib import Path
        from dmqbench.tracking.record import Record
        from dmqbench.tracking.tracker import Tracker
        with Record.of_job(Path(sys.argv[1]), "job") as record:
            with Tracker(record, "evaluation", mode="disabled", directory=Path(sys.argv[1])) as tracker:
                record.log("unit", step=0, loss=1.0)
                tracker.summarize({"psnr": 1.0})
                tracker.image("grid", Path(sys.argv[1]) / "missing.png")
        assert "wandb" not in sys.modules and "torch" not in sys.modules
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["job.jsonl", "records"]


OFFLINE_RUNS = """
    import sys
    from pathlib import Path
    from dmqbench.tracking.record import Record
    from dmqbench.tracking.tracker import Tracker
    from PIL import Image
    root = Path(sys.argv[1])
    Image.new("RGB", (4, 4)).save(root / "grid.png")
    config = {"bits": {"weight": 4}, "hf_token": "s3cret"}
    with Record.of_job(root, "0123456789abcdef") as record:
        try:
            tags = ["rtn", "w4a8"]
            with Tracker(record, "calibration", mode="auto", directory=root, tags=tags, config=config):
                record.log("unit", step=7, loss=0.25)
                raise RuntimeError("the job failed")
        except RuntimeError:
            pass
        with Tracker(record, "evaluation", mode="auto", directory=root, config=config) as second:
            record.log("metric", step=1, psnr=31.5)
            second.image("grid", root / "grid.png", "FP above quantized")
            second.table("scores", ["method", "psnr"], [["rtn", 31.5]])
            second.summarize({"psnr": 31.5})
            sys.stdout.write(second.location)
    """


def inspect(folder: Path) -> dict:
    """Summary of an offline run by wandb's own reader."""
    (file,) = folder.glob("*.wandb")
    command = [
        str(Path(sys.executable).with_name("wandb")),
        "leet",
        "inspect",
        "--summary",
        "--json",
        str(file),
    ]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_offline_runs_of_one_process_are_recorded_finished_and_apart(tmp_path):
    done = with_wandb_imported(OFFLINE_RUNS, tmp_path)
    assert done.returncode == 0, done.stderr
    runs = {folder.name.partition(f"-{JOB}-")[2]: inspect(folder) for folder in tmp_path.glob("wandb/offline-run-*")}
    assert sorted(runs) == ["calibration", "evaluation"]
    first, second = runs["calibration"], runs["evaluation"]
    assert (first["run_id"], first["exit_code"]) == (f"{JOB}-calibration", 1)
    assert (second["run_id"], second["exit_code"], second["state"]) == (f"{JOB}-evaluation", 0, "finished")
    assert first["tags"] == ["rtn", "w4a8"]
    assert first["summary"]["unit/loss"] == 0.25 and first["summary"]["unit/step"] == 7
    assert second["summary"]["metric/psnr"] == 31.5 and second["summary"]["psnr"] == 31.5
    assert "metric/psnr" not in first["summary"] and "unit/loss" not in second["summary"]
    assert {"grid", "scores"} <= set(second["summary"])
    assert Path(done.stdout).is_dir() and Path(done.stdout).parent == tmp_path / "wandb"
    assert not any(b"s3cret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert any(JOB.encode() in path.read_bytes() for path in tmp_path.rglob("*.wandb"))


@contextmanager
def an_expired_key():
    with serving(refusing=True) as server:
        yield {"WANDB_BASE_URL": server.address}


@contextmanager
def a_server_that_hangs():
    with silence() as address:
        yield {"WANDB_BASE_URL": address}


@contextmanager
def a_proxy_that_hangs():
    with silence() as address:
        yield {"HTTPS_PROXY": address, "HTTP_PROXY": address}


def a_server_that_is_not_there():
    return nullcontext({"WANDB_BASE_URL": "http://127.0.0.1:9"})


JOB_OF_TWO_PARTS = """
    import sys
    from pathlib import Path
    from dmqbench.launch.launcher import show_warnings
    from dmqbench.tracking.record import Record
    from dmqbench.tracking.tracker import Tracker
    show_warnings()
    with Record.of_job(Path(sys.argv[1]), "0123456789abcdef") as record:
        for part in ("calibration", "evaluation"):
            with Tracker(record, part, mode="auto", directory=Path(sys.argv[1])):
                record.log("unit", step=0, loss=0.5)
    """


@pytest.mark.parametrize(
    "trouble", [an_expired_key, a_server_that_hangs, a_proxy_that_hangs, a_server_that_is_not_there]
)
def test_whatever_keeps_wandb_away_the_job_records_offline(tmp_path, trouble):
    with trouble() as environment:
        key = {"WANDB_API_KEY": KEY, "WANDB_HTTP_TIMEOUT": "2"}
        done = with_wandb_imported(JOB_OF_TWO_PARTS, tmp_path, **key, **environment)
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("dmqbench: wandb failed (AuthenticationError") and "recording offline" in line
    runs = {folder.name.rpartition("-")[2]: read_run(folder) for folder in tmp_path.glob("wandb/offline-run-*")}
    assert {part: run.values("unit/loss") for part, run in runs.items()} == {"calibration": [0.5], "evaluation": [0.5]}
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
