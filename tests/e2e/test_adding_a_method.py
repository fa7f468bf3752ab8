"""Adding a method is one file and one YAML: what CONTRIBUTING.md shows, done by a test."""

import json
import re
import textwrap
from pathlib import Path

from e2e.commands import TINY

import dmqbench.methods
from dmqbench.config.compose import compose, search_path
from dmqbench.config.job import make_job
from dmqbench.tasks.run import carry_out as run_job

CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"


def shown(language: str) -> str:
    """The block of a language that CONTRIBUTING.md shows under "Adding a method"."""
    section = CONTRIBUTING.read_text().partition("## Adding a method\n")[2].partition("\n## ")[0]
    [block] = re.findall(rf"^   ```{language}\n(.*?)^   ```$", section, re.MULTILINE | re.DOTALL)
    return textwrap.dedent(block)


def test_a_method_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "mine.yaml").write_text(shown("yaml"))
    (tmp_path / "mine.py").write_text(shown("python"))
    monkeypatch.setattr(dmqbench.methods, "__path__", [*dmqbench.methods.__path__, str(tmp_path)])
    common = [*search_path([str(tmp_path / "conf")]), *TINY, f"store.root={tmp_path / 'runs'}", "bits=w4a8"]
    psnr = {}
    for name, overrides in {
        "rtn": ["method=rtn"],
        "mine": ["method=mine", "method.nudge.strength=0.5"],
        "mine, stronger": ["method=mine", "method.nudge.strength=2.0"],
    }.items():
        folder = run_job(make_job(compose([*common, *overrides])))
        psnr[name] = json.loads((folder / "result.json").read_text())["metrics"]["psnr"]["value"]
    assert len(set(psnr.values())) == 3, psnr
    assert psnr["rtn"] == max(psnr.values()), psnr
    # The trajectories, the full-precision samples and the first stage are shared.
    assert len(list((tmp_path / "runs" / "trajectories").iterdir())) == 1
    assert len(list((tmp_path / "runs" / "quantized").iterdir())) == 1 + 1 + 2 * 2
