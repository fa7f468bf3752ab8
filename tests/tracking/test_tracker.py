"""What is mirrored to a stand-in for wandb, and what becomes of a job whose tracker fails."""

import logging
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from dmqbench.tracking.record import Record, curve, read_record
from dmqbench.tracking.tracker import TABLE_ROWS, Tracker
from dmqbench.tracking.wandb_client import resolve_mode, within

JOB = "0123456789abcdef"


@pytest.fixture
def record(tmp_path):
    with Record.of_job(tmp_path, JOB) as opened:
        yield opened


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
    Image = staticmethod(lambda path, caption: (Path(path).name, caption))
    Table = staticmethod(lambda columns, data: (columns, data))
    Histogram = staticmethod(lambda np_histogram: np_histogram)

    def __init__(self, *broken: str) -> None:
        self.broken = set(broken)
        self.logins = 0
        self.runs: list[FakeRun] = []

    def setup(self, settings):
        """Nothing to set up."""

    def login(self, verify):
        self.logins += 1
        self.fail_if_broken("login")

    def init(self, **arguments):
        self.fail_if_broken("init")
        self.runs.append(FakeRun(self, arguments))
        return self.runs[-1]

    def fail_if_broken(self, call: str) -> None:
        if call in self.broken:
            raise ConnectionError(f"{call}\nfailed at https://user:s3cret@host")


class FakeRun:
    url = "https://tracker/run"
    dir = "/runs/wandb/run-1/files"
    starting_step = 0

    def __init__(self, wandb: FakeWandb, arguments: dict) -> None:
        self.wandb, self.arguments = wandb, arguments
        self.history: list[dict] = []
        self.axes: list[tuple[str, str]] = []
        self.exit_codes: list[int] = []
        self.summary: dict = {}
        self.pending = 0

    def define_metric(self, name, step_metric):
        self.axes.append((name, step_metric))

    def log(self, values, step, commit):
        self.wandb.fail_if_broken("log")
        assert step == len(self.history) and commit
        self.history.append(values)

    def status(self):
        self.pending -= 1
        return SimpleNamespace(sync_items_pending=max(0, self.pending))

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
    monkeypatch.setattr(Tracker, "_offline_until", 0.0)
    return install


def tracker(record: Record, mode: str = "offline", **named) -> Tracker:
    return Tracker(record, "calibration", mode=mode, directory=record.path.parents[1], **named)


def test_events_are_mirrored_over_their_own_step(record, wandb):
    fake = wandb()
    record.log("before", loss=0)
    config = {"bits": {"weight": 4}, "api_key": "s3cret"}
    with tracker(record, tags=("rtn", "digits", "w4a8"), config=config, ids={"result": JOB}) as run:
        record.log("unit", step=0, loss=2.0, name="text")
        record.log("unit", step=1, loss=1.0)
        record.log("timing", seconds=3)
        record.log("note", text="no number")
        record.log("curve", **curve("loss/stage", "iteration", [0, 9], {"mid": [2.0, 1.0]}))
        run.summarize({"metrics": {"psnr": {"value": 31.0}}})
        assert run.location == "/runs/wandb/run-1"
    record.log("after", loss=0)
    (made,) = fake.runs
    wanted = {
        "id": f"{JOB}-calibration",
        "group": JOB,
        "job_type": "calibration",
        "tags": ("rtn", "digits", "w4a8"),
        "config": {"bits": {"weight": 4}, "api_key": "***", "ids": {"result": JOB}},
        "dir": str(record.path.parents[1]),
        "reinit": "create_new",
    }
    assert {name: made.arguments[name] for name in wanted} == wanted
    assert made.history == [
        {"unit/loss": 2.0, "unit/step": 0},
        {"unit/loss": 1.0, "unit/step": 1},
        {"timing/seconds": 3},
        {"loss/stage/mid": 2.0, "loss/stage/iteration": 0},
        {"loss/stage/mid": 1.0, "loss/stage/iteration": 9},
    ]
    assert made.axes == [("unit/*", "unit/step"), ("loss/stage/*", "loss/stage/iteration")]
    assert made.exit_codes == [0] and made.summary == {"metrics/psnr/value": 31.0}
    events = [(event["event"], event["part"]) for event in read_record(record.path)]
    inside = ("unit", "unit", "timing", "note", "curve", "summary", "end")
    assert events == [("before", None), *((event, "calibration") for event in inside), ("after", None)]


def test_a_job_that_goes_on_mirrors_what_its_part_recorded_before(record, wandb):
    with tracker(record, "disabled"):
        record.log("unit", step=0, loss=2.0)
    fake = wandb()
    with tracker(record):
        record.log("unit", step=1, loss=1.0)
    assert [row["unit/loss"] for row in fake.runs[0].history] == [2.0, 1.0]


def test_rows_that_a_resumed_run_has_are_not_sent_again(record, wandb, monkeypatch):
    fake = wandb()
    monkeypatch.setattr(FakeRun, "starting_step", 2)
    monkeypatch.setattr(FakeRun, "log", lambda self, values, step, commit: self.history.append({step: values}))
    with tracker(record, "online"):
        for step in range(4):
            record.log("unit", step=step, loss=1.0)
    assert [next(iter(row)) for row in fake.runs[0].history] == [2, 3]
    assert fake.runs[0].arguments["resume"] == "allow"


