"""Learned equivalent scaling: time to a held-out error, all layers together against one after another; peak memory.

Run: python -m benchmarks.equivalent_scaling
"""

import itertools
import multiprocessing
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import torch

from benchmarks.common import Silent, live_peak
from dmqbench.calibration.layer_views import LayerBatch
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
from dmqbench.stages.equivalent_scaling import EquivalentScaling
from dmqbench.stages.scale_learner import HeldOutFacts

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

LOOK_EVERY = 5
"""Iterations between two looks where all layers learn together."""

PAPER_SAMPLES = 5120
MEMORY_ITERATIONS = 4
MIB = 2**20


def workbench(trajectories: int = 64) -> Workbench:
    adapter = load_adapter(ModelSource("embedded", "digits", classes=10))
    plan = build_plan(SamplerSpec("ddim", 20), adapter.schedule)
    topology, steps = adapter.topology(), StepGroups.per_step(plan.network_calls)
    denoising = Denoising(adapter, plan)
    bank = TrajectoryBank(
        denoising.follow(stream="cal", seed=0, indices=range(trajectories)),
        denoising.follow(stream="val", seed=0, indices=range(16)),
        seed=0,
    )
    quantize_layers_(adapter.network, uniform_plan(topology.layers, BitWidth(4, 4), Scope()), adapter.context, steps)
    return Workbench(denoising, topology, bank, steps, 0, Silent())


# ---- time to quality


def held_out_ratios(stage: EquivalentScaling, names: list[str]) -> dict[str, float]:
    """Each layer's held-out error over the one without scaling."""
    facts = {name: HeldOutFacts(stage.learners[name]) for name in names}
    stage.views.show_all(lambda name, batch: facts[name].add(batch), "val", names)
    pairs = {name: torch.cat(found.errors, dim=1).mean(1).tolist() for name, found in facts.items()}
    return {name: after / before for name, (before, after) in pairs.items()}


class Course:
    """A stage that learns piece by piece: seconds of wall clock and of the processor, and the error reached."""

    def __init__(self, schedule: str) -> None:
        self.stage = EquivalentScaling.of(workbench(), **SETTINGS, schedule=schedule)
        self.schedule = schedule
        self.ratios = dict.fromkeys(self.stage.learners, 1.0)
        self.seconds = self.processor = 0.0
        self.points = [(0.0, 1.0)]
        """(seconds, mean held-out ratio over layers)."""
        self.pieces = self._pieces()

    def _pieces(self) -> Iterator[list[str]]:
        """Learn; yield the layers whose error has changed after every few iterations, or after every layer."""
        stage = self.stage
        for unit in stage.units():
            stage.start_unit(unit)
            for iteration in range(stage.iterations(unit)):
                stage.iterate(unit, iteration)
                if self.schedule == "joint" and (iteration + 1) % LOOK_EVERY == 0:
                    yield list(stage.learners)
            stage.finish_unit(unit)
            if self.schedule == "cached":
                yield [unit]

    def advance(self) -> bool:
        """Learn one piece; False if nothing is left. Looking at the error is not timed."""
        started, processor = time.perf_counter(), time.process_time()
        changed = next(self.pieces, None)
        self.seconds += time.perf_counter() - started
        self.processor += time.process_time() - processor
        if changed is None:
            return False
        self.ratios |= held_out_ratios(self.stage, changed)
        self.points.append((self.seconds, sum(self.ratios.values()) / len(self.ratios)))
        return True

    def seconds_to(self, ratio: float) -> float:
        """When a ratio was reached for good, linearly between looks: the error may rise again while rates are high."""
        for (before, higher), (after, lower) in reversed(list(itertools.pairwise(self.points))):
            if higher > ratio:
                return before + (after - before) * (higher - ratio) / (higher - lower)
        return float("nan")


def time_to_quality() -> None:
    courses = [Course("joint"), Course("cached")]
    running = list(courses)
    while running:  # in turns, so that a busy machine slows both alike
        behind = min(running, key=lambda course: course.seconds)
        if not behind.advance():
            running.remove(behind)
    reached = max(course.points[-1][1] for course in courses)
    print("| held-out layer error / unscaled | joint, s | layer after layer, s | layer after layer / joint |")
    print("|---|---|---|---|")
    for share in SHARES:
        ratio = 1 - share * (1 - reached)
        joint, cached = (course.seconds_to(ratio) for course in courses)
        print(f"| {ratio:.3f} ({share:.0%} of the drop) | {joint:.1f} | {cached:.1f} | {cached / joint:.2f} |")
    joint, cached = (course.processor for course in courses)
    print(f"\nProcessor time in all: {joint:.1f} and {cached:.1f} s, {cached / joint:.2f}")


# ---- memory


def resident_peak() -> int:
    """Largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peaks(memory_mib: int) -> tuple[int, int, int]:
    """Bytes: (live tensors of a forward pass, those of an iteration of LES, growth of the resident size).

    The latter is beyond forward passes on whole batches and LES on single points, which loads its code.
    """
    torch.set_num_threads(1)
    bench = workbench(trajectories=2)
    settings = {**SETTINGS, "memory_mib": memory_mib}
    small, stage = (EquivalentScaling.of(bench, **{**settings, "batch": n}, schedule="joint") for n in (1, 32))

    def forward() -> None:
        stage.views.show(lambda name, batch: None, "cal", stage.points[: stage.settings.batch], list(stage.learners))

    def iterate(stage: EquivalentScaling) -> None:
        for iteration in range(MEMORY_ITERATIONS):
            stage.iterate(stage.units()[0], iteration)

    forward()
    for warm in (small, stage):
        warm.start_unit(warm.units()[0])
    iterate(small)
    before = resident_peak()
    iterate(stage)
    grown = resident_peak() - before
    return live_peak(forward), live_peak(lambda: stage.iterate(stage.units()[0], 0)), grown


def bytes_per_sample() -> tuple[str, int, int]:
    """(the layer that sees and puts out most, its bytes of one sample, those of all layers)."""
    bench = workbench(trajectories=2)
    stage = EquivalentScaling.of(bench, **SETTINGS, schedule="joint")
    sizes: dict[str, int] = {}

    def note(name: str, batch: LayerBatch) -> None:
        sizes[name] = batch.x.nbytes + batch.output.nbytes

    stage.views.show(note, "cal", stage.points[:1], list(stage.learners))
    largest = max(sizes, key=lambda name: sizes[name])
    return largest, sizes[largest], sum(sizes.values())


def memory() -> None:
    name, largest, everything = bytes_per_sample()
    whole = largest * PAPER_SAMPLES

    def line(what: str, size: int) -> None:
        share = f"{size / whole:.1f}" if size >= whole else f"1/{whole / size:.0f}"
        print(f"| {what} | {size / MIB:.1f} | {share} |", flush=True)

    print(f"| {PAPER_SAMPLES:,} samples in batches of 32 | MiB | share |\n|---|---|---|")
    line(f"inputs and outputs of the largest layer, `{name}`", whole)
    line("inputs and outputs of all layers", everything * PAPER_SAMPLES)
    for memory_mib in (512, 8):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            forward, iteration, grown = process.submit(peaks, memory_mib).result()
        line(f"`memory_mib={memory_mib}`: live tensors of an iteration, its forward pass included", iteration)
        line(f"`memory_mib={memory_mib}`: the same beyond a forward pass alone", iteration - forward)
        line(f"`memory_mib={memory_mib}`: growth of the process beyond forward passes", grown)


def main() -> None:
    torch.set_num_threads(1)
    memory()
    print()
    time_to_quality()


if __name__ == "__main__":
    main()
