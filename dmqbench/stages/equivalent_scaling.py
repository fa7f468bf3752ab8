"""Learned equivalent scaling (LES; DMQ, Lee et al. 2025, eq. 5–9): a stage that learns one τ per input channel.

Inputs and targets are those of full precision, so layers do not depend on each other. Either all of them learn from the
same pass of the network, each inside a hook that sees its input and forgets it again, or one after another from inputs
that were kept: whichever takes fewer passes of the network.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dmqbench.calibration.best_state import part_of, prefixed, slices
from dmqbench.calibration.capture import memory_groups
from dmqbench.calibration.layer_views import LayerBatch, LayerViews
from dmqbench.calibration.stage import HELD_OUT_POINTS, CalibrationDiverged, Stage, Workbench
from dmqbench.calibration.variable_optimizer import moments_of, set_moments_
from dmqbench.data.noise import draw_batch
from dmqbench.models.absorption import Absorbable, absorb_, absorbable
from dmqbench.models.portions import WHOLE
from dmqbench.quant.layer import QuantLayer
from dmqbench.quant.layers import quant_layers
from dmqbench.quant.scaling import SMALLEST_EQUIVALENT_SCALE
from dmqbench.quant.weighting import bins_of_calls
from dmqbench.stages.equivalent_scaling_settings import Settings
from dmqbench.stages.scale_learner import HeldOutFacts, ScaleLearner, layer_facts, weighting_facts

SLICE = 25
"""Iterations between two checkpoints, and between two looks at the held-out error."""


def can_be_scaled(layer: QuantLayer) -> bool:
    """Whether anything of it is quantized, and every output channel reads every input channel."""
    return (layer.weight_quantizer is not None or layer.activation_quantizer is not None) and (
        getattr(layer, "groups", 1) == 1
    )


class EquivalentScaling(Stage):
    """Learn τ of every quantized layer against its full-precision output, inputs being those of full precision.

    A grouped convolution has no equivalent scale here: it stays unscaled, and the record says so. With ``absorb``
    layers that read the same norm, values or gated unit share one τ, which these rows have in the end.
    """

    name = "equivalent_scaling"
    settings_type = Settings
    settings: Settings

    def __init__(self, bench: Workbench, settings: Settings) -> None:
        super().__init__(bench, settings)
        self.points = bench.bank.cal.spread(settings.samples)
        self.bin_of_call = bins_of_calls(bench.sampler.network_calls, settings.bins)
        layers = quant_layers(bench.network)
        rounded = [
            name
            for name, layer in layers.items()
            if layer.weight_quantizer and layer.weight_quantizer.codes is not None
        ]
        if rounded:
            raise ValueError(f"{self.name} must come before the weights are rounded, and {rounded[0]} already is")
        self.left_out = [name for name, layer in layers.items() if not can_be_scaled(layer)]
        self.learners = {name: self._learner(layer) for name, layer in layers.items() if can_be_scaled(layer)}
        self.absorbed = absorbable(bench.network, self.learners) if settings.absorb else Absorbable({}, {})
        self.leader = {name: name for name in self.learners}
        """Of every layer, the one whose τ it has: the first of those that share it, or itself."""
        for members in self.absorbed.shared.values():
            self.leader |= dict.fromkeys(members, members[0])
        self._tie_()
        points = {"cal": self.points, "val": bench.bank.val.spread(HELD_OUT_POINTS)}
        self.views = LayerViews(bench, layers, self.bin_of_call, points, settings.batch)
        if settings.deployed:
            self.views.require_every_row("cal")
        shares = bench.topology.share_of_macs
        self.share_of_network = {name: shares[name] for name in self.learners}
        self.groups = self._groups()
        """Layers whose inputs are kept together; none if all layers learn from one pass."""
        self.slices = self._slices()
        """Units, and which iterations they do: of a layer all, or some of all layers."""
        self.optimizer: torch.optim.Adam | None = None

    def _learner(self, layer: QuantLayer) -> ScaleLearner:
        settings, bins = self.settings, int(self.bin_of_call.max()) + 1
        weighting, zero_in_range = settings.timestep_weighting, settings.zero_in_range
        return ScaleLearner(
            layer, weighting, bins, zero_in_range, settings.deployed, settings.memory, settings.clipping
        )

    def _sharers(self, leader: str) -> list[str]:
        return [name for name, own in self.leader.items() if own == leader]

    def _tie_(self) -> None:
        """Let layers that share a τ have the very same parameter."""
        for name, leader in self.leader.items():
            self.learners[name].shared = len(self._sharers(leader)) > 1
            self.learners[name].layer.equivalent_scale = self.learners[leader].scale

    # ---- what is done in which order

    def _groups(self) -> list[list[str]]:
        """Decide by the passes of the network that each way needs."""
        if self.settings.schedule == "joint" or not self.learners:
            return []
        points = len(self.points)
        sizes: dict[str, int] = {}

        def note(name: str, batch: LayerBatch) -> None:
            leader = self.leader[name]
            sizes[leader] = sizes.get(leader, 0) + (batch.x.nbytes + batch.output.nbytes) * points

        self._count(self.views.show(note, "cal", self.points[:1], list(self.learners)))
        groups = memory_groups(sizes, self.settings.memory)
        fits = max(sizes.values()) <= self.settings.memory
        cached_pays = fits and len(groups) * points < self.settings.iterations * self.settings.batch
        return groups if self.settings.schedule == "cached" or cached_pays else []

    @classmethod
    def outline_(cls, network: nn.Module, settings: Settings) -> str | None:
        layers = {name: layer for name, layer in quant_layers(network).items() if can_be_scaled(layer)}
        kept = absorbable(network, layers).left_out if settings.absorb else layers
        for layer in (layers[name] for name in kept):
            layer.set_equivalent_scale_(layer.weight.new_ones(layer.weight.shape[1]))
        return None

    def _slices(self) -> dict[str, range]:
        if self.groups:
            return {name: range(self.settings.iterations) for group in self.groups for name in group}
        parts = slices(self.settings.iterations, SLICE) if self.learners else []
        return {f"iterations {part.start}-{part.stop}": part for part in parts}

    def units(self) -> tuple[str, ...]:
        return tuple(self.slices)

    def iterations(self, unit: str) -> int:
        return len(self.slices[unit])

    def _members(self, unit: str) -> list[str]:
        return self._sharers(unit) if self.groups else list(self.learners)

    def start_unit(self, unit: str) -> None:
        if self.groups:
            self._keep(unit)
        elif self.optimizer is not None:
            return
        names = self._members(unit)
        if self.settings.deployed:
            self._span(names)
        self.optimizer = self._optimizer(names)
        self._look(names)

    def _optimizer(self, names: Sequence[str]) -> torch.optim.Adam:
        """One for all layers in training: 93 small ones take a tenth of the whole stage."""
        scales = list(dict.fromkeys(self.learners[name].scale for name in names))
        return torch.optim.Adam(scales, lr=self.settings.learning_rate)

    def iterate(self, unit: str, iteration: int) -> Tensor:
        at = self.slices[unit].start + iteration
        chosen = draw_batch(self.bench.seed, self.name, "all", at, len(self.points), self.settings.batch)
        learning = [name for name in self._members(unit) if not self.learners[self.leader[name]].stopped]
        losses: list[Tensor] = []

        def learn(name: str, batch: LayerBatch) -> None:
            losses.append(self._learn(name, batch, at))

        if self.groups:
            for name in learning:
                learn(name, self.views.kept_samples(name, "cal", chosen))
        elif learning:
            with self.bench.adapter.computing(WHOLE):  # a step is learned from a whole batch
                self._count(self.views.show(learn, "cal", self.points[chosen], learning))
        self._step(learning, at)
        if (at + 1) % SLICE == 0 or at + 1 == self.settings.iterations:
            self._look(learning)
        return torch.stack(losses).mean() if losses else torch.zeros(())

    def _learn(self, name: str, batch: LayerBatch, at: int) -> Tensor:
        scale = self.learners[name].scale
        loss = self.learners[name].learn(batch)
        # A gradient may overflow where the loss does not, and would first be seen in the next checkpoint.
        if not (loss.isfinite() and scale.grad is not None and scale.grad.isfinite().all()):
            self._record_losses()
            raise CalibrationDiverged(
                f"stage {self.name}, layer {name}: loss {float(loss)} or its gradient at iteration {at} is not finite"
            )
        self.network_forwards += 3 * len(batch.x) * self.share_of_network[name]
        return loss

    @torch.no_grad()
    def _step(self, names: Sequence[str], at: int) -> None:
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * (1 + math.cos(math.pi * at / self.settings.iterations)) / 2
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for name in names:
            self.learners[name].scale.clamp_(min=SMALLEST_EQUIVALENT_SCALE)

    def _look(self, names: Sequence[str]) -> None:
        """Compare each layer's held-out error with its best, where layers may stop early."""
        if not self.settings.patience:
            return
        errors: dict[str, list[Tensor]] = {name: [] for name in names}

        def measure(name: str, batch: LayerBatch) -> None:
            errors[name].append(self.learners[name].held_out_errors(batch))

        self._count(self.views.show_all(measure, "val", names))
        found = {name: float(torch.cat(parts).mean()) for name, parts in errors.items()}
        for leader in dict.fromkeys(self.leader[name] for name in names):
            self.learners[leader].judge(sum(found[name] for name in self._sharers(leader)), self.settings.patience)

    def finish_unit(self, unit: str) -> dict[str, float]:
        members, last = self._members(unit), self.units()[-1] == unit
        if self.settings.patience and (self.groups or last):
            for leader in {self.leader[name] for name in members}:
                self.learners[leader].settle()
        if last and self.left_out:
            self.bench.record.log("unscaled", stage=self.name, layers=self.left_out, reason="grouped, or not quantized")
        for name in members:
            self.views.kept.pop(name, None)
        spreads = [float(self.learners[name].scale.detach().log().std(correction=0)) for name in members]
        return {"spread_of_log_scale": sum(spreads) / len(spreads)}

    def _keep(self, unit: str) -> None:
        """Keep what the layers of ``unit``'s group see, from ``unit`` on, unless that was done for another of them."""
        if unit not in self.views.kept:
            group = next(group for group in self.groups if unit in group)
            streams = ("cal", "val") if self.settings.patience else ("cal",)
            names = [name for leader in group[group.index(unit) :] for name in self._sharers(leader)]
            self._count(self.views.keep(streams, names))

    def _span(self, names: Sequence[str]) -> None:
        """Find the extremes of the channels over all calibration points."""
        rows = self.bench.step_groups.rows
        self._count(self.views.show_all(lambda name, batch: self.learners[name].span(batch, rows), "cal", names))

    def _count(self, computed: int) -> None:
        """Not added in place: while views are shown, learners learn from them, and that is counted too."""
        self.network_forwards += computed

    # ---- what is kept and told

    def progress(self) -> dict[str, Tensor]:
        carried: dict[str, Tensor] = {}
        for name, learner in self.learners.items():
            joint = None if self.groups or self.leader[name] != name else self.optimizer
            moments = {} if joint is None else moments_of(joint, learner.scale)
            carried |= prefixed(f"{name}.", learner.progress() | moments)
        return carried

    def load_progress_(self, progress: dict[str, Tensor]) -> None:
        self._tie_()
        own = {name: part_of(progress, f"{name}.") for name in self.learners}
        for name, learner in self.learners.items():
            learner.load_progress_(own[name])
        if self.groups:
            return
        if self.settings.deployed:
            self._span(list(self.learners))
        self.optimizer = self._optimizer(list(self.learners))
        for name, learner in self.learners.items():
            set_moments_(self.optimizer, learner.scale, own[name])

    def conclude_(self) -> None:
        if self.settings.absorb:
            shared, left_out = self.absorbed
            scales = {name: self.learners[name].scale.detach() for members in shared.values() for name in members}
            absorb_(self.bench.network, scales)
            self.bench.record.log("absorbed", stage=self.name, places=shared, left_out=left_out)

    def findings(self) -> dict[str, Any]:
        """λ over the bins, held-out error and disparity of every layer, and the channels of the most uneven ones."""
        if not self.learners:
            return {}
        unspanned = [name for name, learner in self.learners.items() if learner.low is None]
        if self.settings.deployed and unspanned:  # after a resume
            self._span(unspanned)
        facts = {name: HeldOutFacts(learner) for name, learner in self.learners.items()}
        self._count(self.views.show_all(lambda name, batch: facts[name].add(batch), "val", list(facts)))
        running = [learner.running for learner in self.learners.values()]
        weighting = weighting_facts(self.settings.timestep_weighting, running, self.bin_of_call)
        return {"weighting": weighting, **layer_facts(facts)}
