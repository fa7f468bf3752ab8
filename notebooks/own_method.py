# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A method of your own
#
# A method is a list of stages. Here is one with a stage of its own, in a package of its
# own: one file, one YAML, and an entry point by which `dmqbench` finds them. Nothing in
# this repository is changed, and the new method stands in the same table as the others.
#
# The package is written into a folder that is thrown away; yours would be a repository.

# %%
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from IPython.display import Markdown, display

from dmqbench.results.compare import compare
from dmqbench.results.formats import load_results
from dmqbench.results.markdown import markdown
from dmqbench.results.sheets import sheet_of
from dmqbench.results.tables import comparable_tables

os.chdir(tempfile.mkdtemp())


def write(name: str, text: str = "") -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)


write("narrow/__init__.py")
write("narrow/methods/__init__.py")

# %% [markdown]
# ## The stage
#
# Rounding to nearest chooses the range of a weight by the error of the weight. This stage
# goes through the layers afterwards and narrows the ranges of each to the share after which
# the *network's output* errs least. `bench` has what a stage works on: the network, full
# precision's trajectories, and what the network predicted along them.

# %%
# %%writefile narrow/methods/narrow.py
from dataclasses import dataclass

import torch

from dmqbench.calibration.stage import Stage
from dmqbench.quant.layers import quant_layers, quantization
from dmqbench.quant.quantizer import WeightQuantizer
from dmqbench.stages.ranges import ActivationRange, WeightRange


@dataclass(frozen=True)
class Settings:
    points: int
    """Inputs of the network, spread over the sampler's steps, on which it is compared."""
    least: float
    """The smallest share of a range that is tried; the largest is all of it."""


class NarrowRanges(Stage):
    """Narrow the weight ranges of each layer until the network's output errs least."""

    name = "narrow_ranges"
    weights_only = True
    settings_type = Settings
    settings: Settings

    def quantizers(self) -> dict[str, WeightQuantizer]:
        layers = quant_layers(self.bench.network)
        found = {name: layer.weight_quantizer for name, layer in layers.items()}
        return {name: quantizer for name, quantizer in found.items() if quantizer}

    def units(self) -> tuple[str, ...]:  # a killed job goes on at the first unfinished one
        return tuple(self.quantizers())

    def iterations(self, unit: str) -> int:
        return 1

    @torch.no_grad()
    def iterate(self, unit: str, iteration: int) -> torch.Tensor:
        scale = self.quantizers()[unit].scale
        whole, errors = scale.clone(), {}
        for share in torch.linspace(1, self.settings.least, 5).tolist():
            scale.copy_(whole * share)
            errors[share] = self.error()
        best = min(errors, key=errors.__getitem__)
        scale.copy_(whole * best)
        return errors[best]

    def error(self) -> torch.Tensor:
        bank = self.bench.bank.cal
        points = bank.spread(self.settings.points)
        with quantization(self.bench.network, weight=True, activation=False):
            found = self.bench.denoising.predict(bank.at(points))
        wanted = bank.output.flatten(0, 1)[points].to(found)
        return (found - wanted).square().mean()


STAGES = {
    "weight_range": WeightRange,
    "narrow_ranges": NarrowRanges,
    "activation_range": ActivationRange,
}

# %% [markdown]
# ## The YAML
#
# It is the method's schema: its keys are those of the command line, and a key that it
# lacks, a value of another type or one out of bounds is refused before anything runs.

# %%
yaml = """
defaults:
  - /stage/weight_range@weight_range
  - /stage/activation_range@activation_range
  - _self_

name: narrow
stages: [weight_range, narrow_ranges, activation_range]
faithful: false
path: null
calibration: common
ranges: shared
paper_scope: {first_last: false, embedding: false, attention: false, split: true}
narrow_ranges:
  version: 1
  uses: [weight]
  not_in_id: []
  points: 16
  least: 0.8
  limits:
    bounds: {points: [1, null], least: [0.1, 1]}
"""
write("narrow/conf/method/narrow.yaml", yaml)

# %% [markdown]
# ## The entry point
#
# `pip install` writes these two files for a `pyproject.toml` that says
#
# ```toml
# [project.entry-points."dmqbench.plugins"]
# narrow = "narrow"
# ```

# %%
about = "Metadata-Version: 2.1\nName: narrow\nVersion: 1.0\n"
write("narrow-1.0.dist-info/METADATA", about)
write("narrow-1.0.dist-info/entry_points.txt", "[dmqbench.plugins]\nnarrow = narrow\n")


def dmqbench(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the command where the package is installed."""
    path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "dmqbench.cli", *words, "store.root=runs"]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


# %% [markdown]
# What the YAML does not allow is one line:

# %%
print(dmqbench("method=narrow", "method.narrow_ranges.least=1.5").stderr)

# %% [markdown]
# ## Its row
#
# At sizes that take seconds; **they say little about the method.** What rounding to nearest
# and it have in common, trajectories and the first stage, is made once.

# %%
tiny = """
    -m method=fp,rtn,narrow bits=w4a6 model=ladder_1
    sampler.steps=6 sampler.chunk=16 tracker=disabled trainer=cpu diagnose=false
    metrics.names=[psnr,ssim] metrics.samples=32 metrics.pairs=32
    budget.trajectories=16 budget.validation=8 budget.samples=32 budget.batch=16
"""
dmqbench(*tiny.split()).check_returncode()
[table] = comparable_tables(load_results(Path("runs")))
display(Markdown(markdown(sheet_of(table, compact=False).without(["calibration"]))))

# %%
rows = {row.label: row for row in table.rows}
print(compare(rows["narrow"], rows["rtn"], "psnr").sentence)

# %% [markdown]
# The id of what a stage from outside made names its package, version and code: change the
# formula, run again, and it is computed anew; change nothing, and the store answers. A
# second method is another file in `narrow/methods/` and another YAML; models, data sets and
# metrics come the same way: [Contributing](../CONTRIBUTING.md).
