"""Calibration over several denoising steps: bytes kept for the backward pass against M, and the time of a group step.

Run: python -m benchmarks.multi_step
"""

import itertools
import weakref
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.common import Silent, interleaved_seconds
from dmqbench.calibration.run import run_stage
from dmqbench.calibration.stage import Workbench
from dmqbench.data.bank import TrajectoryBank
from dmqbench.models.adapter import load_adapter
from dmqbench.models.folders import ModelSource
from dmqbench.models.rollout import Denoising
from dmqbench.quant.layers import quantization, quantize_layers_
from dmqbench.quant.plan import uniform_plan
from dmqbench.quant.spec import BitWidth, Scope, StepGroups
from dmqbench.samplers.plan import build_plan
from dmqbench.samplers.spec import SamplerSpec
from dmqbench.stages.ranges import ActivationRange, WeightRange
from dmqbench.stages.trajectory_gradients import RULES
from dmqbench.stages.trajectory_reconstruction import TrajectoryReconstruction

CALLS = 20
BATCH, MEMORY_BATCH = 8, 2
HORIZON = 5
"""Of the timing, and network calls that share activation parameters."""

HORIZONS = (2, 5, 10, 20)
MEASURED = ("exact", "replayed", "identity", "online")
"""Whose memory is measured: the others keep what ``identity`` or ``online`` keeps."""

ROUNDS = 9
MIB = 2**20
SETTINGS = {
    "iterations": 100,
    "recipe": "scales",
    "start": "fp",
    "scale_travel": 0.01,
    "rounding_travel": 0.01,
    "checks": 1,
}


def workbench(trajectories: int) -> Workbench:
    """``digits`` at W4A6 with ranges; its weights are fixed by the stage."""
    adapter = load_adapter(ModelSource("embedded", "digits", classes=10))
    plan = build_plan(SamplerSpec("ddim", CALLS), adapter.schedule)
    topology, steps = adapter.topology(), StepGroups.of_size(CALLS, HORIZON)
    denoising = Denoising(adapter, plan)
    bank = TrajectoryBank(
        denoising.follow(stream="cal", seed=0, indices=range(trajectories)),
        denoising.follow(stream="val", seed=0, indices=range(1)),
        seed=0,
    )
    quantize_layers_(adapter.network, uniform_plan(topology.layers, BitWidth(4, 6), Scope()), adapter.context, steps)
    bench = Workbench(denoising, topology, bank, steps, 0, Silent())
    run_stage(WeightRange.of(bench, observer="min_max", candidates=80, exponent=2.4), "cpu", [])
    settings = {"observer": "min_max", "candidates": 80, "exponent": 2.4}
    run_stage(ActivationRange.of(bench, **settings, samples=40, batch=8, values_per_row=100_000), "cpu", [])
    return bench


def started(bench: Workbench, gradient: str, horizon: int) -> tuple[TrajectoryReconstruction, str]:
    """The stage with its first unit begun: states of the first group are found, scales are leaves."""
    stage = TrajectoryReconstruction.of(
        bench, gradient=gradient, horizon=horizon, batch=len(bench.bank.cal), **SETTINGS
    )
    unit = stage.units()[0]
    stage.start_unit(unit)
    return stage, unit


# ---- memory


class Kept:
    """A tensor that is kept for the backward pass."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Meter:
    """Counts the bytes of all tensors that are kept for the backward pass at one time.

    A storage that is kept twice counts once, and ``known`` ones, which live anyway, do not.
    """

    def __init__(self, known: set[int]) -> None:
        self.known = known
        self.owners: dict[int, int] = {}
        self.live = self.peak = 0

    def pack(self, tensor: Tensor) -> Kept:
        kept, storage = Kept(tensor), tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place not in self.known:
            self.live += 0 if self.owners.get(place) else size
            self.owners[place] = self.owners.get(place, 0) + 1
            self.peak = max(self.peak, self.live)
            weakref.finalize(kept, self.release, place, size)
        return kept

    def release(self, place: int, size: int) -> None:
        self.owners[place] -= 1
        self.live -= 0 if self.owners[place] else size


def peak_bytes(run: Callable[[], object], known: set[int]) -> int:
    meter = Meter(known)
    with torch.autograd.graph.saved_tensors_hooks(meter.pack, lambda kept: kept.tensor):
        run()
    return meter.peak


def memory() -> None:
    """Print the bytes kept for the backward pass by one iteration on one group, the network's own tensors apart."""
    bench = workbench(MEMORY_BATCH)
    network = bench.network
    columns = " | ".join(f"M={horizon}" for horizon in HORIZONS)
    print(f"| MiB kept for the backward pass, batch {MEMORY_BATCH} | {columns} | M=20 / M=2 |")
    print("|---" * (len(HORIZONS) + 2) + "|")
    for gradient in MEASURED:
        peaks = []
        for horizon in HORIZONS:
            stage, unit = started(bench, gradient, horizon)
            known = {each.untyped_storage().data_ptr() for each in (*network.parameters(), *network.buffers())}
            peaks.append(peak_bytes(partial(stage.iterate, unit, 0), known))
        cells = " | ".join(f"{peak / MIB:.1f}" for peak in peaks)
        print(f"| `{gradient}` | {cells} | {peaks[-1] / peaks[0]:.3f} |", flush=True)
    states = bench.bank.cal.x[:, 0].nbytes
    cells = " | ".join(f"{(horizon + 1) * states / MIB:.3f}" for horizon in HORIZONS)
    print(f"| M+1 states, which `replayed` and `identity` keep besides | {cells} | |")


# ---- time


def timing() -> None:
    """Print what an iteration on one group costs per network call, in quantized forward passes of the same batch."""
    bench = workbench(BATCH)
    stages = {gradient: started(bench, gradient, HORIZON) for gradient in RULES}

    def forward() -> None:
        with quantization(bench.network, weight=True, activation=True):
            visits = bench.denoising.rollout(stream="cal", seed=0, indices=range(BATCH))
            for _ in itertools.islice(visits, HORIZON):
                pass

    runs: dict[str, Callable[[], object]] = {"forward": forward}
    runs |= {gradient: partial(stage.iterate, unit, 0) for gradient, (stage, unit) in stages.items()}
    seconds = interleaved_seconds(runs, ROUNDS)
    print(f"| M={HORIZON}, batch {BATCH} | ms per network call | quantized forward passes |\n|---|---|---|")
    for name, value in seconds.items():
        print(f"| `{name}` | {1000 * value / HORIZON:.1f} | {value / seconds['forward']:.2f} |")


def main() -> None:
    torch.set_num_threads(1)
    memory()
    print()
    timing()


if __name__ == "__main__":
    main()
