import json
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dmqbench
from dmqbench.tracking import Record, Tracker, read_record, redact, resolve_mode

JOB = "0123456789abcdef"
REPOSITORY = str(Path(dmqbench.__file__).parents[1])


@pytest.fixture
def record(tmp_path):
    with Record.of_job(tmp_path, JOB) as opened:
        yield opened


def in_fresh_process(code: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run ``code`` where no key, netrc file or wandb setting of this machine is seen."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "NETRC"))}
    environment |= {"PYTHONPATH": REPOSITORY, "HOME": "/nonexistent"}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_events_are_read_back_in_order(tmp_path, record):
    assert read_record(record.path) == [] and not record.path.exists()
    record.log("unit", step=0, loss=0.5, name="mid_block")
    record.log("finished", seconds=2)
    assert record.path == tmp_path / "records" / f"{JOB}.jsonl"
    first, second = read_record(record.path)
    assert first.pop("time") <= second.pop("time")
    assert first == {"job": JOB, "event": "unit", "step": 0, "loss": 0.5, "name": "mid_block"}
    assert second == {"job": JOB, "event": "finished", "step": None, "seconds": 2}


def test_every_line_is_strict_json_whatever_the_values(record):
    scalar = SimpleNamespace(tolist=lambda: 2.5)
    values = {"nan": float("nan"), "low": -float("inf"), "path": Path("a/b"), "tensor": scalar, "set": {1}}
    record.log("unit", **values, nested={1: (float("inf"), None, True)}, text="line\nbreak \u2028")

    def refuse(name):
        raise ValueError(name)

    (line,) = record.path.read_bytes().splitlines()
    event = json.loads(line, parse_constant=refuse)
    assert (event["nan"], event["low"], event["path"], event["tensor"]) == ("nan", "-inf", "a/b", 2.5)
    assert event["set"] == [1] and event["nested"] == {"1": ["inf", None, True]}
    assert event["text"] == "line\nbreak \u2028"


def test_values_cannot_pose_as_the_frame(record):
    with pytest.raises(ValueError, match="job, time"):
        record.log("unit", **{"time": 0, "job": "other"})
    assert not record.path.exists()


@pytest.mark.parametrize("name", ["../x", "", "a/b"])
def test_the_job_cannot_name_a_file_elsewhere(tmp_path, name):
    with pytest.raises(ValueError):
        Record.of_job(tmp_path, name)


@given(st.integers(1, 200))
def test_a_torn_line_costs_only_itself(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("torn") / "job.jsonl"
    with Record(path, JOB) as record:
        record.log("whole", step=1)
        whole = path.stat().st_size
        record.log("torn", step=2, text="x" * 150)
    os.truncate(path, min(whole + cut, path.stat().st_size - 2))
    assert [event["event"] for event in read_record(path)] == ["whole"]
    with Record(path, JOB) as again:
        again.log("after", step=2)
    assert [event["event"] for event in read_record(path)] == ["whole", "after"]


def test_a_killed_process_leaves_every_event_it_logged(tmp_path):
    killed = in_fresh_process(
        """
        import os, signal, sys
        from pathlib import Path
        from dmqbench.tracking import Record
        record = Record(Path(sys.argv[1]), "job")
        for step in range(100):
            record.log("unit", step=step)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        tmp_path / "job.jsonl",
    )
    assert killed.returncode == -9
    assert [event["step"] for event in read_record(tmp_path / "job.jsonl")] == list(range(100))


def test_two_processes_can_write_one_record(tmp_path):
    code = """
        import sys
        from pathlib import Path
        from dmqbench.tracking import Record
        record = Record(Path(sys.argv[1]), "job")
        for step in range(300):
            record.log(sys.argv[2], step=step, text="x" * 2000)
        """
    first = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "job.jsonl"), "one"],
        env={**os.environ, "PYTHONPATH": REPOSITORY},
    )
    assert in_fresh_process(code, tmp_path / "job.jsonl", "two").returncode == 0
    assert first.wait(60) == 0
    events = read_record(tmp_path / "job.jsonl")
    for writer in ("one", "two"):
        assert [event["step"] for event in events if event["event"] == writer] == list(range(300))


SECRETS = {
    "WANDB_API_KEY": "s3cret-0",
    "hf_token": "s3cret-1",
    "accessToken": "s3cret-2",
    "password": "s3cret-3",
    "db-password": "s3cret-4",
    "client_secret": "s3cret-5",
    "AWS_SECRET_ACCESS_KEY": "s3cret-6",
    "apikey": "s3cret-7",
    "credentials": {"user": "s3cret-8"},
    "url": "https://someone:s3cret-9@host/path?a=b",
    "nested": [{"key": ["s3cret-10"]}, ("git+ssh://s3cret-11@host/x",)],
}
HARMLESS = {
    "tokenizer": "clip",
    "max_tokens": 77,
    "keyframes": 3,
    "monkey": "ape",
    "url": "https://host/a@b",
    "mail": "x@y",
}


def test_secrets_are_redacted_and_nothing_else(record):
    record.log("config", config=SECRETS, **{"token": "s3cret-12"})
    assert "s3cret" not in json.dumps(redact(SECRETS)) and "s3cret" not in record.path.read_text()
    assert redact(SECRETS)["url"] == "https://***@host/path?a=b"
    assert redact(HARMLESS) == HARMLESS


NETRC = "machine api.wandb.ai login user password {}\n".format("0" * 40)


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "0" * 40}, "online"),
        ("auto", {"WANDB_API_KEY": ""}, "offline"),
        ("auto", {"WANDB_API_KEY": "0" * 40, "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "disabled"}, "disabled"),
        ("auto", {"WANDB_MODE": "nonsense"}, "offline"),
        ("auto", {"NETRC": "netrc"}, "online"),
        ("auto", {"NETRC": "netrc", "WANDB_BASE_URL": "https://api.wandb.ai"}, "online"),
        ("auto", {"NETRC": "netrc", "WANDB_BASE_URL": "https://other.example"}, "offline"),
        ("auto", {"NETRC": "broken"}, "offline"),
        ("offline", {"WANDB_API_KEY": "0" * 40}, "offline"),
        ("online", {"WANDB_MODE": "disabled"}, "online"),
        ("disabled", {"WANDB_API_KEY": "0" * 40}, "disabled"),
    ],
)
def test_mode_follows_key_and_environment(tmp_path, mode, environment, expected):
    (tmp_path / "netrc").write_text(NETRC)
    (tmp_path / "broken").write_text("machine\nmachine")
    if "NETRC" in environment:
        environment = {**environment, "NETRC": str(tmp_path / environment["NETRC"])}
    assert resolve_mode(mode, {"HOME": str(tmp_path / "nobody"), **environment}) == expected


def test_a_key_in_the_home_folder_counts(tmp_path):
    (tmp_path / ".netrc").write_text(NETRC)
    assert resolve_mode("auto", {"HOME": str(tmp_path)}) == "online"


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="allowed are auto, online, offline, disabled"):
        resolve_mode("off")


class FakeWandb:
    """Stands in for the wandb module; ``broken`` names the calls that raise."""

    Settings = staticmethod(dict)
    Image = staticmethod(lambda path, caption: path)

    def __init__(self, *broken: str) -> None:
        self.broken = set(broken)
        self.runs: list[FakeRun] = []

    def init(self, **arguments):
        self.fail_if_broken(f"init {arguments['mode']}")
        self.runs.append(FakeRun(self, arguments))
        return self.runs[-1]

    def fail_if_broken(self, call: str) -> None:
        if call in self.broken:
            raise ConnectionError(f"{call}\nfailed at https://user:s3cret@host")


class FakeRun:
    url = "https://tracker/run"
    dir = "/runs/wandb/run-1/files"

    def __init__(self, wandb: FakeWandb, arguments: dict) -> None:
        self.wandb, self.arguments = wandb, arguments
        self.history: list[dict] = []
        self.axes: list[tuple[str, str]] = []
        self.exit_codes: list[int] = []
        self.summary: dict = {}

    def define_metric(self, name, step_metric):
        self.axes.append((name, step_metric))

    def log(self, values):
        self.wandb.fail_if_broken("log")
        self.history.append(values)

    def finish(self, exit_code):
        self.exit_codes.append(exit_code)
        self.wandb.fail_if_broken("finish")


@pytest.fixture
def wandb(monkeypatch):
    def install(*broken: str) -> FakeWandb:
        fake = FakeWandb(*broken)
        monkeypatch.setitem(sys.modules, "wandb", fake)
        return fake

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    return install


def tracker(record: Record, mode: str = "offline", **named) -> Tracker:
    return Tracker(record, "calibration", mode=mode, directory=record.path.parents[1], **named)


def test_events_are_mirrored_over_their_own_step(record, wandb):
    fake = wandb()
    record.log("before", loss=0)
    with tracker(record, tags=("rtn", "digits", "w4a8"), config={"bits": {"weight": 4}, "api_key": "s3cret"}) as run:
        record.log("unit", step=0, loss=2.0, name="text")
        record.log("unit", step=1, loss=1.0)
        record.log("timing", seconds=3)
        record.log("note", text="no number")
        run.summarize({"psnr": 31.0})
        assert run.location == "/runs/wandb/run-1"
    record.log("after", loss=0)
    (made,) = fake.runs
    wanted = {
        "id": f"{JOB}-calibration",
        "group": JOB,
        "job_type": "calibration",
        "tags": ("rtn", "digits", "w4a8"),
        "config": {"bits": {"weight": 4}, "api_key": "***"},
        "dir": str(record.path.parents[1]),
        "reinit": "create_new",
    }
    assert {name: made.arguments[name] for name in wanted} == wanted
    assert made.history == [
        {"unit/loss": 2.0, "unit/step": 0},
        {"unit/loss": 1.0, "unit/step": 1},
        {"timing/seconds": 3},
    ]
    assert made.axes == [("unit/*", "unit/step")] and made.exit_codes == [0] and made.summary == {"psnr": 31.0}
    assert [event["event"] for event in read_record(record.path)] == [
        *("before", "unit", "unit", "timing", "note", "after")
    ]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failed_job_closes_its_run_as_failed(record, wandb, error):
    fake = wandb()
    with pytest.raises(error), tracker(record):
        raise error
    assert fake.runs[0].exit_codes == [1]
    record.log("after", loss=0)
    assert fake.runs[0].history == []


@pytest.mark.parametrize("broken", ["init offline", "log", "finish"])
def test_a_dead_tracker_is_one_warning_and_the_job_goes_on(record, wandb, caplog, broken):
    fake = wandb(broken)
    with tracker(record) as run:
        for step in range(3):
            record.log("unit", step=step, loss=1.0)
        run.image("grid", Path("missing.png"))
        run.summarize({"psnr": 1.0})
    (warning,) = [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]
    assert broken in warning and "\n" not in warning and "s3cret" not in warning
    assert [event["step"] for event in read_record(record.path)] == [0, 1, 2]
    assert all(len(made.exit_codes) == 1 for made in fake.runs)


def test_without_the_package_the_job_goes_on(record, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with tracker(record):
        record.log("unit", step=0, loss=1.0)
    assert len(caplog.records) == 1 and len(read_record(record.path)) == 1


def test_unreachable_online_falls_back_to_offline(record, wandb, caplog):
    fake = wandb("init online")
    with tracker(record, "auto") as run:
        assert run.mode == "offline"
        record.log("unit", step=0, loss=1.0)
    assert [made.arguments["mode"] for made in fake.runs] == ["offline"] and len(fake.runs[0].history) == 1
    assert [entry.levelname for entry in caplog.records if entry.levelno >= logging.WARNING] == ["WARNING"]


def test_online_without_a_key_does_not_ask_for_one(record, wandb, monkeypatch, tmp_path):
    fake = wandb()
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with tracker(record, "online"):
        pass
    assert [made.arguments["mode"] for made in fake.runs] == ["offline"]


def test_disabled_does_not_import_wandb(tmp_path):
    done = in_fresh_process(
        """
        import sys
        from pathlib import Path
        from dmqbench.tracking import Record, Tracker
        with Record.of_job(Path(sys.argv[1]), "job") as record:
            with Tracker(record, "evaluation", mode="disabled", directory=Path(sys.argv[1])) as tracker:
                record.log("unit", step=0, loss=1.0)
                tracker.summarize({"psnr": 1.0})
                tracker.image("grid", Path("missing.png"))
        assert "wandb" not in sys.modules and "torch" not in sys.modules
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["job.jsonl", "records"]


OFFLINE_RUNS = """
    import sys
    from pathlib import Path
    from dmqbench.tracking import Record, Tracker
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
    done = in_fresh_process(OFFLINE_RUNS, tmp_path)
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
