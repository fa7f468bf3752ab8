"""Processes that make artifacts are killed at random instants and at every operation on the disk."""

import importlib.util
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import dmqbench
from dmqbench.store.artifacts import Store

WORKER = Path(__file__).with_name("store_worker.py")
KILLS = 20
ENDLESS = 1_000_000


def load_worker():
    specification = importlib.util.spec_from_file_location("store_worker", WORKER)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


worker = load_worker()


def start(*arguments: object) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(Path(dmqbench.__file__).parents[1])}
    command = [sys.executable, str(WORKER), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def ledger_entries(ledger: Path) -> set[tuple[str, ...]]:
    """Complete lines: what its maker knew to be finished before it was killed."""
    text = ledger.read_text() if ledger.exists() else ""
    return {tuple(line.split()) for line in text.splitlines(keepends=True) if line.endswith("\n")}


def assert_finished(root: Path, finished: set[tuple[str, ...]]) -> None:
    store = Store(root)
    for kind, id in finished:
        found = {name: path.read_bytes() for name, path in store.verified_files(kind, id).items()}
        assert found == worker.expected(kind, id), (kind, id)


def leftovers(root: Path) -> list[Path]:
    return [path for pattern in (".tmp-*", ".next", "*.lock") for path in root.rglob(pattern)]


def test_killed_at_random_instants_nothing_is_wrong_and_nothing_finished_is_lost(tmp_path):
    root, ledger, chance = tmp_path / "runs", tmp_path / "ledger", random.Random(20)
    for number in range(KILLS):
        wanted = len(ledger_entries(ledger)) + chance.randint(1, 4)
        process = start("work", root, ledger, number, ENDLESS)
        deadline = time.monotonic() + 20
        while len(ledger_entries(ledger)) < wanted and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.02))
        assert process.poll() is None, process.communicate()
        kill(process)
        finished = ledger_entries(ledger)
        assert len(finished) >= wanted
        assert_finished(root, finished)
        for kind in worker.MAKE:
            for id in Store(root).ids(kind):
                worker.check_nothing_is_wrong(root, kind, id)
    numbers = len(Store(root).ids("quantized")) + KILLS
    finish(start("work", root, ledger, 0, numbers))
    assert_finished(root, set(worker.jobs(0, numbers)))
    assert not (root / ".aside").exists() and leftovers(root) == []


@pytest.mark.parametrize(("kind", "least"), [("quantized", 15), ("samples", 30), ("result", 30)])
def test_killed_before_any_operation_on_the_disk_it_can_be_finished(tmp_path, kind, least):
    assert int(finish(start("crash", kind, tmp_path))) >= least


def test_two_processes_make_the_same_artifacts_at_once(tmp_path):
    root = tmp_path / "runs"
    both = [start("work", root, tmp_path / f"ledger-{number}", 0, 12) for number in range(2)]
    for process in both:
        finish(process)
    assert_finished(root, set(worker.jobs(0, 12)))
    assert not (root / ".aside").exists() and leftovers(root) == []


def test_a_kill_releases_the_lock(tmp_path):
    holder = start("hold", tmp_path)
    assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
    messages: list[str] = []
    entered = threading.Event()

    def wait() -> None:
        with Store(tmp_path).lock("quantized", worker.artifact_id(0), on_wait=messages.append):
            entered.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert not entered.wait(0.2)
    kill(holder)
    assert entered.wait(5)
    waiter.join()
    assert messages == [f"waiting for another job that makes quantized {worker.artifact_id(0)}"]
