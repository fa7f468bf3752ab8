"""The command in a process of its own."""

import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from forks import forked

from dmqbench import cli
from dmqbench.config.names import TASKS
from dmqbench.config.schema import OPTION_GROUPS

ROOT = Path(__file__).parents[1]


def in_a_process(*arguments: str, cwd: Path, **more) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dmqbench.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **more},
        check=False,
    )


def test_help_names_every_group_and_needs_neither_hydra_nor_torch(tmp_path):
    code = (
        "import sys; from dmqbench.cli import main; status = main(['--help'])\n"
        "sys.exit(status or any(name in sys.modules for name in ('torch', 'hydra', 'omegaconf')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout
    for word in (*OPTION_GROUPS, *TASKS, "rtn", "w4a8", "demo", "base_"):
        assert (word in done.stdout) == (word != "base_")
    assert len(done.stdout.splitlines()) <= 40 and max(map(len, done.stdout.splitlines())) < 80


def test_the_configuration_of_a_job_is_shown_without_torch(tmp_path):
    code = (
        "import sys; from dmqbench.cli import main\n"
        "sys.argv = ['dmqbench', '--cfg', 'job', 'method=q_diffusion']\n"
        "status = main(); sys.exit(status or 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0 and "name: q_diffusion" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_of_the_real_command(tmp_path):
    done = in_a_process("method=rnt", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == "dmqbench: method=rnt is not known; nearest: rtn "
        "(allowed: accuquant, dmq, dmq_les, efficient_dm, foreign, fp, mpq_dm, q_diffusion, rtn)\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_completion_offers_options(tmp_path):
    done = in_a_process("-sc", "query=bash", cwd=tmp_path, COMP_LINE="dmqbench method=q", COMP_POINT="17")
    assert done.returncode == 0 and "method=q_diffusion" in done.stdout


def waiting(*arguments: str) -> int:
    """The command, whose jobs say that they began and wait."""

    def carry_out(job):
        print("started", flush=True)
        time.sleep(60)

    run = types.ModuleType("dmqbench.tasks.run")
    run.carry_out = carry_out  # type: ignore[attr-defined]
    sys.modules[run.__name__] = run
    return cli.main(arguments)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_with_130_within_five_seconds(tmp_path, number):
    with forked(waiting, "method=rtn", folder=tmp_path) as process:
        process.wait_for(lambda: process.output.exists() and process.output.read_text() == "started\n")
        started = time.monotonic()
        process.send(number)
        status, _, errors = process.wait(30)
    assert status == 130 and time.monotonic() - started < 5
    assert errors.splitlines()[-1].startswith("dmqbench: interrupted")
