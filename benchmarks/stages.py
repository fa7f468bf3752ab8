"""What Lightning costs per inner iteration of a calibration stage, against a bare loop over the same iterations.

Run: python -m benchmarks.stages
"""

import tempfile
import time
from pathlib import Path

import torch

from benchmarks.common import Silent
from dmqbench.calibration.checkpoint import UnitCheckpoint
from dmqbench.calibration.run import run_stage
from dmqbench.calibration.stage import Workbench
from dmqbench.data.bank import TrajectoryBank
from dmqbench.models.adapter import load_adapter
from dmqbench.models.folders import ModelSource
from dmqbench.models.rollout import Denoising
from dmqbench.quant.layers import quantize_layers_
from dmqbench.quant.plan import uniform_plan
from dmqbench.quant.spec import BitWidth, Scope, StepGroups
from dmqbench.samplers.plan import build_plan
from dmqbench.samplers.spec import SamplerSpec
from dmqbench.stages.ranges import WeightRange
from dmqbench.stages.reconstruction import WeightReconstruction

ITERATIONS = 60
SETTINGS = {
    "iterations": ITERATIONS,
    "batch": 32,
    "learning_rate": 0.03,
    "samples": 64,
    "capture_mib": 512,
    "regularization": 0.01,
    "warmup": 0.2,
    "beta_start": 20.0,
    "beta_end": 2.0,
}


def workbench() -> Workbench:
    adapter = load_adapter(ModelSource("embedded", "digits", classes=10))
    plan = build_plan(SamplerSpec("ddim", 20), adapter.schedule)
    topology = adapter.topology()
    denoising = Denoising(adapter, plan)
    bank = TrajectoryBank(
        denoising.follow(stream="cal", seed=0, indices=range(16)),
        denoising.follow(stream="val", seed=0, indices=range(8)),
        seed=0,
    )
    layers = uniform_plan(topology.layers, BitWidth(4, 32), Scope())
    quantize_layers_(adapter.network, layers, adapter.context)
    return Workbench(denoising, topology, bank, StepGroups.shared(), 0, Silent())


def through_lightning(bench: Workbench) -> float:
    """Seconds of the stage as a job runs it, checkpoints included."""
    with tempfile.TemporaryDirectory() as folder:
        stage = WeightReconstruction.of(bench, **SETTINGS)
        started = time.perf_counter()
        run_stage(stage, "cpu", [UnitCheckpoint(Path(folder) / "checkpoint")])
        return time.perf_counter() - started


def bare(bench: Workbench) -> float:
    """Seconds of the same units and iterations in two nested loops."""
    stage = WeightReconstruction.of(bench, **SETTINGS)
    started = time.perf_counter()
    for unit in stage.units():
        stage.start_unit(unit)
        for iteration in range(stage.iterations(unit)):
            stage.iterate(unit, iteration)
        stage.finish_unit(unit)
    return time.perf_counter() - started


def main() -> None:
    torch.set_num_threads(1)
    bench = workbench()

    def fresh() -> None:
        run_stage(WeightRange.of(bench, observer="mse", candidates=80, exponent=2.4), "cpu", [])

    seconds = {}
    for name, run in (("bare loop", bare), ("Lightning", through_lightning)):
        fresh()
        seconds[name] = run(bench)
    fresh()
    count = ITERATIONS * len(WeightReconstruction.of(bench, **SETTINGS).units())
    print(f"| {count} iterations of weight_reconstruction, one thread | s | × bare loop |\n|---|---|---|")
    for name, value in seconds.items():
        print(f"| {name} | {value:.1f} | {value / seconds['bare loop']:.3f} |")
    extra = (seconds["Lightning"] - seconds["bare loop"]) / count
    print(f"\nLightning and the checkpoints after units cost {1000 * extra:.2f} ms an iteration")


if __name__ == "__main__":
    main()
