"""Outlier-driven mixed quantization (OMQ; MPQ-DM, Feng et al. 2025): a stage that gives rows of a layer other bits.

Every layer is pre-scaled, the rows of its scaled weight are ordered by kurtosis, and as many of the first get a bit
more as of the last a bit less; how many is chosen by the layer's output error. One pass of the network serves all
layers: each is decided when it is reached, and what it hands on is quantized as it was decided.
"""

from typing import Any

import torch
from torch import Tensor, nn

from dmqbench.calibration.capture import run_points
from dmqbench.calibration.stage import Stage, Workbench
from dmqbench.data.noise import generator
from dmqbench.models.absorption import load_state_into_
from dmqbench.models.hooks import hooked
from dmqbench.models.portions import WHOLE, Portions
from dmqbench.quant.allocation import (
    Allocation,
    allocate,
    blocked,
    moved_rows,
    prescale,
    row_bits,
    row_kurtosis,
    row_order,
)
from dmqbench.quant.functional import affine_parameters, fake_quantize, widened
from dmqbench.quant.layer import QuantLayer
from dmqbench.quant.layers import quantization, weight_layers
from dmqbench.quant.quantizer import along_axis
from dmqbench.quant.scaling import channel_extremes, spread, weight_magnitudes
from dmqbench.quant.spec import StepGroups
from dmqbench.stages.outlier_settings import Settings
from dmqbench.stages.ranges import ActivationSample, sampled_ends

VALUES = 1 << 16
"""So many values of an activation are kept at most, evenly spread over the points, to find its range."""


TOLD = ("samples", "observer", "largest_tenths", "inputs", "rows", "prescale", "plus")
"""Settings that stand among the findings."""


