"""A run in wandb is the record, whoever mirrors it: live, cut off and completed, or afterwards, once or twice."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
from loopback import KEY, serving
from processes import REPOSITORY, with_wandb_imported
from wandbfile import read_run

from dmqbench.store.artifacts import Store
from dmqbench.tracking.record import Record, read_record

JOB = "0123456789abcdef"
QUANTIZED = "fedcba9876543210"
PREFIX = """
    import sys
    from pathlib import Path
    from dmqbench.tracking.record import Record, curve
    from dmqbench.tracking.push import replay
    from dmqbench.tracking.tracker import Tracker
    root, job = Path(sys.argv[1]), "0123456789abcdef"
    record = Record.of_job(root, job)
    identity = {"tags": ["rtn", "digits", "w4a8"], "config": {"seed": 3, "hf_token": "s3cret"}, "ids": {"result": job}}

    def calibration(mode, units):
        with Tracker(record, "calibration", mode=mode, directory=root, **identity) as mirror:
            for unit in units:
                losses = {f"blocks.{unit}.key": [10.0 + unit, 5.0 + unit]}
                record.log("curve", **curve("loss/stage", "iteration", [0, 9], losses))
                record.log("unit", step=unit, error=0.1 * unit)
            mirror.made("fedcba9876543210", method="rtn", bits="w4a8", api_key="s3cret")

    def evaluation(mode):
        with Tracker(record, "evaluation", mode=mode, directory=root, **identity) as mirror:
            mirror.image("grid", root / "grid.png", "FP | quantized | difference")
            mirror.per_image({"psnr": [30.0, 31.0]})
            mirror.curve("error", "call", [0, 1, 2], {"accumulated": [0.0, 0.1, 0.3], "local": [0.2, 0.1]})
            record.log("metrics", psnr=31.5)
            mirror.summarize({"metrics": {"psnr": {"value": 31.5}}})
            mirror.used("fedcba9876543210", method="rtn")
