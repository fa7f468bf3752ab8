"""What README shows is run, at sizes that take seconds: commands in their order over one store, and the script."""

import re
import shlex
from functools import partial

import pytest
from docs.test_readme import README, ROOT, blocks, commands
from e2e.commands import FEW, dmqbench
from served import TINY, pipeline
from tiny import save_pipeline, smallest_unet

from dmqbench import api, doctor, report
from dmqbench.results.plots import anatomy as pictures

LADDER = ROOT / "dmqbench" / "zoo" / "weights" / "ladder_1"
SIZES = (*FEW, "sampler.steps=3", "budget.trajectories=4", "budget.validation=2", "metrics.names=[psnr]")
MAKE = (ROOT / "Makefile").read_text()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return tmp_path_factory.mktemp("readme") / "runs"


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Overrides of a network with few layers, for commands that do not say which."""
    folder = save_pipeline(tmp_path_factory.mktemp("readme") / "model", smallest_unet())
    return ["model=local", f"model.path={folder}", "model.classes=10"]


@pytest.mark.parametrize("words", commands(README), ids=shlex.join)
def test_every_command_runs(words, results, network, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pictures, "save", lambda figure, path: path.touch() or path)  # an anatomy's take longest of all
    program, *rest = words
    if program == "make":
        assert all(re.search(rf"(?m)^{target}:", MAKE) for target in rest)
    elif program == "pip":  # what make does, but for the extra
        assert "install" in MAKE and f"{' '.join(rest[1:4])} '" in MAKE.replace("$(INSTALL)", "-c constraints.txt")
    elif "+sweeps=demo" in rest:
        assert f"dmqbench {' '.join(rest)} " in MAKE
    elif program == "dmqbench":
        model = [] if any(word.startswith("model=") for word in rest) else network
        given = [word.replace("FOLDER", str(LADDER)).replace("w8a8,", "") for word in rest if word != "-m"]
        status, output, errors = dmqbench(results, *SIZES, *model, *given, *{"-m"}.intersection(rest))
        assert status == 0 and output, errors
    elif program == "dmqbench-report":
        assert report.main([*rest, str(results)]) == 0
        assert "rtn" in capsys.readouterr().out and (results / "report.html").is_file()
    else:
        assert (program, rest) == ("dmqbench-doctor", [])
        assert doctor.main([]) == 0 and "Nothing that a job needs is broken." in capsys.readouterr().out


def test_the_script_runs(tmp_path, monkeypatch):
    [script] = blocks(README, "python")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api, "quantize_", partial(api.quantize_, overrides=TINY, store=tmp_path / "runs"))
    known = {"pipe": pipeline()}
    exec(script, known)
    assert len(known["images"]) == 1 and (tmp_path / "folder").is_dir()
