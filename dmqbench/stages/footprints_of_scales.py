"""The most memory that learned equivalent scaling would hold at once, from shapes alone; see ``footprints``."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dmqbench.calibration.capture import memory_groups
from dmqbench.calibration.layer_views import LayerBatch
from dmqbench.calibration.shape_bench import ShapeBench
from dmqbench.calibration.stage import HELD_OUT_POINTS
from dmqbench.models.live_memory import peak_of
from dmqbench.quant.functional import widened
from dmqbench.quant.layers import quant_layers
from dmqbench.stages.equivalent_scaling import can_be_scaled
from dmqbench.stages.scale_learner import ScaleLearner


def equivalent_scaling(bench: ShapeBench, settings: Any) -> int:
    """Layers learn inside one pass of the network, or one after another from kept inputs."""
    layers = {name: layer for name, layer in quant_layers(bench.network).items() if can_be_scaled(layer)}
    bins = max(1, settings.bins or bench.points.calls)
    uniform = replace(settings.timestep_weighting, name="uniform")  # others look at values, which there are none of
    learners = {
        name: ScaleLearner(
            layer,
            uniform,
            bins,
            settings.zero_in_range,
            False,
            settings.memory,
            settings.clipping,
        )
        for name, layer in layers.items()
    }
    points, val = bench.points_of(settings), min(HELD_OUT_POINTS, bench.points.val) * bool(settings.patience)
    wider = torch.float32.itemsize // bench.dtype.itemsize  # views are in float32
    sizes = {name: wider * (bench.seen[name].input_bytes + bench.seen[name].output_bytes) for name in learners}
    kept = {name: size * bench.branches * points for name, size in sizes.items()}
    groups = memory_groups(kept, settings.memory)
    pays = max(kept.values(), default=0) <= settings.memory and (
        len(groups) * points < settings.iterations * settings.batch
    )
    if settings.schedule != "joint" and (settings.schedule == "cached" or pays) and kept:
        return _learned_from_memory(bench, settings, learners, kept, groups, 1 + val / points)

    known: dict[Any, int] = {}
    for name, learner in learners.items():  # outside the call, in which every tensor would be counted twice
        x, output = bench.example(name, bench.batch_of(settings))
        _learning(learner, widened(x), widened(output), known)

    def learn(name: str, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if name in learners:
            size = _learning(learners[name], widened(args[0]), widened(output), known)
            args[0].new_empty(size, dtype=torch.uint8)

    call = bench.hooked_call(bench.batch_of(settings), learn)
    return bench.network_bytes + max(call, bench.saved_bytes)


def _learned_from_memory(
    bench: ShapeBench,
    settings: Any,
    learners: Mapping[str, ScaleLearner],
    kept: Mapping[str, int],
    groups: list[list[str]],
    streams: float,
) -> int:
    call, peak = bench.call(bench.batch_of(settings), False, False), bench.saved_bytes
    for group in groups:
        held = int(sum(kept[name] for name in group) * streams)
        largest = max(kept[name] for name in group)
        steps, known = [], dict[Any, int]()
        for name in {
            max(group, key=kept.__getitem__),
            max(group, key=lambda name: learners[name].layer.weight.numel()),
        }:
            x, output = map(widened, bench.example(name, bench.batch_of(settings)))
            steps.append(x.nbytes + output.nbytes + _learning(learners[name], x, output, known))
        peak = max(peak, held + max(call, largest, *steps))
    return bench.network_bytes + peak


def _learning(learner: ScaleLearner, x: Tensor, output: Tensor, known: dict[Any, int]) -> int:
    """What a step of a layer holds beside its input and output; found once for all layers of the same shapes."""
    shapes = tuple(x.shape), tuple(output.shape), tuple(learner.layer.weight.shape), learner.layer.plan.boundaries
    if shapes not in known:
        index = torch.zeros(len(x), dtype=torch.long, device="meta")
        batch = LayerBatch(x.detach(), output.detach(), index, index)
        with torch.enable_grad():
            known[shapes] = peak_of(lambda: learner.learn(batch))
        learner.scale.grad = None
    return known[shapes]