"""


def run(root, code, *arguments, **environment):
    done = with_wandb_imported(textwrap.dedent(PREFIX) + textwrap.dedent(code), root, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def root(tmp_path):
    """A store with a picture, a quantized model and the job event of its record."""
    from PIL import Image

    root = tmp_path / "store"
    store = Store(root)
    files = {"plan.json": '{"layers": []}', "state.safetensors": b"tensors"}
    store.replace_files("quantized", QUANTIZED, files, {"seconds": 1.0})
    Image.new("RGB", (4, 4)).save(root / "grid.png")
    with Record.of_job(root, JOB) as record:
        tags = ["rtn", "digits", "w4a8"]
        record.log("job", config={"seed": 3, "hf_token": "s3cret"}, ids={"result": JOB}, tags=tags)
    return root


def online(server):
    return {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.address}


def offline_runs(root, part):
    folders = root.glob(f"wandb/offline-run-*-{JOB}-{part}")
    return [read_run(folder) for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime_ns)]


def numbers(history):
    """Rows without what wandb adds, and without pictures and tables, whose files have random names."""
    return [
        {name: value for name, value in row.items() if not name.startswith("_") and not isinstance(value, dict)}
        for row in history
    ]


LOSSES = [
    {"loss/stage/blocks_0_key": 10.0, "loss/stage/iteration": 0},
    {"loss/stage/blocks_0_key": 5.0, "loss/stage/iteration": 9},
    {"unit/error": 0.0, "unit/step": 0},
    {"loss/stage/blocks_1_key": 11.0, "loss/stage/iteration": 0},
    {"loss/stage/blocks_1_key": 6.0, "loss/stage/iteration": 9},
    {"unit/error": 0.1, "unit/step": 1},
]


def test_live_and_replayed_offline_runs_are_the_same(root):
    run(root, 'calibration("offline", [0, 1])\nevaluation("offline")')
    live = {part: offline_runs(root, part)[0] for part in ("calibration", "evaluation")}
    before = read_record(root / "records" / f"{JOB}.jsonl")
    run(root, 'print(replay(record.path, root, "offline", directory=root / "again"))')
    assert read_record(root / "records" / f"{JOB}.jsonl") == before
    for part, first in live.items():
        (second,) = offline_runs(root / "again", part)
        assert numbers(first.history) == numbers(second.history)
        assert first.steps == second.steps == list(range(len(first.steps)))
        assert (first.axes, first.config["ids"]) == (second.axes, second.config["ids"])
        assert list(first.run.tags) == list(second.run.tags) == ["rtn", "digits", "w4a8"]
        assert (first.exit_code, second.exit_code) == (0, 0)
        assert first.run.run_group == second.run.run_group == JOB
    assert numbers(live["calibration"].history) == LOSSES
    evaluation = live["evaluation"]
    assert evaluation.values("error/accumulated") == [0.0, 0.1, 0.3] and evaluation.values("error/call") == [0, 1, 2]
    assert evaluation.values("metrics/psnr") == [31.5] and evaluation.summary["metrics/psnr/value"] == 31.5
    assert evaluation.values("grid")[0]["_type"] == "image-file"
    assert evaluation.values("per_image")[0]["nrows"] == 2
    assert sum(evaluation.values("per_image/psnr")[0]["values"]) == 2


def test_the_quantized_model_links_the_two_runs_also_offline(root):
    run(root, 'calibration("offline", [0])\nevaluation("offline")', "--token=s3cret-argument")
    (calibration,), (evaluation,) = (offline_runs(root, part) for part in ("calibration", "evaluation"))
    (artifact,) = [found for found in calibration.artifacts if found.type == "quantized"]
    assert artifact.name == f"quantized-{QUANTIZED}"
    assert json.loads(artifact.metadata) == {"id": QUANTIZED, "method": "rtn", "bits": "w4a8", "api_key": "***"}
    assert {entry.path for entry in artifact.manifest.contents} == {"files.json", "plan.json", "state.safetensors"}
    assert calibration.summary["quantized"] == evaluation.summary["quantized"] == f"quantized-{QUANTIZED}"
    assert not any(b"s3cret" in path.read_bytes() for path in root.rglob("*") if path.is_file())


def test_a_large_file_is_named_and_not_uploaded(root):
    run(
        root,
        """
        from dmqbench.tracking import wandb_run
        wandb_run.UPLOADED_BYTES = 10
        calibration("offline", [])
        """,
    )
    ((artifact,),) = [found.artifacts for found in offline_runs(root, "calibration")]
    assert {entry.path for entry in artifact.manifest.contents} == {"files.json", "state.safetensors"}


def test_what_an_online_run_lacks_is_pushed_once(root):
    with serving() as server:
        run(root, 'calibration("offline", [0])', **online(server))
        assert server.runs == {}
        run(root, 'calibration("online", [1])', **online(server))
        first = server.history(f"{JOB}-calibration")
        assert numbers(first) == LOSSES
        for _ in range(2):
            run(root, 'evaluation("offline")\nreplay(record.path, root)', **online(server))
        pushed = server.history(f"{JOB}-calibration")
        assert pushed == first and [row["_step"] for row in pushed] == list(range(6))
        twice = server.history(f"{JOB}-evaluation")
        steps = [row["_step"] for row in twice]
        assert steps == list(range(len(steps)))
        values = [row["error/accumulated"] for row in twice if "error/accumulated" in row]
        assert values == [0.0, 0.1, 0.3] * 2  # it was evaluated twice, and each pushed once
        assert server.runs[f"{JOB}-evaluation"]["exit_code"] == 0
        assert server.runs[f"{JOB}-calibration"]["tags"] == ["rtn", "digits", "w4a8"]
        assert server.runs[f"{JOB}-evaluation"]["groupName"] == JOB
        made = dict(server.artifacts[f"quantized-{QUANTIZED}"])
        assert made.keys() == {f"{JOB}-calibration", None} and len(set(made.values())) == 1
        assert {run for run, _ in server.used} == {f"{JOB}-evaluation"}
        everything = json.dumps([server.operations, server.runs], default=str)
        assert "s3cret" not in everything and str(root) not in everything


def test_a_replay_that_is_cut_off_is_completed_without_doubles(root):
    run(root, 'calibration("disabled", range(20))')
    broken = """
        from dmqbench.tracking import wandb_run
        shown = wandb_run.WandbRun._row
        def stop(self, make):
            if self.rows == 7:
                raise ConnectionError("the network went away")
            shown(self, make)
        wandb_run.WandbRun._row = stop
        try:
            replay(record.path, root)
        except ConnectionError:
            print("stopped")
        """
    with serving() as server:
        assert "stopped" in run(root, broken, **online(server)).stdout
        assert len(server.history(f"{JOB}-calibration")) == 7
        assert server.runs[f"{JOB}-calibration"]["exit_code"] == 1
        sent = run(root, "print([each.sent for each in replay(record.path, root)])", **online(server)).stdout
        assert sent.strip() == "[53]"
        history = server.history(f"{JOB}-calibration")
        assert [row["_step"] for row in history] == list(range(60))
        assert [row["unit/step"] for row in history if "unit/step" in row] == list(range(20))
        assert server.runs[f"{JOB}-calibration"]["exit_code"] == 0


def test_a_record_without_parts_is_no_run(root):
    assert run(root, "print(replay(record.path, root))").stdout.strip() == "[]"
    assert not (root / "wandb").exists()


def test_sigterm_ends_an_online_job_soon_though_the_server_hangs(root):
    job = """
        import signal, time
        def stop(number, frame):
            raise KeyboardInterrupt
        signal.signal(signal.SIGTERM, stop)
        try:
            with Tracker(record, "calibration", mode="online", directory=root):
                record.log("unit", step=0, loss=1.0)
                print("ready", flush=True)
                time.sleep(60)
        except KeyboardInterrupt:
            sys.exit(130)
        """
    with serving() as server:
        server.stuck = threading.Event()
        known = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PREFIX) + textwrap.dedent(job), str(root)],
            env={**known, **online(server), "PYTHONPATH": REPOSITORY, "HOME": "/nonexistent"},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 130
    assert [event["event"] for event in read_record(root / "records" / f"{JOB}.jsonl")] == ["job", "unit", "end"]
