"""How far scales may move under ``budget=quick``: chosen by the held-out errors of the layers on the validation stream.

Each point learns on ``cal`` and compares the layers' output errors on ``val`` with those without scaling; it takes
about a minute on one core.

Run: python -m benchmarks.tuning_scaling
"""

import copy
import math

import torch

from benchmarks.common import Silent
from dmqbench.data.bank import TrajectoryBank, follow
from dmqbench.methods.base import Workbench, run_stage
from dmqbench.methods.equivalent_scaling import EquivalentScaling
from dmqbench.models.adapter import load_adapter
from dmqbench.models.folders import ModelSource
from dmqbench.quant.layers import quantize_layers_
from dmqbench.quant.plan import uniform_plan
from dmqbench.quant.spec import BitWidth, Scope, StepGroups
from dmqbench.samplers.plan import build_plan
from dmqbench.samplers.spec import SamplerSpec

BITS = BitWidth(4, 4)
POINTS = ((100, 1.0), (100, 3.0), (100, 6.0), (50, 3.0))
"""(iterations, travel)."""

SETTINGS = {
    **{"batch": 32, "samples": 512, "ranges": "batch", "zero_in_range": True, "patience": 0, "schedule": "joint"},
    **{"weighting": "uniform", "strength": 20.0, "momentum": 0.95, "bins": 0, "bin_error": "mean", "memory_mib": 512},
}


def main() -> None:
    torch.set_num_threads(1)
    adapter = load_adapter(ModelSource("embedded", "digits", classes=10))
    plan, topology, network = build_plan(SamplerSpec("ddim", 20), adapter.schedule), adapter.topology(), adapter.network
    bank = TrajectoryBank(
        follow(adapter, plan, stream="cal", seed=0, indices=range(64), guidance=1.0),
        follow(adapter, plan, stream="val", seed=0, indices=range(16), guidance=1.0),
        seed=0,
    )
    steps = StepGroups.per_step(plan.network_calls)
    print("| iterations | travel | held-out error left | layers made worse |\n|---|---|---|---|", flush=True)
    for iterations, travel in POINTS:
        adapter.network = copy.deepcopy(network)
        quantize_layers_(adapter.network, uniform_plan(topology.layers, BITS, Scope()), adapter.context, steps)
        bench = Workbench(adapter, topology, bank, plan, 1.0, steps, 0, Silent())
        stage = EquivalentScaling(bench, iterations=iterations, travel=travel, **SETTINGS)
        run_stage(stage, "cpu", [])
        layers = stage.findings()["layers"].values()
        left = [layer["held_out_error"] / layer["held_out_error_before"] for layer in layers]
        mean = math.exp(sum(map(math.log, left)) / len(left))
        print(f"| {iterations} | {travel:g} | {mean:.3f} | {sum(one > 1 for one in left)} of {len(left)} |", flush=True)


if __name__ == "__main__":
    main()