class OutlierAllocation(Stage):
    """Set the equivalent scale and the weight bits of every layer; ranges are left to the stages that follow.

    Activation ranges are those of the points of the pass, one for all steps, and rounding is to nearest. Attention
    products are in full precision here. Where rows have different bits already, nothing is decided.
    """

    name = "outlier_allocation"
    settings_type = Settings
    settings: Settings

    def __init__(self, bench: Workbench, settings: Settings) -> None:
        super().__init__(bench, settings)
        self.points = bench.bank.cal.spread(settings.samples)
        self.layers = weight_layers(bench.network)
        mixed = [name for name, layer in self.layers.items() if isinstance(layer.plan.weight_bits, tuple)]
        if mixed:
            raise ValueError(f"{self.name} gives rows their bits, and those of {mixed[0]} have different ones already")
        self.bits = {name: layer.plan.bits_of_rows(1)[0] for name, layer in self.layers.items()}
        self.chosen_from = [name for name, bits in self.bits.items() if bits == min(self.bits.values())]
        """The layers that are pre-scaled and decided on; a scope may give others, such as the first, more bits."""
        shares = bench.topology.share_of_macs
        self.share_of_network = {name: shares[name] for name in self.layers}
        self.allocations: dict[str, Allocation] = {}
        self.kurtosis: dict[str, Tensor] = {}
        """Of the rows, [R], by layer."""
        self.portions: Portions = WHOLE

    @classmethod
    def outline_(cls, network: nn.Module, settings: Settings) -> str | None:
        layers = list(weight_layers(network).values())
        bits = [min(layer.plan.bits_of_rows(1)) for layer in layers]
        for layer, least in zip(layers, bits, strict=True):
            if settings.strengths and least == min(bits) and getattr(layer, "groups", 1) == 1:
                layer.set_equivalent_scale_(layer.weight.new_ones(layer.weight.shape[1]))
        return None

    @classmethod
    def promised_bits(cls, rows: int, bits: int, settings: Settings) -> tuple[int, ...] | None:
        if not settings.plus:
            return None
        moved = moved_rows(rows, bits, settings.largest_tenths, plus=True)[-1]
        return tuple(row_bits(torch.arange(rows), moved, bits, plus=True).tolist())

    def units(self) -> tuple[str, ...]:
        return ("rows",) if self.layers else ()

    def iterations(self, unit: str) -> int:
        return 1

    @torch.no_grad()
    def iterate(self, unit: str, iteration: int) -> None:
        bench, everything = self.bench, len(self.points)
        network, adapter = bench.network, bench.adapter
        # A layer is decided on by the whole batch: only what it is decided by is computed in portions.
        self.portions = adapter.portions
        with (
            adapter.computing(WHOLE),
            hooked(self.layers, self._decide),
            quantization(network, weight=False, activation=False),
        ):
            for size in run_points(bench.denoising, bench.bank.cal, self.points, everything):
                self.network_forwards += size * bench.branches

    def _decide(self, name: str, layer: QuantLayer, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Decide on one layer, given its input and its full-precision output; return its quantized output."""
        x, output = widened(args[0]), widened(output)
        decided = name in self.chosen_from
        tried = self._set_scale(layer, x, output, self.bits[name]) if decided else 0
        weight, given = layer.scaled_weight(), layer.scaled_input(x)
        handed_on = self._quantized_input(layer, given)
        bits = self.bits[name]
        moves = moved_rows(len(weight), bits, self.settings.largest_tenths, self.settings.plus) if decided else (0,)
        needed = range(bits if self.settings.plus else bits - 1, bits + 2)
        if len(moves) == 1:
            needed = range(bits, bits + 1)
        compared = handed_on if self.settings.on_quantized_inputs else given
        weights = {width: self._quantized_weight(layer, weight, width) for width in needed}
        axis = layer.channel_axis
        outputs, error_of_bits = self._compared(layer, compared, output, weights)
        kurtosis = row_kurtosis(weight)
        measure = error_of_bits[bits] if self.settings.rows == "error" else kurtosis
        order = row_order(self.settings.rows, measure, generator("rows", self.bench.seed, self.name, name))
        bias = None if layer.bias is None else along_axis(layer.bias[None], output.ndim, axis)
        energy = float(_row_squares(output if bias is None else output - bias, axis).sum())
        chosen = allocate(error_of_bits, energy, order, bits, moves, self.settings.plus)
        self.allocations[name], self.kurtosis[name] = chosen, kurtosis
        layer.set_weight_bits_(chosen.bits)
        layer_forwards = tried + len(needed)
        if outputs and self.settings.on_quantized_inputs:
            handed_on = _by_rows(outputs, chosen.bits, axis)
        else:
            mixed = _by_rows(weights, chosen.bits, 0)
            handed_on, layer_forwards = self._output(layer, handed_on, mixed, output), layer_forwards + 1
        self.network_forwards += layer_forwards * len(x) * self.share_of_network[name]
        return handed_on.to(args[0].dtype)

    def _parts(self, x: Tensor) -> list[slice]:
        """Of the samples, the portions that are computed together."""
        size = self.portions.samples or len(x)
        return [slice(start, start + size) for start in range(0, len(x), size)]

    def _output(self, layer: QuantLayer, x: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        """The output, of the shape of ``like``."""
        made = torch.empty_like(like)
        for part in self._parts(x):
            made[part] = layer.apply_widened(x[part], weight, layer.bias)
        return made

    def _compared(
        self, layer: QuantLayer, x: Tensor, output: Tensor, weights: dict[int, Tensor]
    ) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Outputs under the weights of every width, unless they are computed in portions, and the squared errors of
        their rows."""
        parts, outputs = self._parts(x), dict[int, Tensor]()
        errors = {width: output.new_zeros(len(weight)) for width, weight in weights.items()}
        for width, weight in weights.items():
            for part in parts:
                made = layer.apply_widened(x[part], weight, layer.bias)
                errors[width] += _row_squares(made - output[part], layer.channel_axis)
                if len(parts) == 1:
                    outputs[width] = made
        return outputs, errors

    def _set_scale(self, layer: QuantLayer, x: Tensor, output: Tensor, bits: int) -> int:
        """Set the equivalent scale of a layer, given its input and full-precision output; return the outputs tried."""
        if getattr(layer, "groups", 1) != 1 or not self.settings.strengths:
            return 0
        low, high = channel_extremes(x, layer.channel_axis)
        scale = prescale(torch.maximum(high, -low).amax(0), weight_magnitudes(widened(layer.unscaled_weight())))
        if len(self.settings.strengths) == 1:
            layer.set_equivalent_scale_(scale ** self.settings.strengths[0])
            return 0
        errors = []
        for strength in self.settings.strengths:
            layer.set_equivalent_scale_(scale**strength)
            weight = self._quantized_weight(layer, layer.scaled_weight(), bits)
            given = self._quantized_input(layer, layer.scaled_input(x))
            squares = [
                layer.apply_widened(given[part], weight, layer.bias).sub_(output[part]).square().sum()
                for part in self._parts(x)
            ]
            errors.append(float(torch.stack(squares).sum()))
        layer.set_equivalent_scale_(scale ** self.settings.strengths[errors.index(min(errors))])
        return len(errors)

    def _quantized_input(self, layer: QuantLayer, x: Tensor) -> Tensor:
        quantizer = layer.activation_quantizer
        if quantizer is None:
            return x
        sample = ActivationSample(quantizer, StepGroups.shared(), max(1, VALUES // len(x)))
        sample.add(x)
        tables = affine_parameters(*sampled_ends(sample, self.settings.range_of), quantizer.levels)
        scale, zero_point = (
            along_axis(spread(table, quantizer.groups), x.ndim, layer.channel_axis) for table in tables
        )
        return fake_quantize(x, scale, zero_point, quantizer.levels)

    def _quantized_weight(self, layer: QuantLayer, weight: Tensor, bits: int) -> Tensor:
        quantizer = layer.weight_quantizer
        assert quantizer is not None
        levels = torch.full((len(weight),), 2**bits, device=weight.device)
        grids = [affine_parameters(*self.settings.range_of(rows, levels), levels) for rows in quantizer.rows(weight)]
        scale, zero_point = (quantizer.spread(torch.stack(table, dim=1)) for table in zip(*grids, strict=True))
        return fake_quantize(weight, scale, zero_point, 2**bits)

    def finish_unit(self, unit: str) -> dict[str, float]:
        moved = [self.allocations[name].moved > 0 for name in self.chosen_from]
        return {"layers": len(moved), "mixed_layers": sum(moved), "mean_bits": self._mean_bits()}

    def _mean_bits(self) -> float:
        """Over all weights of the layers that were decided on."""
        weights = {name: self.layers[name].weight for name in self.chosen_from}
        total = sum(sum(self.allocations[name].bits) * weight[0].numel() for name, weight in weights.items())
        return total / sum(weight.numel() for weight in weights.values())

    # ---- what is kept and told

    def load_state_(self, state: dict[str, Tensor]) -> None:
        for name, layer in self.layers.items():
            levels = state[f"{name}.weight_quantizer.levels"].tolist()
            layer.set_weight_bits_(tuple(level.bit_length() - 1 for level in levels))
        load_state_into_(self.bench.network, state)

    def progress(self) -> dict[str, Tensor]:
        carried: dict[str, Tensor] = {}
        for name, allocation in self.allocations.items():
            carried[f"{name}.errors"] = torch.tensor(allocation.errors, dtype=torch.float64)
            carried[f"{name}.chosen"] = torch.tensor((allocation.moved, allocation.tenths))
            carried[f"{name}.bits"] = torch.tensor(allocation.bits)
            carried[f"{name}.kurtosis"] = self.kurtosis[name]
        return carried

    def load_progress_(self, progress: dict[str, Tensor]) -> None:
        for name in self.layers:
            errors, chosen, bits = (progress[f"{name}.{key}"].tolist() for key in ("errors", "chosen", "bits"))
            moved, tenths = chosen
            self.allocations[name] = Allocation(tuple(bits), moved, tenths, tuple(errors))
            self.kurtosis[name] = progress[f"{name}.kurtosis"]

    def findings(self) -> dict[str, Any]:
        """Bits and kurtosis of the rows of every layer, and the relative output error of every allocation considered.

        ``limit``: why no row could change its bits; null if rows could.
        """
        if not self.layers:
            return {}
        order = {layer.name: number for number, layer in enumerate(self.bench.topology.layers)}
        layers = [
            {
                "name": name,
                "rows": len(self.allocations[name].bits),
                "moved": self.allocations[name].moved,
                "tenths": self.allocations[name].tenths,
                "errors": list(self.allocations[name].errors),
                "bits": list(self.allocations[name].bits),
                "kurtosis": [round(value, 4) for value in self.kurtosis[name].tolist()],
            }
            for name in sorted(self.chosen_from, key=order.__getitem__)
        ]
        limit = blocked(self.bits[self.chosen_from[0]], self.settings.plus)
        told = {key: getattr(self.settings, key) for key in TOLD}
        return {"settings": told, "mean_bits": self._mean_bits(), "limit": limit, "layers": layers}


def _by_rows(of_bits: dict[int, Tensor], bits: tuple[int, ...], axis: int) -> Tensor:
    """Rows or output channels (along ``axis``) put together, each from the tensor for its bits; a single one is all."""
    mixed, *others = of_bits.items()
    result = mixed[1].clone() if others else mixed[1]
    for width, part in others:
        rows = torch.tensor([row for row, own in enumerate(bits) if own == width], dtype=torch.long, device=part.device)
        result.index_copy_(axis, rows, part.index_select(axis, rows))
    return result


def _row_squares(difference: Tensor, channel_axis: int) -> Tensor:
    """Sum of squares of every output channel of a difference of outputs, [R]."""
    return difference.square().movedim(channel_axis, 0).flatten(1).sum(1)
