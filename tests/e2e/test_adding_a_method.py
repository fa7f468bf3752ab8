"""Adding a method is one file and one YAML: what CONTRIBUTING.md shows, done by a test."""

import json
import re
import sys
import textwrap
from pathlib import Path

import torch
from e2e.commands import TINY
from safetensors.torch import load_file

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


def test_a_method_of_ones_own(tmp_path, monkeypatch, request):
    # Or the name would be known to tests that come later in this process.
    request.addfinalizer(lambda: sys.modules.pop("dmqbench.methods.mine", None))
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "mine.yaml").write_text(shown("yaml"))
    (tmp_path / "mine.py").write_text(shown("python"))
    monkeypatch.setattr(dmqbench.methods, "__path__", [*dmqbench.methods.__path__, str(tmp_path)])
    common = [*search_path([str(tmp_path / "conf")]), *TINY, f"store.root={tmp_path / 'runs'}", "bits=w4a8"]
    store, psnr = tmp_path / "runs", set()
    for strength in (None, 0.5, 2.0):
        own = ["method=rtn"] if strength is None else ["method=mine", f"method.nudge.strength={strength}"]
        folder = run_job(make_job(compose([*common, *own])))
        result = json.loads((folder / "result.json").read_text())
        psnr.add(result["metrics"]["psnr"]["value"])
        stages = dict(result["artifacts"]["stages"])
        if strength is not None:
            before, after = (
                load_file(store / "quantized" / stages[stage] / "state.safetensors")
                for stage in ("weight_range", "nudge")
            )
            scales = [name for name in before if "weight" in name and name.endswith("scale")]
            assert scales
            for name in scales:
                torch.testing.assert_close(after[name], before[name] * (1 + strength))
    assert len(psnr) == 3
    # The trajectories, the full-precision samples and the first stage are shared.
    assert len(list((tmp_path / "runs" / "trajectories").iterdir())) == 1
    assert len(list((tmp_path / "runs" / "quantized").iterdir())) == 1 + 1 + 2 * 2
