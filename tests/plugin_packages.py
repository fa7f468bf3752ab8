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


FAMILY = """
from dataclasses import dataclass

from dmqbench.models.config_values import COUNT
from dmqbench.models.families.family import Family


@dataclass(frozen=True)
class Tiles(Family):
    network = "TileNet"
    timestep = "when"
    blocks = ("Tile",)
    kinds = {"in_channels": COUNT, "sample_size": COUNT, "width": COUNT, "labels": COUNT}

    @classmethod
    def network_class(cls):
        from PACKAGE.networks import TileNet

        return TileNet

    @property
    def label_entries(self):
        return self.required("labels") + 1

    @property
    def classes(self):
        return self.required("labels")

    def arguments(self, x, timestep, cond):
        return (x, timestep), {"whose": cond["class_labels"]}

    def prediction(self, output, x):
        return output.sample
"""
"""Of a package that is called PACKAGE."""

NETWORK = """
from types import SimpleNamespace

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn


class Tile(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1)

    def forward(self, x, told):
        return x + self.second(torch.relu(self.first(x) + told[:, :, None, None]))


class TileNet(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, in_channels=1, sample_size=8, width=8, labels=3):
        super().__init__()
        self.enter, self.leave = nn.Conv2d(in_channels, width, 1), nn.Conv2d(width, in_channels, 1)
        self.table, self.tiles = nn.Embedding(labels + 1, width), nn.ModuleList([Tile(width), Tile(width)])

    def forward(self, picture, when, whose=None):
        when = torch.as_tensor(when).reshape(-1).expand(len(picture))
        whose = torch.zeros_like(when, dtype=torch.long) if whose is None else whose
        told, x = self.table(whose) + when[:, None].to(picture) / 1000, self.enter(picture)
        for tile in self.tiles:
            x = tile(x, told)
        return SimpleNamespace(sample=self.leave(x))
"""
"""Of a class of its own, with its own words for time and label, and blocks that nobody knows."""


def family_package(place: Path, package: str, version: str = "1.0") -> Path:
    """A plug-in with a family of networks of its own, ``TileNet``."""
    files = {
        "conf/bits/w5a7.yaml": "defaults: [base_bits, _self_]\nweight: 5\nactivation: 7\n",
        "families/tiles.py": FAMILY.replace("PACKAGE", package),
        "networks.py": NETWORK,
    }
    return install(place, package, files, version)
