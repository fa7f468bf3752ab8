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
# # Compare methods
#
# A run store holds what finished jobs found. Here it is read as typed objects: tables of
# what can be compared, the difference of two methods with its interval, quality against
# size, and how errors add up along the sampler.

# %%
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import Markdown, display

from dmqbench.results.compare import compare
from dmqbench.results.diagnosis import diagnosis_of
from dmqbench.results.formats import load_results
from dmqbench.results.markdown import markdown
from dmqbench.results.sheets import sheet_of
from dmqbench.results.tables import comparable_tables

# %% [markdown]
# ## The store
#
# It is your own: `DMQBENCH_RUNS`, or else `./runs`. Only if no finished job lies there,
# five tiny ones are run first, on an embedded model. Their sizes are chosen for speed:
# **what is shown below of them says nothing about the methods.**

# %%
store = Path(os.environ.get("DMQBENCH_RUNS") or "runs")
tiny = """
    -m method=fp,rtn,efficient_dm bits=w4a6,w3a6 model=ladder_1
    sampler.steps=6 sampler.chunk=16 tracker=disabled trainer=cpu
    metrics.names=[psnr,ssim] metrics.samples=32 metrics.pairs=32
    budget.trajectories=16 budget.validation=8 budget.samples=32
    budget.batch=16 budget.tuning_iterations=18
"""
if not load_results(store):
    program = [sys.executable, "-m", "dmqbench.cli"]  # or dmqbench, in a terminal
    words = [*tiny.split(), f"store.root={store}"]
    subprocess.run([*program, *words], check=True, capture_output=True)

# %% [markdown]
# ## Results
#
# A `Result` is a frozen dataclass of what `result.json` says; one that is damaged is left
# out, with a line that says why. Reading needs no torch.

# %%
results = load_results(store)
last = results[-1]
print(f"{len(results)} results; the last is {last.label} {last.bits} of {last.model}:")
for name, found in last.measurements.items():
    print(f"{name} {found.value}, 95 % interval {found.ci95}, n {found.n}")
    print(f"  {found.protocol.partition(' reference')[0]} …")

# %% [markdown]
# ## Tables
#
# Values stand in one table only if they have one protocol: the same model, sampler, scope
# and whatever else moves a number. `sheet_of` lays a table out, for Markdown, LaTeX, a
# terminal or the page.

# %%
tables = comparable_tables(results)
for table in tables:
    display(Markdown(markdown(sheet_of(table, compact=False).without(["calibration"]))))

# %% [markdown]
# ## Two methods
#
# Both start from the same noise, so their images come in pairs, and the interval of the
# difference is narrower than those of the two values. It holds for these two calibrations:
# whether others would come out in the same order is what `over_seeds` tells, of jobs with
# `seed=0,1,2`.

# %%
table = max(tables, key=lambda table: len(table.rows))
metric = table.metrics[0]
quantized = [row for row in table.rows if not row.full_precision]
labels = Counter(row.label for row in quantized)
methods = [label for label, _ in labels.most_common(2)]  # or name two of yours

for a in quantized:
    for b in quantized:
        if [a.label, b.label] == methods and (a.bits, a.seed) == (b.bits, b.seed):
            print(compare(a, b, metric).sentence)

# %% [markdown]
# ## Quality against size
#
# Size follows from the bits of the weights; intervals are 95 %, over images.

# %%
colours = {label: f"C{number}" for number, label in enumerate(labels)}
figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
for row in quantized:
    found = row.measurements.get(metric)
    if found is None or found.value is None or row.size_mib is None:
        continue
    low, high = found.ci95 or (found.value, found.value)
    at = row.size_mib, found.value
    bars = [[max(0, found.value - low)], [max(0, high - found.value)]]
    axes.errorbar(*at, bars, fmt="o", capsize=3, c=colours[row.label], label=row.label)
    axes.annotate(f"  {row.bits}", at, fontsize=8)
handles, names = axes.get_legend_handles_labels()
named = dict(zip(names, handles, strict=True))  # each method once
axes.legend(named.values(), named.keys())
axes.set(xlabel="size, MiB", ylabel=metric)
axes.margins(x=0.2)
plt.show()

# %% [markdown]
# ## Error along the sampler
#
# Every job that was not run with `diagnose=false` keeps how far its states are from those
# of full precision after each network call, from the same noise.

# %%
figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
for row in quantized[:10]:
    diagnosis = diagnosis_of(row)
    if isinstance(diagnosis, str):
        print(f"{row.label} {row.bits}: {diagnosis}")
        continue
    calls, errors = zip(*enumerate(diagnosis["steps"]["accumulated"]), strict=True)
    style = "-" if row.bits == quantized[0].bits else "--"
    name = f"{row.label} {row.bits}"
    axes.semilogy(calls[1:], errors[1:], style, c=colours[row.label], label=name)
axes.set(xlabel="network calls", ylabel="mean squared error of the state")
axes.legend()
plt.show()
