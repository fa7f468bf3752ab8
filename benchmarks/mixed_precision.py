"""Mixed precision and low-rank tuning: time of mixed rows, memory of relation distillation, time of a training step.

Run: python -m benchmarks.mixed_precision
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import Silent, interleaved_seconds, live_peak
from dmqbench.calibration.run import run_stage
from dmqbench.calibration.stage import Workbench
from dmqbench.data.bank import TrajectoryBank
from dmqbench.models.adapter import load_adapter
from dmqbench.models.folders import ModelSource
from dmqbench.models.rollout import Denoising
from dmqbench.quant.functional import affine_parameters, fake_quantize
from dmqbench.quant.layers import quantization, quantize_layers_
from dmqbench.quant.plan import uniform_plan
from dmqbench.quant.relation import relation_divergence
from dmqbench.quant.spec import BitWidth, Scope, StepGroups
from dmqbench.samplers.plan import build_plan
from dmqbench.samplers.spec import SamplerSpec
from dmqbench.stages.low_rank_tuning import LowRankTuning
from dmqbench.stages.ranges import ActivationRange, WeightRange

ROWS, COLUMNS, PROMOTED = 512, (512, 3, 3), 51
"""Of the weight; a tenth of its rows has one bit more, a tenth one bit less."""

FEATURES = (2, 64 * 64, 192)
"""Samples, positions and channels before the last layer of LDM-4, with guidance."""

CALLS, BATCH, TRAJECTORIES = 20, 32, 32
MIB = 2**20
SETTINGS = {
    "iterations": 100,
    "batch": BATCH,
    "rank": 32,
    "adapter_travel": 6.4,
    "weight_scale_travel": 0.1,
    "activation_scale_travel": 0.4,
    "distillation_weight": 1.0,
    "loss": "normalised",
    "window": 2,
    "checks": 1,
}
"""Of the size that ``mpq_dm`` has; how far things move makes no difference to time."""


# ---- mixed rows


def published_pass(weight: Tensor, scale: Tensor, zero_point: Tensor, levels: int) -> Tensor:
    """One quantizer of the published code: rounding with a straight-through gradient, clipping by two rectifiers."""
    scaled = weight / scale
    integers = (scaled.round() - scaled).detach() + scaled + zero_point
    integers = integers + F.relu(-integers)
    integers = integers - F.relu(integers - (levels - 1))
    return (integers - zero_point) * scale


def published_mixture(weight: Tensor, masks: list[Tensor], grids: list[tuple[Tensor, Tensor]], bits: int) -> Tensor:
    """Three passes over the whole weight, each with the rows of the others set to zero."""
    zero = torch.zeros_like(weight)
    passes = zip(masks, grids, (bits - 1, bits, bits + 1), strict=True)
    parts = [published_pass(torch.where(mask, weight, zero), *grid, 2**own) for mask, grid, own in passes]
    return parts[0] + parts[1] + parts[2]


def mixed_rows(bits: int) -> None:
    """Print the time of quantizing a weight forward and backward, and check that all forms agree."""
    weight = torch.randn(ROWS, *COLUMNS, generator=torch.Generator().manual_seed(0)).requires_grad_()
    upstream = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(2))
    own_bits = torch.full((ROWS,), bits)
    own_bits[order[:PROMOTED]] += 1
    own_bits[order[-PROMOTED:]] -= 1
    flat = weight.detach().flatten(1)

    def by_row(table: Tensor) -> Tensor:
        return table.reshape(ROWS, 1, 1, 1)

    def grid_of(levels: Tensor) -> tuple[Tensor, Tensor]:
        scale, zero_point = affine_parameters(flat.amin(1), flat.amax(1), levels)
        return by_row(scale).requires_grad_(), by_row(zero_point)

    uniform, mixed = torch.full((ROWS,), 2**bits), 2**own_bits
    grids = {"uniform": grid_of(uniform), "mixed": grid_of(mixed)}
    masks = [by_row(own_bits == own).expand_as(weight) for own in (bits - 1, bits, bits + 1)]
    # The published code keeps a constant in the rows that a quantizer has no part in.
    parts = [
        tuple(torch.where(mask[:, :1, :1, :1], table.detach(), 0.005) for table in grids["mixed"]) for mask in masks
    ]
    for scale, _ in parts:
        scale.requires_grad_()
    forms: dict[str, Callable[[], Tensor]] = {
        "uniform": lambda: fake_quantize(weight, *grids["uniform"], 2**bits),
        "mixed rows": lambda: fake_quantize(weight, *grids["mixed"], by_row(mixed)),
        "published: three masked passes": lambda: published_mixture(weight, masks, parts, bits),  # type: ignore[arg-type]
        "published: one pass, uniform": lambda: published_pass(weight, *grids["uniform"], 2**bits),
    }
    torch.testing.assert_close(forms["mixed rows"](), forms["published: three masked passes"]())

    def train(form: Callable[[], Tensor]) -> None:
        weight.grad = None
        form().backward(upstream)

    seconds = interleaved_seconds({name: partial(train, form) for name, form in forms.items()}, rounds=15)
    for name, value in seconds.items():
        print(f"| {bits} | {name} | {1000 * value:.1f} | {value / seconds['uniform']:.2f} |", flush=True)


# ---- relation distillation


def naive_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """With the whole maps of cosines, as the published code has it, and its mean."""
    student, teacher = (F.normalize(each, dim=-1) for each in (student, teacher.detach()))
    of_student, of_teacher = student @ student.mT, teacher @ teacher.mT
    total = F.kl_div(F.log_softmax(of_student, -1), F.softmax(of_teacher, -1), reduction="sum")
    return total / (student.shape[0] * student.shape[1])


def relations() -> None:
    """Print peak memory and time of value and gradient, features apart."""
    random = torch.Generator().manual_seed(0)
    teacher = torch.randn(FEATURES, generator=random)
    student = (teacher + 0.5 * torch.randn(FEATURES, generator=random)).requires_grad_()
    forms: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"naive": naive_divergence, "blocks": relation_divergence}

    def train(form: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        student.grad = None
        value = form(student, teacher)
        value.backward()
        assert student.grad is not None
        return value.detach(), student.grad

    for mine, theirs in zip(train(relation_divergence), train(naive_divergence), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-8)
    memory = {name: live_peak(partial(train, form)) for name, form in forms.items()}
    seconds = interleaved_seconds({name: partial(train, form) for name, form in forms.items()}, rounds=3)
    print(f"| {' × '.join(map(str, FEATURES))} features | peak MiB | share | s | × |\n|---|---|---|---|---|")
    for name in forms:
        cells = f"{memory[name] / MIB:.0f} | 1/{memory['naive'] / memory[name]:.1f}"
        print(f"| {name} | {cells} | {seconds[name]:.2f} | {seconds[name] / seconds['naive']:.2f} |", flush=True)


# ---- a step of tuning


def workbench() -> Workbench:
    """``digits`` at W2A4 with ranges per step."""
    adapter = load_adapter(ModelSource("embedded", "digits", classes=10))
    plan = build_plan(SamplerSpec("ddim", CALLS), adapter.schedule)
    topology, steps = adapter.topology(), StepGroups.per_step(CALLS)
    denoising = Denoising(adapter, plan)
    bank = TrajectoryBank(
        denoising.follow(stream="cal", seed=0, indices=range(TRAJECTORIES)),
        denoising.follow(stream="val", seed=0, indices=range(2)),
        seed=0,
    )
    quantize_layers_(adapter.network, uniform_plan(topology.layers, BitWidth(2, 4), Scope()), adapter.context, steps)
    bench = Workbench(denoising, topology, bank, steps, 0, Silent())
    run_stage(WeightRange.of(bench, observer="min_max", candidates=80, exponent=2.4), "cpu", [])
    settings = {"observer": "min_max", "candidates": 80, "exponent": 2.4}
    run_stage(ActivationRange.of(bench, **settings, samples=40, batch=8, values_per_row=100_000), "cpu", [])
    return bench


def tuning_step() -> None:
    """Print the time of a training step in full-precision forward passes of the same number of samples."""
    benches = {distillation: workbench() for distillation in ("none", "relation", "feature")}
    stages = {name: LowRankTuning.of(bench, **SETTINGS, distillation=name) for name, bench in benches.items()}
    for stage in stages.values():
        stage.recorded_iterations = frozenset()  # what a trainer asks for at the start of a unit
        stage.start_unit(stage.units()[0])
    bench = benches["none"]
    inputs = bench.bank.cal.at(torch.arange(BATCH) * CALLS + torch.arange(BATCH) % CALLS)

    @torch.no_grad()
    def forward() -> None:
        with quantization(bench.network, weight=False, activation=False):
            bench.denoising.predict(inputs)

    runs: dict[str, Callable[[], object]] = {"full-precision forward pass": forward}
    runs |= {
        f"step, distillation {name}": partial(stage.iterate, stage.units()[0], 0) for name, stage in stages.items()
    }
    seconds = interleaved_seconds(runs, rounds=9)
    print(f"| `digits`, batch {BATCH} | ms | full-precision forward passes |\n|---|---|---|")
    for name, value in seconds.items():
        print(f"| {name} | {1000 * value:.0f} | {value / seconds['full-precision forward pass']:.2f} |", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    print("| bits | weight of 512×512×3×3, forward and backward | ms | × uniform |\n|---|---|---|---|")
    for bits in (2, 4):
        mixed_rows(bits)
    print()
    relations()
    print()
    tuning_step()


if __name__ == "__main__":
    main()
