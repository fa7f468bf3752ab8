"""Fine-tuning of a quantized network with low-rank adapters along full-precision trajectories, without data.

EfficientDM (He et al., ICLR 2024): adapters are part of the weight that is quantized (QALoRA, eq. 7) and are merged
into its codes; their learning rates are proportional to each layer's weight step (eq. 9); every network call has
activation steps of its own (TALSQ). MPQ-DM (AAAI 2025) adds a distillation of features (``quant.relation``).

The teacher is the same network with its quantizers off: recorded trajectories hold its predictions, guidance included,
so that it runs again only where its features are asked for. Other than published: zero-points stay integers, batches
hold calls from all over the trajectory instead of one, and the calls of a window are computed together, so that the
averaged feature has a gradient through all of them.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from dmqbench.calibration.best_state import (
    ADAM,
    FACTS,
    VARIABLE,
    best_of,
    part_of,
    prefixed,
    require_finite,
    slices_of_checks,
    training_progress,
)
from dmqbench.calibration.stage import Stage, Workbench
from dmqbench.calibration.trained_parameters import TrainedScales, copies, set_
from dmqbench.calibration.variable_optimizer import VariableOptimizer, linear_decay
from dmqbench.calibration.windows import WindowErrors, Windows, all_windows, draw_windows
from dmqbench.data.noise import Stream, generator
from dmqbench.models.topology import last_features
from dmqbench.quant.functional import widened
from dmqbench.quant.layers import quantization, weight_layers
from dmqbench.quant.relation import relation_divergence, smoothed
from dmqbench.quant.state import activation_quantizers
from dmqbench.stages.low_rank_settings import ACTIVATION_SCALES, WEIGHT_SCALES, Settings
from dmqbench.tracking.record import curve

STEP = "step "
"""How facts begin that hold a layer's weight step before training."""

ADAPTERS = ("adapter_down", "adapter_up")


FORWARDS_OF_A_STEP = 3
"""A forward pass, and a backward pass that counts as two."""

EPSILON = 1e-8


