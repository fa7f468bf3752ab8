"""Jobs in several processes: each of them says what is left of all, and none draws bars over another's."""

import time
from types import SimpleNamespace

import pytest

from dmqbench import cli
from dmqbench.launch import expected, launcher
from dmqbench.tracking.progress import Course


def test_what_is_left_is_what_the_store_lacks(monkeypatch, capsys):
    planned = [SimpleNamespace(job=SimpleNamespace(title=title)) for title in ("fp", "rtn", "dmq")]
    monkeypatch.setattr(launcher, "attempt", lambda one: launcher.Outcome(one.job.title))
    monkeypatch.setattr(expected, "expected_work", lambda jobs: [0.0, 10.0, 30.0])
    monkeypatch.setattr(Course, "running", None)
    assert launcher.run_one(planned, [30.0, 20.0, 30.0], time.time() - 40, 2).path == "dmq"
    assert capsys.readouterr().err == "dmqbench: 3 of 3: dmq; about 40 s left\n"
    assert Course.running is not None and Course.running.shared and Course.running.bars is None


def test_a_shared_terminal_gets_no_bars(monkeypatch):
    monkeypatch.setattr("dmqbench.tracking.progress._bars", lambda console: SimpleNamespace(stop=lambda: None))
    assert Course([1.0]).bars is not None and Course([1.0], shared=True).bars is None


@pytest.mark.slow  # three processes that each import torch
def test_two_processes_do_the_jobs_of_one_command(tmp_path, capfd):
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "task=plan", "method=rtn", "bits=w8a8,w4a6", "-m"]
    assert cli.main([f"store.root={tmp_path}", *words]) == 0
    told = capfd.readouterr()
    assert {line for line in told.err.splitlines() if " of 2: " in line} == {
        "dmqbench: 1 of 2: rtn digits w8a8",
        "dmqbench: 2 of 2: rtn digits w4a6",
    }
    assert told.out.count("floor of another seed") == 2
