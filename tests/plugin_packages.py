"""Plug-in packages for tests: a package and the metadata that pip would write, in a folder for ``sys.path``."""

import importlib
import textwrap
from collections.abc import Mapping
from pathlib import Path

from dmqbench.config import plugin_code, plugins

METHOD_YAML = """
defaults:
  - /stage/weight_range@weight_range
  - /stage/activation_range@activation_range
  - _self_

name: {name}
stages: [weight_range, nudge, activation_range]
faithful: false
path: null
calibration: common
ranges: shared
paper_scope: {{first_last: false, embedding: false, attention: false, split: true}}
nudge: {{version: 1, uses: [weight], not_in_id: [], strength: 0.5}}
"""


def install(place: Path, package: str, files: Mapping[str, str], version: str = "1.0") -> Path:
    """Write ``package`` with ``files`` and what declares it as a plug-in of its own name; return its folder."""
    for name, text in {"__init__.py": "", **files}.items():
        path = place / package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    about = place / f"{package}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: {version}\n")
    (about / "entry_points.txt").write_text(f"[dmqbench.plugins]\n{package} = {package}\n")
    return place / package


def forget_plugins() -> None:
    """Let plug-ins be looked for again, as by a process that starts now."""
    importlib.invalidate_caches()
    for cached in (plugins.plugins, plugins._metric, plugin_code.plugin_sources):
        cached.cache_clear()


def the_one() -> plugins.Plugin:
    """The plug-in that is installed, as a process that starts now would see it."""
    forget_plugins()
    (plugin,) = plugins.plugins()
    return plugin


STAGE = '''
from dataclasses import dataclass

import torch

from dmqbench.calibration.stage import Stage
from dmqbench.quant.layers import quant_layers


@dataclass(frozen=True)
class Settings:
    strength: float


class Nudge(Stage):
    """Change every weight scale."""

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
            layer.weight_quantizer.scale.{formula}
'''

MODULE = """
from dmqbench.stages.ranges import ActivationRange, WeightRange
from {where} import Nudge

STAGES = {{"weight_range": WeightRange, "nudge": Nudge, "activation_range": ActivationRange}}
"""


METRIC = """
import torch

from dmqbench.eval.paired import PairedMetric


def contrast(images, reference):
    return (images.double().flatten(1).std(dim=1).{formula}(2)).tolist()


METRIC = PairedMetric("contrast", True, "images", "mine", contrast)
"""


def method_package(place: Path, package: str, formula: str, where: str = "stages.nudge") -> Path:
    """A plug-in with a metric and ``method=mine``, whose stage ``nudge`` does ``formula`` to every weight scale."""
    files = {
        "conf/metric/contrast.yaml": "version: 1\nover: pairs\n",
        "metrics/contrast.py": METRIC.format(formula=formula.partition("_")[0]),
        "conf/method/mine.yaml": METHOD_YAML.format(name="mine"),
        "methods/mine.py": MODULE.format(where=f"{package}.{where}"),
        f"{where.replace('.', '/')}.py": STAGE.format(formula=formula),
    }
    return install(place, package, files)
