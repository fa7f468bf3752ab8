"""Learned equivalent scaling: time to a held-out error, all layers together against one after another; peak memory.

Run: python -m benchmarks.equivalent_scaling
"""

import itertools
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor

import torch

from benchmarks.common import Silent
from dmqbench.data.bank import TrajectoryBank, follow
from dmqbench.methods.base import Workbench
from dmqbench.methods.equivalent_scaling import EquivalentScaling
from dmqbench.methods.layer_views import LayerBatch
from dmqbench.methods.scaling_findings import HeldOutFacts
from dmqbench.models.adapter import load_adapter
from dmqbench.models.folders import ModelSource
from dmqbench.quant.layers import quantize_layers_
from dmqbench.quant.plan import uniform_plan
from dmqbench.quant.spec import BitWidth, Scope, StepGroups
from dmqbench.samplers.plan import build_plan
from dmqbench.samplers.spec import SamplerSpec

SETTINGS = {
    "iterations": 100,
    "batch": 32,
    "samples": 512,
    "travel": 6.0,
    "ranges": "batch",
    "zero_in_range": True,
    "weighting": "adaptive",
    "strength": 20.0,
    "momentum": 0.95,
    "bins": 0,
    "bin_error": "mean",
    "patience": 0,
    "memory_mib": 512,
}
"""Those of ``budget=quick``."""

SHARES = (0.5, 0.75, 0.9, 1.0)
"""Of the drop of the error that both schedules reach in the end."""

PAPER_SAMPLES = 5120
MEMORY_ITERATIONS = 4
MIB = 2**20


def workbench(trajectories: int = 64) -> Workbench:
    adapter = load_adapter(ModelSource("embedded", "digits", classes=10))
    plan = build_plan(SamplerSpec("ddim", 20), adapter.schedule)
    topology, steps = adapter.topology(), StepGroups.per_step(plan.network_calls)
    bank = TrajectoryBank(
        follow(adapter, plan, stream="cal", seed=0, indices=range(trajectories), guidance=1.0),
        follow(adapter, plan, stream="val", seed=0, indices=range(16), guidance=1.0),
        seed=0,
    )
    quantize_layers_(adapter.network, uniform_plan(topology.layers, BitWidth(4, 4), Scope()), adapter.context, steps)
    return Workbench(adapter, topology, bank, plan, 1.0, steps, 0, Silent())


# ---- time to quality


def held_out_ratios(stage: EquivalentScaling, names: list[str]) -> dict[str, float]:
    """Each layer's held-out error over the one without scaling."""
    facts = {name: HeldOutFacts(stage.learners[name]) for name in names}
    stage.views.show_all(lambda name, batch: facts[name].add(batch), "val", names)
    pairs = {name: torch.cat(found.errors, dim=1).mean(1).tolist() for name, found in facts.items()}
    return {name: after / before for name, (before, after) in pairs.items()}


def quality_over_time(bench: Workbench, schedule: str) -> list[tuple[float, float]]:
    """(seconds, mean held-out ratio over layers) after every unit; looking at the error is not timed."""
    stage = EquivalentScaling(bench, **SETTINGS, schedule=schedule)
    for learner in stage.learners.values():
        learner.scale.fill_(1.0)
    ratios = dict.fromkeys(stage.learners, 1.0)
    seconds, points = 0.0, [(0.0, 1.0)]
    for unit in stage.units():
        started = time.perf_counter()
        stage.start_unit(unit)
        for iteration in range(stage.iterations(unit)):
            stage.iterate(unit, iteration)
        stage.finish_unit(unit)
        seconds += time.perf_counter() - started
        ratios |= held_out_ratios(stage, [unit] if schedule == "cached" else list(ratios))
        points.append((seconds, sum(ratios.values()) / len(ratios)))
    return points


def seconds_to(points: list[tuple[float, float]], ratio: float) -> float:
    """When a ratio was first reached, linearly between looks."""
    for (before, higher), (after, lower) in itertools.pairwise(points):
        if lower <= ratio:
            return before + (after - before) * min(1.0, (higher - ratio) / max(higher - lower, 1e-12))
    return float("nan")


def time_to_quality() -> None:
    bench = workbench()
    points = {schedule: quality_over_time(bench, schedule) for schedule in ("joint", "cached")}
    reached = max(found[-1][1] for found in points.values())
    print("| held-out layer error / unscaled | joint, s | layer after layer, s | layer after layer / joint |")
    print("|---|---|---|---|")
    for share in SHARES:
        ratio = 1 - share * (1 - reached)
        joint, cached = (seconds_to(points[schedule], ratio) for schedule in ("joint", "cached"))
        print(
            f"| {ratio:.3f} ({share:.0%} of the drop) | {joint:.1f} | {cached:.1f} | {cached / joint:.2f} |", flush=True
        )


# ---- memory


def resident_peak() -> int:
    """Largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_growth(memory_mib: int) -> int:
    """Bytes by which LES on batches raises the peak of the process.

    The peak before is that of forward passes on whole batches and of LES on single points, which loads its code.
    """
    torch.set_num_threads(1)
    bench = workbench(trajectories=2)
    stages = [
        EquivalentScaling(bench, **{**SETTINGS, "memory_mib": memory_mib, "batch": batch}, schedule="joint")
        for batch in (1, SETTINGS["batch"])
    ]
    stage = stages[1]
    for _ in range(MEMORY_ITERATIONS):
        stage.views.show(lambda name, batch: None, "cal", stage.points[: stage.batch], list(stage.learners))
    peaks = []
    for stage in stages:
        unit = stage.units()[0]
        stage.start_unit(unit)
        for iteration in range(MEMORY_ITERATIONS):
            stage.iterate(unit, iteration)
        peaks.append(resident_peak())
    return peaks[1] - peaks[0]


def bytes_per_sample() -> tuple[str, int, int]:
    """(the layer that sees and puts out most, its bytes of one sample, those of all layers)."""
    bench = workbench(trajectories=2)
    stage = EquivalentScaling(bench, **SETTINGS, schedule="joint")
    sizes: dict[str, int] = {}

    def note(name: str, batch: LayerBatch) -> None:
        sizes[name] = batch.x.nbytes + batch.output.nbytes

    stage.views.show(note, "cal", stage.points[:1], list(stage.learners))
    largest = max(sizes, key=lambda name: sizes[name])
    return largest, sizes[largest], sum(sizes.values())


def memory() -> None:
    name, largest, everything = bytes_per_sample()
    whole = largest * PAPER_SAMPLES
    print(f"| {PAPER_SAMPLES:,} samples, batch 32 | MiB | share |\n|---|---|---|")
    print(f"| inputs and outputs of `{name}` | {whole / MIB:.0f} | 1 |")
    print(f"| inputs and outputs of all layers | {everything * PAPER_SAMPLES / MIB:.0f} | {everything / largest:.1f} |")
    for memory_mib in (512, 8):
        fresh = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=fresh) as process:  # a peak can only be seen from below
            grown = process.submit(peak_growth, memory_mib).result()
        print(f"| joint, `memory_mib={memory_mib}` | {grown / MIB:.1f} | 1/{whole / max(grown, 1):.0f} |", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    memory()
    print()
    time_to_quality()


if __name__ == "__main__":
    main()
