"""The most memory that reconstruction of units would hold at once, from shapes alone; see ``footprints``."""

from collections.abc import Callable, Mapping
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dmqbench.calibration.capture import memory_groups
from dmqbench.calibration.shape_bench import Seen, ShapeBench, sample_bytes, saved_bytes
from dmqbench.calibration.stage import HELD_OUT_POINTS, MIB
from dmqbench.models.hooks import output_tensors
from dmqbench.models.live_memory import held_by, network_bytes, peak_of
from dmqbench.models.shape_memo import ShapeMemo
from dmqbench.quant.functional import rounding_regularizer
from dmqbench.quant.layers import freeze_weight_, set_quantization_, weight_layers
from dmqbench.quant.state import activation_quantizers
from dmqbench.stages.reconstruction import unit_error

ADAM = 2
"""Tensors that Adam keeps for each parameter."""


def weight_reconstruction(bench: ShapeBench, settings: Any) -> int:
    def trainable(module: nn.Module) -> list[Tensor]:
        return [
            layer.weight_quantizer.learn_rounding_(layer.scaled_weight())
            for layer in weight_layers(module).values()
            if layer.weight_quantizer is not None
        ]

    return _reconstruction(bench, settings, weight_layers, trainable, activations=False, settle=freeze_weight_)


def activation_reconstruction(bench: ShapeBench, settings: Any) -> int:
    def trainable(module: nn.Module) -> list[Tensor]:
        return [quantizer.scale.requires_grad_(True) for quantizer in activation_quantizers(module).values()]

    def settle(module: nn.Module) -> None:
        module.requires_grad_(False)

    return _reconstruction(bench, settings, activation_quantizers, trainable, activations=True, settle=settle)


def _reconstruction(
    bench: ShapeBench,
    settings: Any,
    concerns: Callable[[nn.Module], Mapping[str, Any]],
    trainable: Callable[[nn.Module], list[Tensor]],
    *,
    activations: bool,
    settle: Callable[[nn.Module], None],
) -> int:
    modules = {unit.name: bench.network.get_submodule(unit.name) for unit in bench.topology.units}
    units = {unit.name: unit for unit in bench.topology.units if concerns(modules[unit.name])}
    cal, val = bench.points_of(settings), min(HELD_OUT_POINTS, bench.points.val)
    given = {name: bench.seen[name].input_bytes * bench.branches for name in units}
    made = {
        name: sample_bytes(tuple(compress(bench.seen[name].outputs, unit.read))) * bench.branches
        for name, unit in units.items()
    }
    steps: dict[Any, int] = {}
    reached = bench.watched_call(bench.batch_of(settings), units, True, activations)
    plain, peak = bench.call(bench.batch_of(settings), False, False), 0
    network, saved = bench.network_bytes, bench.saved_bytes
    for group in memory_groups({name: size * cal for name, size in made.items()}, settings.capture_mib * MIB):
        targets = sum(made[name] for name in group)
        streams = cal + val
        peak = max(peak, network + bench.kept(targets * streams) + plain)
        for name in group:
            held = bench.kept((targets + given[name]) * streams)
            own, own_saved = network_bytes(modules[name]), saved_bytes(modules[name])
            shapes = _shapes(modules[name], bench.seen[name])
            if shapes not in steps:
                steps[shapes] = _unit_step(bench, name, units[name].read, settings, trainable)
            peak = max(peak, network + held + max(reached[name], steps[shapes]))
            with ShapeMemo():
                settle(modules[name])
            network += network_bytes(modules[name]) - own
            saved += saved_bytes(modules[name]) - own_saved
            targets -= made[name]
            peak = max(peak, network + bench.kept(targets * streams) + saved)
    return peak


def _shapes(module: nn.Module, seen: Seen) -> Any:
    """What two units have in common that hold the same in training."""
    inputs = tuple(leaf.shape for leaf in tree_leaves((seen.args, dict(seen.kwargs))) if isinstance(leaf, Tensor))
    parameters = tuple((name, parameter.shape) for name, parameter in module.named_parameters())
    return type(module), inputs, tuple(name for name in parameters if not name[0].endswith("alpha"))


def _unit_step(
    bench: ShapeBench, name: str, read: tuple[bool, ...], settings: Any, trainable: Callable[..., list[Tensor]]
) -> int:
    """What an iteration of a unit holds, and Adam's state with it."""
    module, seen = bench.network.get_submodule(name), bench.seen[name]
    batch = min(settings.batch, bench.points_of(settings) * bench.branches)
    portion = bench.portion_of(batch)
    index = torch.zeros(portion, dtype=torch.long, device="meta")
    targets = tuple(output.new_empty(portion, *output.shape[1:]) for output in compress(seen.outputs, read))
    penalized = hasattr(settings, "regularization")
    parameters = trainable(module)
    trained = held_by(parameters)

    def step() -> object:
        args, kwargs = seen.inputs(portion)
        with bench.context.at(index):
            outputs = output_tensors(module(*args, **kwargs))
        loss = unit_error(tuple(compress(outputs, read)), targets, index)
        del args, kwargs, outputs
        penalty = sum(rounding_regularizer(parameter, 2.0) for parameter in parameters) if penalized else 0.0
        return torch.autograd.grad(loss + penalty, parameters)

    set_quantization_(module, weight=True, activation=not penalized)
    with torch.enable_grad():
        peak = peak_of(step)
    set_quantization_(module, weight=False, activation=False)
    summed = trained if portion < batch else 0
    return (trained if penalized else 0) + ADAM * trained + summed + peak
