import itertools
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import REPOSITORY, in_fresh_process

from dmqbench.tracking.record import About, Reader, Record, abouts_of, curve, exit_code, read_record, redact

JOB = "0123456789abcdef"


@pytest.fixture
def record(tmp_path):
    with Record.of_job(tmp_path, JOB) as opened:
        yield opened


def test_events_are_read_back_in_order(tmp_path, record):
    assert read_record(record.path) == [] and not record.path.exists()
    record.log("unit", step=0, loss=0.5, name="mid_block")
    record.log("finished", seconds=2)
    assert record.path == tmp_path / "records" / f"{JOB}.jsonl"
    first, second = read_record(record.path)
    assert first.pop("time") <= second.pop("time")
    frame = {"job": JOB, "part": None}
    assert first == {**frame, "event": "unit", "step": 0, "loss": 0.5, "name": "mid_block"}
    assert second == {**frame, "event": "finished", "step": None, "seconds": 2}


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
        from dmqbench.tracking.record import Record
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
        from dmqbench.tracking.record import Record
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


class Follower:
    """Reads the record whenever it is told to."""

    part = "evaluation"

    def __init__(self, record: Record) -> None:
        self.reader, self.seen = Reader(record.path), []

    def follow(self) -> None:
        self.seen += self.reader.new()


def test_events_belong_to_the_part_that_is_mirrored_meanwhile(record):
    record.log("before")
    follower = Follower(record)
    record.attach(follower)
    with pytest.raises(ValueError, match=r"evaluation .* is still being mirrored"):
        record.attach(Follower(record))
    record.log("during", loss=1)
    record.detach()
    record.log("after")
    parts = [(event["event"], event["part"]) for event in read_record(record.path)]
    assert parts == [("before", None), ("during", "evaluation"), ("after", None)]
    assert [event["event"] for event in follower.seen] == ["before", "during"]


@given(st.lists(st.integers(1, 40), max_size=60))
def test_a_reader_gives_every_whole_line_once_however_the_file_grows(tmp_path_factory, sizes):
    path = tmp_path_factory.mktemp("growing") / "job.jsonl"
    content = b"".join(b'{"event": "%d"}\n' % number for number in range(30)) + b'{"event": "torn'
    reader, seen, start = Reader(path), [], 0
    assert reader.new() == []
    with open(path, "ab") as file:
        for end in [*itertools.accumulate(sizes), len(content)]:
            file.write(content[start:end])
            file.flush()
            start = max(start, end)
            seen += reader.new()
    reader.close()
    assert [event["event"] for event in seen] == [str(number) for number in range(30)]


def test_names_of_lines_are_no_secrets(record):
    record.log("curve", **curve("loss/stage", "iteration", [0, 9], {"attn.key": [2.0, 1.0], "token_embed": [3.0]}))
    (event,) = read_record(record.path)
    assert event["lines"] == [
        {"name": "attn.key", "values": [2.0, 1.0]},
        {"name": "token_embed", "values": [3.0]},
    ]


def test_a_record_says_which_runs_it_describes(record):
    assert abouts_of(record.path) == []
    record.log("job", config={"seed": 0}, ids={"result": JOB}, tags=["old"])
    record.log("job", config={"seed": 1}, ids={"result": JOB}, tags=["rtn", "digits", "w4a8"])
    assert abouts_of(record.path) == []
    record.attach(Follower(record))
    record.log("metrics", psnr=1.0)
    about = About(JOB, "evaluation", ("rtn", "digits", "w4a8"), {"seed": 1}, {"result": JOB})
    assert abouts_of(record.path) == [about]
    assert exit_code(record.path, "evaluation") == 1
    record.log("end", exit_code=0)
    assert exit_code(record.path, "evaluation") == 0
