"""AccuQuant: fit quantization parameters to the state that the model reaches after several of its own steps.

Lee et al., "AccuQuant: Simulating Multiple Denoising Steps for Quantizing Diffusion Models" (NeurIPS 2025). The calls
of the sampler are cut into groups of ``horizon``. Over a group, full precision and the quantized model start from one
state, each goes on from its own states, and the loss compares the end states alone.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dmqbench.calibration.best_state import (
    ADAM,
    FACTS,
    VARIABLE,
    best_of,
    part_of,
    require_finite,
    slices_of_checks,
    training_progress,
)
from dmqbench.calibration.stage import Stage, Workbench
from dmqbench.calibration.trained_parameters import Trained, TrainedScales, TrainedWeights, agreement, set_
from dmqbench.calibration.variable_optimizer import VariableOptimizer
from dmqbench.calibration.windows import Span, spans_of
from dmqbench.data.bank import Trajectories
from dmqbench.data.noise import Stream, draw_batch
from dmqbench.quant.layers import freeze_weight_, quantization, weight_layers
from dmqbench.quant.state import activation_quantizers
from dmqbench.samplers.adjoint import power_spectrum, recorded_states
from dmqbench.samplers.plan import State
from dmqbench.stages.trajectory_facts import SpanFacts
from dmqbench.stages.trajectory_gradients import RULES, GroupProblem
from dmqbench.stages.trajectory_settings import REFERENCE, Settings

STREAMS: tuple[Stream, ...] = ("cal", "val")


class TrajectoryReconstruction(Stage):
    """Learns activation scales, and with ``recipe=joint`` rounding and weight scales, by the error of end states."""

    name = "trajectory_reconstruction"
    settings_type = Settings
    settings: Settings

    def __init__(self, bench: Workbench, settings: Settings) -> None:
        super().__init__(bench, settings)
        self.rule = settings.rule
        self.trajectories: dict[Stream, Trajectories] = {"cal": bench.bank.cal, "val": bench.bank.val}
        self.spectrum = power_spectrum(bench.bank.cal.x[:, -1]).to(bench.device)
        row_of_call = bench.step_groups.row_of_call
        freeze_weight_(bench.network)
        self.quantizers = activation_quantizers(bench.network)
        self.weights = weight_layers(bench.network)
        trains = self.quantizers or (settings.joint and self.weights)
        calls = bench.sampler.calls
        off_trajectory = [place for place, call in enumerate(calls) if call.base == "anchor"]
        spans = spans_of(len(calls), settings.horizon, row_of_call, settings.joint, off_trajectory)
        self.spans = spans if trains else ()
        self.slices = {
            f"{span.name}, iterations {part.start}-{part.stop - 1}": (span, part)
            for span in self.spans
            for part in slices_of_checks(self._total(span), settings.checks)
        }
        """Units: parts of the iterations of each span."""
        self.facts: dict[str, SpanFacts] = {}
        self.trained: list[Trained] = []
        self.optimizer: VariableOptimizer | None = None
        self.best: dict[str, Tensor] = {}
        self.best_error = math.inf
        self.states: dict[Stream, dict[int, State]] = {}
        """Full-precision states of all trajectories, by the call they stand before."""
        self.starts: dict[Stream, dict[int, State]] = {}
        """What the groups start from, by their first calls."""

    # ---- units: slices of the spans

    def _total(self, span: Span) -> int:
        return self.settings.iterations * len(span.groups)

    def units(self) -> tuple[str, ...]:
        return tuple(self.slices)

    def iterations(self, unit: str) -> int:
        return len(self.slices[unit][1])

    # ---- what is trained

    def _train(self) -> None:
        """Make the variables, as the calibration state has them."""
        self.trained = [TrainedScales(self.quantizers.values())] if self.quantizers else []
        if self.settings.joint:
            self.trained.append(TrainedWeights(self.weights))

    def _optimizer(self, span: Span) -> VariableOptimizer:
        total, before = self._total(span), self.facts[span.name].before
        scale, rounding = self.settings.rates(total)
        rates = {name: rounding if name.endswith(".latent") else scale for name in self._variables()}
        return VariableOptimizer(self._variables(), rates, total, unit=sum(before) / len(before) or 1.0)

    def _variables(self) -> dict[str, Tensor]:
        return {name: value for part in self.trained for name, value in part.variables().items()}

    def _outcome(self) -> dict[str, Tensor]:
        return {name: value for part in self.trained for name, value in part.outcome().items()}

    def _leaves(self) -> list[Tensor]:
        return [leaf for part in self.trained for leaf in part.leaves()]

    def _show(self) -> None:
        for part in self.trained:
            part.show_()

    def start_unit(self, unit: str) -> None:
        span, part = self.slices[unit]
        if part.start == 0:
            self._train()
        self._show()
        self._prepare(span)
        if part.start == 0:
            errors = self._held_out_errors(span)
            self.best, self.best_error = self._outcome(), sum(errors)
            self.facts[span.name] = SpanFacts(0.0, *self._agreement(span), before=errors, after=errors)
            self.optimizer = self._optimizer(span)

    def iterate(self, unit: str, iteration: int) -> Tensor:
        assert self.optimizer is not None
        span, part = self.slices[unit]
        at = part.start + iteration
        chosen = draw_batch(self.bench.seed, self.name, span.name, at, len(self.bench.bank.cal), self.settings.batch)
        self._show()
        with quantization(self.bench.network, weight=True, activation=True):
            problem = self._problem("cal", chosen, span.groups[at % len(span.groups)])
            loss = self.rule.run(problem, self._leaves())
        self._count(problem, self.rule.forwards(len(problem.calls)))
        for trained in self.trained:
            trained.gather_()
        require_finite(self._variables(), f"stage {self.name}, {unit}", str(at))
        self.optimizer.step(at)
        return loss

    def finish_unit(self, unit: str) -> dict[str, float]:
        span, part = self.slices[unit]
        self._show()
        if self.settings.from_quantized and len(span.groups) > 1:  # the calls that lead to later groups have changed
            self.starts["val"] = self._prefix("val", span)
        errors, groups = self._held_out_errors(span), len(span.groups)
        if sum(errors) < self.best_error:
            self.best, self.best_error = self._outcome(), sum(errors)
            self.facts[span.name] = replace(self.facts[span.name], best_iteration=float(part.stop), after=errors)
        outcome = self.best if part.stop == self._total(span) else self._outcome()
        for trained in self.trained:
            trained.settle_(outcome)
        self.states, self.starts = {}, {}
        return {"held_out_error": sum(errors) / groups, "best_held_out_error": self.best_error / groups}

    # ---- the states of trajectories

    def _prepare(self, span: Span) -> None:
        """Find the full-precision states of the span's calls, and the states that its groups start from."""
        bench = self.bench
        for stream in STREAMS:
            of_stream = self.trajectories[stream]
            states = enumerate(recorded_states(bench.sampler, of_stream.x, of_stream.output))
            needed = range(span.calls.start, span.calls.stop + 1)
            self.states[stream] = {place: state for place, state in states if place in needed}
            self.starts[stream] = self._prefix(stream, span) if self.settings.from_quantized else self.states[stream]

    def _prefix(self, stream: Stream, span: Span) -> dict[int, State]:
        """The states before the first call of every group that the quantized model reaches by itself."""
        bench, of_stream = self.bench, self.trajectories[stream]
        firsts = {group.start for group in span.groups}
        parts: dict[int, list[State]] = {first: [] for first in firsts}
        with quantization(bench.network, weight=True, activation=True):
            for indices in torch.arange(len(of_stream)).split(self.settings.batch):
                x = of_stream.x[indices, 0].to(bench.device)
                cond = {name: value[indices].to(bench.device) for name, value in of_stream.cond.items()}
                state = bench.sampler.initial(x)
                if 0 in firsts:
                    parts[0].append(state)
                visits = bench.denoising.rollout_from(
                    state, 0, cond, stream=stream, seed=bench.seed, indices=indices.tolist()
                )
                for visit in visits if max(firsts) > 0 else ():
                    self.network_forwards += len(indices) * bench.branches
                    if visit.call + 1 in firsts:
                        parts[visit.call + 1].append(visit.after)
                    if visit.call + 1 >= max(firsts):
                        break
        return {first: State.joined(states) for first, states in parts.items()}

    def _problem(self, stream: Stream, chosen: Tensor, group: range) -> GroupProblem:
        bench, of_stream = self.bench, self.trajectories[stream]
        cond = {name: value[chosen].to(bench.device) for name, value in of_stream.cond.items()}

        def denoise(x: Tensor, call: int) -> Tensor:
            return bench.denoising.predict_at(x, call, cond)

        return GroupProblem(
            denoise=denoise,
            plan=bench.sampler,
            first=group.start,
            start=self.starts[stream][group.start].chosen(chosen, bench.device),
            references=[
                self.states[stream][place].chosen(chosen, bench.device) for place in range(group.start, group.stop + 1)
            ],
            noises=[
                bench.denoising.noise(call, stream=stream, seed=bench.seed, indices=chosen.tolist()) for call in group
            ],
            spectrum=self.spectrum,
        )

    def _count(self, problem: GroupProblem, forwards: float) -> None:
        self.network_forwards += len(problem.target) * self.bench.branches * forwards

    def _held_out_errors(self, span: Span) -> list[float]:
        """Mean squared error of the end states of every group, on validation trajectories."""
        errors = []
        with quantization(self.bench.network, weight=True, activation=True):
            for group in span.groups:
                total, population = 0.0, len(self.trajectories["val"])
                for chosen in torch.arange(population).split(self.settings.batch):
                    problem = self._problem("val", chosen, group)
                    total += float(problem.end_state_error()) * len(chosen)
                    self._count(problem, len(problem.calls))
                errors.append(total / population)
        return errors

    def _agreement(self, span: Span) -> tuple[float, float]:
        """Cosine and ratio of norms of the rule's gradient against the exact one, on one batch of every group.

        It calibrates nothing, and neither its calls nor its time are counted.
        """
        if self.settings.gradient == REFERENCE:
            return 1.0, 1.0
        self.watch.stop()
        chosen = draw_batch(self.bench.seed, self.name, span.name, -1, len(self.bench.bank.cal), self.settings.batch)
        gradients: list[list[Tensor]] = []
        with quantization(self.bench.network, weight=True, activation=True):
            for rule in (self.rule, RULES[REFERENCE]):
                for group in span.groups:
                    problem = self._problem("cal", chosen, group)
                    rule.run(problem, self._leaves())
                for trained in self.trained:
                    trained.gather_()
                variables = self._variables().values()
                gradients.append([variable.grad for variable in variables if variable.grad is not None])
        for variable in self._variables().values():
            variable.grad = None
        self.watch.start()
        return agreement(*gradients)

    # ---- what is kept and told

    def progress(self) -> dict[str, Tensor]:
        facts = {f"{FACTS}{name}": facts.to_tensor() for name, facts in self.facts.items()}
        if self.optimizer is None:
            return facts
        constants = {name: value for part in self.trained for name, value in part.constants().items()}
        return {
            **facts,
            "best_error": torch.tensor(self.best_error, dtype=torch.float64),
            **training_progress(self._variables() | constants, self.best, self.optimizer),
        }

    def load_progress_(self, progress: dict[str, Tensor]) -> None:
        self.facts = {name: SpanFacts.of(values) for name, values in part_of(progress, FACTS).items()}
        if self.first_unit == len(self.units()):
            return
        span, part = self.slices[self.units()[self.first_unit]]
        if part.start == 0:
            return
        self._train()
        self.optimizer = self._optimizer(span)
        constants = {name: value for trained in self.trained for name, value in trained.constants().items()}
        set_(self._variables() | constants, part_of(progress, VARIABLE))
        self.best = best_of(progress, self.bench.device)
        self.best_error = float(progress["best_error"])
        self.optimizer.load_state_(part_of(progress, ADAM))

    def findings(self) -> dict[str, Any]:
        """Held-out end-state errors before and after, and how far the gradient agreed with the exact one, per span."""
        if not self.spans:
            return {}
        horizon = len(self.spans[0].groups[0])
        return {
            "settings": {"horizon": horizon, "gradient": self.settings.gradient, "joint": self.settings.joint},
            "spans": [self.facts[span.name].to_json(span) for span in self.spans],
        }
