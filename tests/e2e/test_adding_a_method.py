"""Adding a method is one file and one YAML: what CONTRIBUTING.md shows, done by a test."""

import json

from e2e.commands import SMALL

import dmqbench.methods
from dmqbench.config.compose import compose, search_path
from dmqbench.config.job import make_job
from dmqbench.tasks.run import carry_out as run_job

METHOD = '''
from dataclasses import dataclass

import torch

from dmqbench.calibration.stage import Stage, StageFactory
from dmqbench.stages.ranges import ActivationRange, WeightRange
from dmqbench.quant.layers import quant_layers


@dataclass(frozen=True)
class Settings:
    strength: float


class Nudge(Stage):
    """Widen every weight scale by a factor."""

    name = "nudge"
    weights_only = True
    settings_type = Settings

    def units(self):
        return ("all",)

    def iterations(self, unit):
        return 1

    @torch.no_grad()
    def iterate(self, unit, iteration):
        for layer in quant_layers(self.bench.network).values():
            layer.weight_quantizer.scale.mul_(1 + self.settings.strength)


STAGES: dict[str, StageFactory] = {"weight_range": WeightRange, "nudge": Nudge, "activation_range": ActivationRange}
'''
YAML = """
defaults:
  - /stage/weight_range@weight_range
  - /stage/activation_range@activation_range
  - _self_

name: mine
stages: [weight_range, nudge, activation_range]
faithful: false
path: null
calibration: common
ranges: shared
paper_scope: {first_last: false, embedding: false, attention: false, split: true}
nudge:
  version: 1
  uses: [weight]
  not_in_id: []
  strength: 0.1
  limits:
    bounds: {strength: [0, null]}
"""


def test_a_method_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "mine.yaml").write_text(YAML)
    (tmp_path / "mine.py").write_text(METHOD)
    monkeypatch.setattr(dmqbench.methods, "__path__", [*dmqbench.methods.__path__, str(tmp_path)])
    common = [*search_path([str(tmp_path / "conf")]), *SMALL, f"store.root={tmp_path / 'runs'}", "bits=w4a8"]
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
