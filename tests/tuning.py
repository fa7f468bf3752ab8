"""Workbenches and settings for low-rank tuning, and its loss written out call by call, without any of its code."""

from typing import Any

import torch
from torch import Tensor
from workbench import W3A6, sampler, set_min_max_ranges_, workbench

from dmqbench.calibration.run import run_stage
from dmqbench.quant.layers import quant_layers, quantization
from dmqbench.quant.spec import StepGroups
from dmqbench.stages.low_rank_tuning import LowRankTuning
from dmqbench.stages.ranges import ActivationRange, WeightRange

MIN_MAX: dict[str, Any] = {"observer": "min_max", "candidates": 1, "exponent": 2.0}
ACTIVATION_RANGE: dict[str, Any] = {"samples": 8, "batch": 8, "values_per_row": 1000}
SETTINGS: dict[str, Any] = {
    "iterations": 4,
    "batch": 8,
    "rank": 3,
    "adapter_travel": 1.0,
    "weight_scale_travel": 0.05,
    "activation_scale_travel": 0.2,
    "distillation": "none",
    "distillation_weight": 1.0,
    "loss": "normalised",
    "window": 2,
    "checks": 2,
}


def ranged(bits=W3A6, *, steps=None, **options):
    """A workbench with ranges, W3A6 and the same activation ranges in a row for every step by default."""
    plan = options.get("plan") or sampler()
    attention = "scope" in options and options["scope"].attention
    bench = workbench(bits, steps=steps or StepGroups.per_step(plan.network_calls), **options)
    if bits.weight == 32 or bits.activation_levels is None or attention:
        run_stage(WeightRange.of(bench, **MIN_MAX), "cpu", [])
        run_stage(ActivationRange.of(bench, **ACTIVATION_RANGE, **MIN_MAX), "cpu", [])
        return bench
    seen = bench.bank.cal.at(bench.bank.cal.spread(8))
    set_min_max_ranges_(bench.adapter, seen.x, seen.timestep, seen.cond, seen.step)
    return bench


def stage_of(bench, cls=LowRankTuning, **changed) -> Any:
    return cls.of(bench, **{**SETTINGS, **changed})


def run(bench, **changed):
    stage = stage_of(bench, **changed)
    run_stage(stage, "cpu", [])
    return stage


def begun(bench, **changed):
    """A stage whose first unit has begun, and which records every loss."""
    stage = stage_of(bench, **changed)
    stage.recorded_iterations = frozenset(range(100))
    stage.start_unit(stage.units()[0])
    return stage


def held_out_errors(bench) -> list[float]:
    """Mean squared error of each call's prediction on validation trajectories, of the network as it is now."""
    val, errors = bench.bank.val, []
    for call in range(val.calls):
        step = torch.full((len(val),), call)
        with torch.no_grad(), quantization(bench.network, weight=True, activation=True):
            output = bench.adapter.denoise(
                val.x[:, call],
                torch.full_like(step, val.timesteps[call]),
                val.cond,
                step,
                guidance=bench.denoising.guidance,
            )
        errors.append(float((output - val.output[:, call]).square().mean()))
    return errors


def won(findings) -> float:
    """The held-out error after training over that before, in the mean over calls: 1 where nothing was won."""
    before, after = (findings[f"noise_error_{when}"] for when in ("before", "after"))
    return sum(a / b for a, b in zip(after, before, strict=True)) / len(before)


# ---- the loss, written out