class LowRankTuning(Stage):
    """Trains adapters, weight scales and activation scales of all layers together, by the network's predictions."""

    name = "low_rank_tuning"
    settings_type = Settings
    settings: Settings

    def __init__(self, bench: Workbench, settings: Settings) -> None:
        super().__init__(bench, settings)
        self.trajectories = {"cal": bench.bank.cal, "val": bench.bank.val}
        parts = slices_of_checks(settings.iterations, settings.checks)
        self.layers = weight_layers(bench.network)
        trains = self.layers or activation_quantizers(bench.network)
        self.slices = {f"iterations {part.start}-{part.stop - 1}": part for part in parts if trains}
        """Units: parts of the iterations."""
        self.adapters: dict[str, Tensor] = {}
        """Both adapters of every layer."""
        self.scales: dict[str, TrainedScales] = {}
        self.optimizer: VariableOptimizer | None = None
        self.best: dict[str, Tensor] = {}
        self.facts: dict[str, Tensor] = {}
        """Held-out errors ``noise before`` and ``noise after`` (of the best state so far) per call, ``distilled …`` per
        window; the iterations that the best state took; every layer's step before training."""
        self.parts: dict[str, dict[int, Tensor]] = {}
        """Parts of the losses that are recorded, by iteration of the unit."""

    def units(self) -> tuple[str, ...]:
        return tuple(self.slices)

    def iterations(self, unit: str) -> int:
        return len(self.slices[unit])

    # ---- what is trained

    def _train(self) -> None:
        """Find or make what is trained; the network computes with all of it at every moment."""
        self.adapters = {}
        for name, layer in self.layers.items():
            if layer.adapter_down is None:
                random = generator("adapter", self.bench.seed, name)
                layer.add_adapter_(self.settings.rank, random, self.settings.adapters == "per_tap")
            for adapter in ADAPTERS:
                self.adapters[f"{name}.{adapter}"] = layer.get_parameter(adapter).requires_grad_(True)
        owners: dict[str, list[Any]] = {
            WEIGHT_SCALES: [layer.weight_quantizer for layer in self.layers.values()],
            ACTIVATION_SCALES: list(activation_quantizers(self.bench.network).values()),
        }
        self.scales = {name: TrainedScales(quantizers, name) for name, quantizers in owners.items() if quantizers}

    def _variables(self) -> dict[str, Tensor]:
        return self.adapters | {name: trained.logs for name, trained in self.scales.items()}

    def _optimizer(self) -> VariableOptimizer:
        rates = {name: self.settings.scale_travels[name] / self.settings.iterations for name in self.scales}
        for name in self.layers:
            rate = self.settings.adapter_travel * float(self.facts[f"{STEP}{name}"]) / self.settings.iterations
            rates |= {f"{name}.{adapter}": rate for adapter in ADAPTERS}
        # A table's rows are used by the calls of a batch alone.
        lazy = [ACTIVATION_SCALES] if ACTIVATION_SCALES in self.scales else []
        return VariableOptimizer(
            self._variables(),
            rates,
            self.settings.iterations,
            unit=1.0,
            decay=linear_decay,
            epsilon=EPSILON,
            lazy=lazy,
            weight_decay=dict.fromkeys(self.adapters, self.settings.adapter_decay),
        )

    def _show(self) -> None:
        for trained in self.scales.values():
            trained.show_()

    def start_unit(self, unit: str) -> None:
        self.parts = {"noise": {}, "distilled": {}}
        if self.slices[unit].start:
            return
        self._train()
        self._show()
        for name, layer in self.layers.items():
            self.facts[f"{STEP}{name}"] = layer.weight_step()
        before = self._held_out()
        for when in ("before", "after"):
            self.facts |= {f"{part} {when}": values.clone() for part, values in before.items()}
        self.facts["best iteration"] = torch.tensor(0)
        self.best = copies(self._variables())
        self.optimizer = self._optimizer()

    def iterate(self, unit: str, iteration: int) -> Tensor:
        assert self.optimizer is not None
        at, bench = self.slices[unit].start + iteration, self.bench
        count = max(1, self.settings.batch // self.settings.window)
        windows = draw_windows(bench.seed, self.name, "all", at, bench.bank.cal, self.settings.window, count)
        with quantization(bench.network, weight=True, activation=True):  # what is computed again is as it was
            parts = self._parts(self._errors("cal", windows), windows)
            loss = parts["noise"]
            if "distilled" in parts:
                loss = loss + self.settings.distillation_weight * parts["distilled"]
            loss.backward()
        self.network_forwards += windows.samples * bench.branches * FORWARDS_OF_A_STEP
        for trained in self.scales.values():
            trained.gather_()
        require_finite(self._variables(), f"stage {self.name}", f"iteration {at}")
        self.optimizer.step(at)
        self._show()
        if iteration in self.recorded_iterations:
            for part, value in parts.items():
                self.parts[part][iteration] = value.detach()
        return loss

    def _parts(self, errors: WindowErrors, windows: Windows) -> dict[str, Tensor]:
        """What the loss is the sum of, ``distilled`` before its weight λ."""
        before = self._before("noise")
        noise = (errors.noise / (before[windows.calls] if self.settings.normalised else before.mean())).mean()
        if errors.distilled is None:
            return {"noise": noise}
        factor = 1 / self._before("distilled").mean() if self.settings.normalised else errors.terms / before.mean()
        return {"noise": noise, "distilled": factor * errors.distilled}

    def _before(self, part: str) -> Tensor:
        """Held-out errors before training, or 1 where there was none, on the device."""
        before = self.facts[f"{part} before"]
        return torch.where(before > 0, before, 1.0).to(self.bench.device)

    def _held_out_error(self, errors: dict[str, Tensor]) -> float:
        """What the best state has least of: the error of predictions, weighted as in the loss."""
        before = self._before("noise").to(errors["noise"])
        return float((errors["noise"] / (before if self.settings.normalised else 1.0)).mean())

    @torch.no_grad()
    def finish_unit(self, unit: str) -> dict[str, float]:
        done, now = self.slices[unit].stop, self._held_out()
        error, least = (self._held_out_error(errors) for errors in (now, self._best_errors()))
        if error < least:
            self.facts |= {f"{part} after": values for part, values in now.items()}
            self.facts["best iteration"] = torch.tensor(done)
            self.best = copies(self._variables())
        for part, values in self.parts.items():
            if values:
                listed = [float(value) for value in values.values()]
                line = curve(f"loss/{self.name}/{part}", "iteration", list(values), {unit: listed})
                self.bench.record.log("curve", **line)
        if done == self.settings.iterations:
            set_(self._variables(), self.best)
            self._merge()
        return {"held_out_error": error, "best_held_out_error": min(error, least)}

    def _best_errors(self) -> dict[str, Tensor]:
        return {part: self.facts[f"{part} after"] for part in ("noise", "distilled") if f"{part} after" in self.facts}

    def _merge(self) -> None:
        """Fix the codes of the weights that adapters have changed; nothing else remains of them."""
        for trained in self.scales.values():
            trained.settle_(trained.outcome())
        for layer in self.layers.values():
            layer.freeze_weight_()
            layer.adapter_down, layer.adapter_up = None, None

    # ---- errors

    def _errors(self, stream: Stream, windows: Windows) -> WindowErrors:
        """Of the quantized network on the recorded states of ``windows``."""
        of_stream, bench = self.trajectories[stream], self.bench
        inputs, device = windows.inputs(of_stream), bench.device
        target = windows.outputs(of_stream).to(device)

        def run(on: bool) -> tuple[Tensor, Sequence[Tensor]]:
            looking = last_features(bench.network, bench.topology, None) if self.settings.distils else nullcontext(())
            with quantization(bench.network, weight=on, activation=on), looking as features:
                return bench.denoising.predict(inputs), features

        output, students = run(True)
        noise = (output - target).square().flatten(1).mean(1).unflatten(0, (len(windows), -1))
        if not self.settings.distils:
            return WindowErrors(noise)
        with torch.no_grad():
            _, teachers = run(False)
        self.network_forwards += windows.samples * bench.branches
        joined = (widened(torch.cat(list(features))) for features in (students, teachers))
        windowed = (features.unflatten(0, (-1, self.settings.window)) for features in joined)
        student, teacher = (smoothed(feature.unbind(1)) for feature in windowed)
        if self.settings.distillation == "relation":
            distilled, terms = relation_divergence(student, teacher), student[..., 0].numel()
        else:
            distilled, terms = (student - teacher).square().mean(), student.numel()
        return WindowErrors(noise, distilled, terms / target.numel())

    @torch.no_grad()
    def _held_out(self) -> dict[str, Tensor]:
        """Mean errors on validation trajectories: ``noise`` of every call, ``distilled`` of every window."""
        of_stream = self.trajectories["val"]
        noise, visits = torch.zeros(of_stream.calls), torch.zeros(of_stream.calls)
        distilled: dict[int, float] = {}
        for windows in all_windows(of_stream, self.settings.window, self.settings.batch):
            errors = self._errors("val", windows)
            self.network_forwards += windows.samples * self.bench.branches
            first, share = int(windows.first[0]), len(windows) / len(of_stream)
            calls = slice(first, first + self.settings.window)
            noise[calls] += errors.noise.mean(0).cpu() * share
            visits[calls] += share
            if errors.distilled is not None:
                distilled[first] = distilled.get(first, 0.0) + float(errors.distilled) * share
        means = {"noise": noise / visits}
        return means if not self.settings.distils else means | {"distilled": torch.tensor(list(distilled.values()))}

    # ---- what is kept and told

    def progress(self) -> dict[str, Tensor]:
        facts = prefixed(FACTS, self.facts)
        if self.optimizer is None or self.first_unit + self.current_epoch + 1 == len(self.units()):
            return facts
        logs = {name: trained.logs.detach().clone() for name, trained in self.scales.items()}
        return facts | training_progress(logs, self.best, self.optimizer)

    def load_progress_(self, progress: dict[str, Tensor]) -> None:
        self.facts = part_of(progress, FACTS)
        if self.first_unit == len(self.units()):
            return
        self._train()
        set_({name: trained.logs for name, trained in self.scales.items()}, part_of(progress, VARIABLE))
        self._show()
        self.best = best_of(progress, self.bench.device)
        self.optimizer = self._optimizer()
        self.optimizer.load_state_(part_of(progress, ADAM))

    def findings(self) -> dict[str, Any]:
        """Held-out errors before and after: of predictions per call, of what is distilled per window."""
        if not self.slices:
            return {}

        def listed(part: str) -> list[float] | None:
            return self.facts[part].tolist() if part in self.facts else None

        return {
            "settings": {key: getattr(self.settings, key) for key in ("rank", "distillation", "window")},
            "best_iteration": int(self.facts["best iteration"]),
            **{f"noise_error_{when}": listed(f"noise {when}") for when in ("before", "after")},
            **{f"distilled_error_{when}": listed(f"distilled {when}") for when in ("before", "after")},
        }