def test_pictures_tables_and_distributions(record, wandb, tmp_path):
    fake = wandb()
    picture = tmp_path / "result" / "grid.png"
    picture.parent.mkdir()
    picture.write_bytes(b"png")
    with tracker(record) as run:
        run.image("grid", picture, "FP | quantized | difference")
        run.per_image({"psnr": [30.0, None, 31.0, 32.0], "ssim": [0.5, 0.25]})
        run.table("long", ["index"], [[index] for index in range(TABLE_ROWS + 5)])
        run.histogram("empty", [None, float("nan")])
    history = {name: value for row in fake.runs[0].history for name, value in row.items()}
    assert history["grid"] == ("grid.png", "FP | quantized | difference")
    rows = [[0, 30.0, 0.5], [1, None, 0.25], [2, 31.0, None], [3, 32.0, None]]
    assert history["per_image"] == (["index", "psnr", "ssim"], rows)
    counts, edges = history["per_image/psnr"]
    assert sum(counts) == 3 and (edges[0], edges[-1]) == (30.0, 32.0) and len(edges) == len(counts) + 1
    assert len(history["long"][1]) == TABLE_ROWS and "empty" not in history
    (image,) = [event for event in read_record(record.path) if event["event"] == "image"]
    assert image["path"] == "result/grid.png"


DIAGNOSIS = {
    "steps": {
        "local": [0.1, 0.2],
        "injected": [0.01, 0.02],
        "accumulated": [0.0, 0.1, 0.3],
        "shift": [0.0, 0.0, 0.1],
    },
    "layers": {"names": ["conv", "skip"], "skip": [False, True], "error": [[0.1, 0.3], [0.2, 0.1]]},
    "proxies": {"layer_error": -2.0, "injected_error": None, "accumulated_error": -0.5},
}


def test_the_error_over_the_steps_is_a_chart(record, wandb):
    fake = wandb()
    with tracker(record) as run:
        run.diagnosis(DIAGNOSIS)
    (made,) = fake.runs
    *steps, layers = made.history
    assert [row["error/accumulated"] for row in steps] == [0.0, 0.1, 0.3]
    assert [row["error/call"] for row in steps] == [0, 1, 2] and "error/local" not in steps[2]
    assert layers.keys() == {"layers"}
    assert made.axes == [("error/*", "error/call")]
    assert made.summary == {"proxies/layer_error": -2.0, "proxies/accumulated_error": -0.5}


@pytest.mark.parametrize("place", ["../outside.png", "link.png", "text.txt", "absent.png"])
def test_a_picture_outside_the_store_is_never_uploaded(tmp_path, wandb, caplog, place):
    fake = wandb()
    store = tmp_path / "store"
    (store / "records").mkdir(parents=True)
    for name in ("outside.png", "store/text.txt"):
        (tmp_path / name).write_bytes(b"private")
    (store / "link.png").symlink_to(tmp_path / "outside.png")
    with Record.of_job(store, JOB) as record, tracker(record) as run:
        run.image("grid", store / place)
        record.log("unit", loss=1.0)
    assert fake.runs[0].history == [{}, {"unit/loss": 1.0}]
    assert [entry.levelname for entry in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failed_job_closes_its_run_as_failed(record, wandb, error):
    fake = wandb()
    with pytest.raises(error), tracker(record):
        raise error
    assert fake.runs[0].exit_codes == [1]
    record.log("after", loss=0)
    assert fake.runs[0].history == []
    assert read_record(record.path)[0]["exit_code"] == 1


@pytest.mark.parametrize("failed", [True, False])
def test_only_a_job_that_is_done_waits_for_uploads(record, wandb, failed):
    fake = wandb()
    with pytest.raises(KeyboardInterrupt) if failed else nullcontext(), tracker(record, "online"):
        fake.runs[0].pending = 3
        if failed:
            raise KeyboardInterrupt
    assert fake.runs[0].pending == (3 if failed else 0)


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_a_dead_tracker_is_one_warning_and_the_job_goes_on(record, wandb, caplog, broken):
    fake = wandb(broken)
    with tracker(record) as run:
        for step in range(3):
            record.log("unit", step=step, loss=1.0)
        run.image("grid", Path("missing.png"))
        run.summarize({"psnr": 1.0})
    warnings = [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]
    (warning,) = [line for line in warnings if line.startswith("wandb failed")]
    assert broken in warning and "\n" not in warning and "s3cret" not in warning
    events = [event["event"] for event in read_record(record.path)]
    assert events == ["unit", "unit", "unit", "image", "summary", "end"]
    assert all(len(made.exit_codes) == 1 for made in fake.runs)


def test_without_the_package_the_job_goes_on(record, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with tracker(record):
        record.log("unit", step=0, loss=1.0)
    assert len(caplog.records) == 1 and [event["event"] for event in read_record(record.path)] == ["unit", "end"]


def test_unreachable_online_falls_back_to_offline(record, wandb, caplog):
    fake = wandb("login")
    for part in ("calibration", "evaluation"):
        with Tracker(record, part, mode="auto", directory=record.path.parents[1]) as run:
            assert run.mode == "offline"
            record.log("unit", step=0, loss=1.0)
    assert [made.arguments["mode"] for made in fake.runs] == ["offline", "offline"] and fake.logins == 1
    assert [len(made.history) for made in fake.runs] == [1, 1]
    (warning,) = [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]
    assert "recording offline" in warning and "s3cret" not in warning


def test_online_without_a_key_does_not_ask_for_one(record, wandb, monkeypatch, tmp_path):
    fake = wandb()
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with tracker(record, "online"):
        pass
    assert [made.arguments["mode"] for made in fake.runs] == ["offline"] and fake.logins == 0


def test_what_does_not_come_back_is_left_alone():
    assert within(5, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 / 0)
    never = threading.Event()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
        within(0.05, never.wait)
    never.set()