class Plain:
    """The student of a bench as plain functions of leaves that it makes: adapters and logarithms of scales."""

    def __init__(self, bench, adapters: dict[str, Tensor]) -> None:
        self.bench = bench
        self.leaves: dict[str, Tensor] = {}
        self.features: list[Tensor] = []
        for name, layer in quant_layers(bench.network).items():
            for key in ("adapter_down", "adapter_up"):
                self.leaves[f"{name}.{key}"] = adapters[f"{name}.{key}"].detach().clone().requires_grad_(True)
            for key in ("weight_quantizer", "activation_quantizer"):
                scale = getattr(layer, key).scale.detach()
                self.leaves[f"{name}.{key}"] = scale.log().requires_grad_(True)
            layer.forward = self._forward_of(name, layer)

    def _forward_of(self, name, layer):
        def forward(x):
            if not layer.weight_on:
                return layer.apply_weight(x, layer.weight, layer.bias)
            weight = layer.weight + (self.leaves[f"{name}.adapter_up"] @ self.leaves[f"{name}.adapter_down"]).view_as(
                layer.weight
            )
            quantizer = layer.weight_quantizer
            groups = quantizer.group_of_channel
            shape = (len(weight), -1, *[1] * (weight.ndim - 2))
            scale = self.leaves[f"{name}.weight_quantizer"].exp()[:, groups].reshape(shape)
            zero = quantizer.zero_point[:, groups].reshape(shape)
            levels = quantizer.levels.reshape(-1, *[1] * (weight.ndim - 1))
            weight = rounded(weight, scale, zero, levels)
            quantizer = layer.activation_quantizer
            row = int(quantizer.row_of_call[self.call]) if len(quantizer.row_of_call) else 0
            shape = [1] * x.ndim
            shape[layer.channel_axis] = -1
            scale = self.leaves[f"{name}.activation_quantizer"].exp()[row][quantizer.group_of_channel].reshape(shape)
            zero = quantizer.zero_point[row][quantizer.group_of_channel].reshape(shape)
            return layer.apply_weight(rounded(x, scale, zero, quantizer.levels), weight, layer.bias)

        return forward

    def predict(self, x, timestep, cond, call, on) -> tuple[Tensor, Tensor]:
        """One network call of one branch of one sample: (prediction, feature before the last projection)."""
        network, seen = self.bench.network, []
        handle = network.conv_norm_out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        self.call = call
        with quantization(network, weight=on, activation=on), self.bench.adapter.context.at(torch.tensor([call])):
            output = network(x[None], torch.tensor([timestep]), **cond, return_dict=False)[0]
        handle.remove()
        return output[0], seen[0][0]

    def window(self, trajectories, one, calls) -> tuple[list[Tensor], list[tuple[Tensor, ...]]]:
        """(Sum of squared errors of every call's prediction, per branch (student's, teacher's) averaged feature)."""
        errors = []
        guidance, conditioner = self.bench.denoising.guidance, self.bench.adapter.conditioner
        cond = {name: value[one : one + 1] for name, value in trajectories.cond.items()}
        branches = [cond] if guidance == 1 else [conditioner.null(cond), cond]
        kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in branches]
        for call in calls:
            x, timestep = trajectories.x[one, call], trajectories.timesteps[call]
            outputs = []
            for branch, condition in enumerate(branches):
                output, student = self.predict(x, timestep, condition, call, True)
                with torch.no_grad():
                    _, teacher = self.predict(x, timestep, condition, call, False)
                outputs.append(output)
                kept[branch].append((student, teacher))
            combined = outputs[0] if guidance == 1 else (1 - guidance) * outputs[0] + guidance * outputs[1]
            errors.append((combined - trajectories.output[one, call]).square().sum())
        return errors, [tuple(torch.stack(part).mean(0) for part in zip(*pairs, strict=True)) for pairs in kept]

    def parts(self, trajectories, windows, distillation, before=None) -> tuple[Tensor, Tensor, int, int]:
        """Of windows (trajectory, first call, length): (squared errors, distilled terms), summed, and their numbers.

        Args:
            before: what the squared errors of each call are divided by; None: 1.
        """
        noise, distilled, values, terms = torch.zeros(()), torch.zeros(()), 0, 0
        for one, first, length in windows:
            calls = range(first, first + length)
            errors, averaged = self.window(trajectories, one, calls)
            for call, error in zip(calls, errors, strict=True):
                noise = noise + error / (1 if before is None else before[call])
                values += trajectories.output[one, call].numel()
            for student, teacher in averaged:
                if distillation == "relation":
                    rows = divergence(student, teacher)
                    distilled, terms = distilled + rows.sum(), terms + len(rows)
                else:
                    distilled, terms = distilled + (student - teacher).square().sum(), terms + student.numel()
        return noise, distilled, values, terms


def rounded(x, scale, zero, levels):
    """Fake quantization whose gradients come from autograd alone: rounding is passed through, clipping is not."""
    ratio = x / scale
    clipped = torch.clamp(ratio, min=-zero, max=levels - 1 - zero)
    return (clipped + (clipped.round() - clipped).detach()) * scale


def divergence(student, teacher) -> Tensor:
    """KL of every row of the softmax of cosines, teacher against student, of features [C, H, W]."""
    maps = []
    for feature in (student, teacher):
        directions = torch.nn.functional.normalize(feature.flatten(1).T, dim=1)
        maps.append(torch.softmax(directions @ directions.T, dim=1))
    p_student, p_teacher = maps
    return (p_teacher * (p_teacher.log() - p_student.log())).sum(1)


def interrupted(end, act=None) -> type[LowRankTuning]:
    """A stage class that calls ``act(stage)``, or stops, at (number of the unit, iteration)."""

    class Interrupted(LowRankTuning):
        def iterate(self, unit, iteration):
            if (self.units().index(unit), iteration) == end:
                if act is None:
                    raise KeyboardInterrupt
                act(self)
            return super().iterate(unit, iteration)

    return Interrupted
