"""Block reconstruction (BRECQ, Li et al. 2021): fit the parameters of one unit to its full-precision output.

Inputs come from the quantized prefix of the network, targets from full precision, so that a unit also makes up for
the errors of those before it. Two stages use it: learned rounding of the weights, then learned activation steps.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import compress

import torch
from torch import Tensor, nn

from dmqbench.calibration.capture import ModuleInputs, capture_inputs, capture_outputs, memory_groups
from dmqbench.calibration.rows import Rows
from dmqbench.calibration.stage import HELD_OUT_POINTS, MIB, Stage, Workbench
from dmqbench.data.bank import Trajectories
from dmqbench.data.noise import draw_batch
from dmqbench.models.hooks import output_tensors
from dmqbench.quant.functional import rounding_regularizer, widened
from dmqbench.quant.layers import (
    freeze_weight_,
    quant_layers,
    quantization,
    set_quantization_,
    weight_layers,
)
from dmqbench.quant.state import activation_quantizers
from dmqbench.stages.reconstruction_settings import (
    ActivationReconstructionSettings,
    ReconstructionSettings,
    WeightReconstructionSettings,
)

EVERY_CHANNEL = slice(None)

Kept = tuple[Rows, ...]


def reconstruction_error(output: Tensor, target: Tensor, exponent: float = 2.0) -> Tensor:
    """Σ over channels (dim 1), mean over the rest, of |output − target|^p."""
    return (widened(output) - widened(target)).abs().pow(exponent).sum(1).mean()


def unit_error(
    outputs: Sequence[Tensor], targets: Sequence[Tensor | Rows], index: Tensor, exponent: float = 2.0
) -> Tensor:
    """The error of samples ``index`` of what a unit puts out: blocks of two streams, an image and a text."""
    pairs = zip(outputs, targets, strict=True)
    return torch.stack([reconstruction_error(output, target[index], exponent) for output, target in pairs]).sum()


class BlockReconstruction(Stage):
    """What the two reconstruction stages share: units, captured inputs and targets, the training loop of a unit."""

    activations_on: bool
    """Whether the prefix's activation quantization is on, and the unit's own."""

    settings: ReconstructionSettings

    def __init__(self, bench: Workbench, settings: ReconstructionSettings) -> None:
        super().__init__(bench, settings)
        self.points = bench.bank.cal.spread(settings.samples)
        self.held_out = bench.bank.val.spread(HELD_OUT_POINTS)
        self.unit_names = tuple(unit.name for unit in bench.topology.units if self.concerns(self.module(unit.name)))
        macs = {layer.name: layer.macs for layer in bench.topology.layers}
        total = sum(macs.values())
        self.share_of_network = {
            unit.name: sum(macs[name] for name in unit.layers) / total for unit in bench.topology.units
        }
        self.read = {unit.name: unit.read for unit in bench.topology.units}
        self.targets: dict[str, tuple[Kept, Kept]] = {}
        """What units put out in full precision, on calibration and on held-out points."""
        self.inputs: tuple[ModuleInputs, ModuleInputs] | None = None

    @abstractmethod
    def concerns(self, unit: nn.Module) -> bool:
        """Whether the unit has anything to train; at 32 bits it has not."""

    @abstractmethod
    def trainable(self, unit: nn.Module) -> list[nn.Parameter]:
        """Make the unit's parameters ready to train, and return them."""

    @abstractmethod
    def settle(self, unit: nn.Module) -> None:
        """Fix what was trained."""

    @property
    def exponent(self) -> float:
        """p of the output error."""
        return 2.0

    def learning_rate_of(self, parameter: nn.Parameter) -> float:
        """Adam's step size for one parameter."""
        return self.settings.learning_rate

    def penalty(self, iteration: int) -> Tensor | float:
        """A regularizer in an iteration of the unit's training."""
        return 0.0

    def units(self) -> tuple[str, ...]:
        return self.unit_names

    def iterations(self, unit: str) -> int:
        return self.settings.iterations

    def module(self, unit: str) -> nn.Module:
        return self.bench.network.get_submodule(unit)

    def start_unit(self, unit: str) -> None:
        bench = self.bench
        if unit not in self.targets:
            self.targets = self._capture_targets(unit)
        with quantization(bench.network, weight=True, activation=self.activations_on):
            self.inputs = (
                self._capture_inputs(unit, bench.bank.cal, self.points),
                self._capture_inputs(unit, bench.bank.val, self.held_out),
            )
        set_quantization_(self.module(unit), weight=True, activation=self.activations_on)
        self.error_before = self._held_out_error(unit)
        self.parameters_in_training = self.trainable(self.module(unit))
        self.optimizer = torch.optim.Adam(
            [
                {"params": [parameter], "lr": self.learning_rate_of(parameter)}
                for parameter in self.parameters_in_training
            ]
        )
        self.schedule = self._schedule(self.optimizer)

    def _schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)

    def _capture_inputs(self, unit: str, trajectories: Trajectories, points: Tensor) -> ModuleInputs:
        bench = self.bench
        # On average the forward passes end half-way through the network.
        self.network_forwards += len(points) * bench.branches / 2
        return capture_inputs(
            bench.denoising, self.module(unit), trajectories, points, self.settings.batch, bench.shelf
        )

    def _capture_targets(self, first: str) -> dict[str, tuple[Kept, Kept]]:
        """Full-precision outputs of as many units from ``first`` on as the memory setting allows, from one pass."""
        bench = self.bench
        units = self.units()
        remaining = {name: self.module(name) for name in units[units.index(first) :]}

        def outputs(modules: dict[str, nn.Module], trajectories: Trajectories, points: Tensor) -> dict[str, Kept]:
            self.network_forwards += len(points) * bench.branches
            found = capture_outputs(bench.denoising, modules, trajectories, points, self.settings.batch, bench.shelf)
            return {name: tuple(compress(parts, self.read[name])) for name, parts in found.items()}

        with quantization(bench.network, weight=False, activation=False):
            probe = outputs(remaining, bench.bank.cal, self.points[:1])
            sizes = {name: sum(part.nbytes for part in parts) * len(self.points) for name, parts in probe.items()}
            modules = {name: remaining[name] for name in memory_groups(sizes, self.settings.capture_mib * MIB)[0]}
            cal = outputs(modules, bench.bank.cal, self.points)
            val = outputs(modules, bench.bank.val, self.held_out)
        return {name: (cal[name], val[name]) for name in modules}

    def _error(self, unit: str, held_out: bool, index: Tensor, exponent: float) -> Tensor:
        assert self.inputs is not None
        inputs, targets = self.inputs[held_out], self.targets[unit][held_out]
        args, kwargs, step = inputs.select(index)
        with self.bench.adapter.context.at(step):
            outputs = output_tensors(self.module(unit)(*args, **kwargs))
        return unit_error(tuple(compress(outputs, self.read[unit])), targets, index, exponent)

    @torch.no_grad()
    def _held_out_error(self, unit: str) -> float:
        assert self.inputs is not None
        bench, total = self.bench, len(self.inputs[True])
        errors = [
            self._error(unit, held_out=True, index=index, exponent=2.0) * len(index)
            for batch in torch.arange(total).split(self.settings.batch)
            for index in bench.adapter.portions.split(batch)
        ]
        return float(torch.stack(errors).sum() / total)

    def iterate(self, unit: str, iteration: int) -> Tensor:
        assert self.inputs is not None
        index = draw_batch(self.bench.seed, self.name, unit, iteration, len(self.inputs[False]), self.settings.batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._add_gradients(unit, index, self.penalty(iteration))
        self.optimizer.step()
        self.schedule.step()
        self.network_forwards += 3 * len(index) * self.share_of_network[unit]
        return loss

    def _add_gradients(self, unit: str, index: Tensor, penalty: Tensor | float) -> Tensor:
        """Give the parameters the gradients of the error of samples ``index`` and of the penalty; return the error."""
        errors: list[Tensor] = []
        for part in self.bench.adapter.portions.split(index):
            error = self._error(unit, held_out=False, index=part, exponent=self.exponent)
            if len(part) < len(index):
                error = error * (len(part) / len(index))
            gradients = torch.autograd.grad(error if errors else error + penalty, self.parameters_in_training)
            for parameter, gradient in zip(self.parameters_in_training, gradients, strict=True):
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
            errors.append(error.detach())
        return torch.stack(errors).sum()

    def finish_unit(self, unit: str) -> dict[str, float]:
        self.settle(self.module(unit))
        error = self._held_out_error(unit)
        set_quantization_(self.module(unit), weight=False, activation=False)
        del self.targets[unit]
        self.inputs = None
        return {"held_out_error_before": self.error_before, "held_out_error": error}


class WeightReconstruction(BlockReconstruction):
    """Learned rounding (AdaRound) of a unit's weights, activations in full precision (Q-Diffusion's first phase)."""

    name = "weight_reconstruction"
    weights_only = True
    activations_on = False
    settings_type = WeightReconstructionSettings
    settings: WeightReconstructionSettings

    def concerns(self, unit: nn.Module) -> bool:
        return bool(weight_layers(unit))

    def trainable(self, unit: nn.Module) -> list[nn.Parameter]:
        quantizers = [
            (layer.weight_quantizer, layer.scaled_weight())
            for layer in quant_layers(unit).values()
            if layer.weight_quantizer is not None
        ]
        first_only = self.settings.regularized_groups == "first"  # DMQ's published code forgets the other input groups
        self.regularized_channels = [
            quantizer.groups.slices[0] if first_only else EVERY_CHANNEL for quantizer, _ in quantizers
        ]
        return [quantizer.learn_rounding_(weight) for quantizer, weight in quantizers]

    def penalty(self, iteration: int) -> Tensor | float:
        settings = self.settings
        progress = (iteration + settings.counted_from) / settings.iterations
        if progress < settings.warmup:
            return 0.0
        annealed = (progress - settings.warmup) / (1 - settings.warmup)
        beta = settings.beta_start + (settings.beta_end - settings.beta_start) * annealed
        parts = zip(self.parameters_in_training, self.regularized_channels, strict=True)
        return settings.regularization * sum(
            rounding_regularizer(alpha[:, channels], beta) for alpha, channels in parts
        )

    def settle(self, unit: nn.Module) -> None:
        freeze_weight_(unit)


class ActivationReconstruction(BlockReconstruction):
    """Learned activation steps of a unit by |error|^2.4, weights fixed (Q-Diffusion's second phase, LSQ gradient)."""

    name = "activation_reconstruction"
    activations_on = True
    settings_type = ActivationReconstructionSettings
    settings: ActivationReconstructionSettings

    @property
    def exponent(self) -> float:
        return self.settings.exponent

    def _schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        def cosine(iteration: int) -> float:
            return 0.5 * (1 + math.cos(math.pi * min(1.0, iteration / self.settings.iterations)))

        return torch.optim.lr_scheduler.LambdaLR(optimizer, cosine)

    def concerns(self, unit: nn.Module) -> bool:
        return bool(activation_quantizers(unit))

    def trainable(self, unit: nn.Module) -> list[nn.Parameter]:
        scales = [quantizer.scale for quantizer in activation_quantizers(unit).values()]
        for scale in scales:
            scale.requires_grad_(True)
        return scales

    def learning_rate_of(self, parameter: nn.Parameter) -> float:
        # Steps differ by orders of magnitude between layers and bit-widths: an absolute step size that moves a wide
        # range by a percent turns a narrow one negative.
        return self.settings.learning_rate * float(parameter.detach().min())

    def settle(self, unit: nn.Module) -> None:
        unit.requires_grad_(False)
