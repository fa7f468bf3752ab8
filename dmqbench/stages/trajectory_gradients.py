"""Gradients of the error that a quantized model has after M of its own denoising steps (AccuQuant), by several ways.

Every way is a ``GradientRule``: it runs the quantized model over one group of calls, adds gradients to the ``grad`` of
the parameters, and returns the squared error of the end states. They differ in what they make of ∂L/∂x at the states
inside the group, and so in memory and cost.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest

import torch
from torch import Tensor

from dmqbench.samplers.adjoint import (
    Transport,
    detached,
    linear_transport,
    output_gradients,
    scalar_transport,
    spectral_transport,
    unit_transport,
)
from dmqbench.samplers.plan import SamplerPlan, State

Denoise = Callable[[Tensor, int], Tensor]
"""(x [B, …], call) → the quantized network's output, guidance included."""


@dataclass(frozen=True)
class GroupProblem:
    """M consecutive calls of a batch: where the quantized model starts, and where full precision went.

    Attributes:
        denoise: the quantized model.
        plan: the sampler's table.
        first: index of the first call.
        start: the state that the quantized model starts from.
        references: full-precision states before each call and at the end, M+1.
        noises: added after each call, the same for both models; None where there is none.
        spectrum: variance of the data per spatial frequency, for the rules that ask for it.
    """

    denoise: Denoise
    plan: SamplerPlan
    first: int
    start: State
    references: Sequence[State]
    noises: Sequence[Tensor | None]
    spectrum: Tensor

    @property
    def calls(self) -> range:
        return range(self.first, self.first + len(self.noises))

    @property
    def end(self) -> int:
        """Index of the call that would follow."""
        return self.calls.stop

    @property
    def target(self) -> Tensor:
        return self.references[-1].x

    def after(self, state: State, output: Tensor, call: int) -> State:
        return self.plan.step(state, output, call, self.noises[call - self.first])

    @torch.no_grad()
    def run(self) -> tuple[list[State], list[Tensor]]:
        """The M+1 states and M outputs of the quantized model on its own states."""
        states, outputs = [detached(self.start)], []
        for call in self.calls:
            outputs.append(self.denoise(states[-1].x, call))
            states.append(self.after(states[-1], outputs[-1], call))
        return states, outputs

    def end_state_error(self) -> Tensor:
        """Mean squared difference of the end states; no gradient."""
        return mean_square(self.run()[0][-1].x, self.target)


def mean_square(x: Tensor, target: Tensor) -> Tensor:
    """mean (x − target)²."""
    return (x - target).square().mean()


def mean_square_gradient(x: Tensor, target: Tensor) -> Tensor:
    """∂/∂x of ``mean_square``: 2 (x − target) / |x|."""
    return 2 * (x - target) / x.numel()


Run = Callable[[GroupProblem, Sequence[Tensor]], Tensor]
"""(problem, parameters) → end-state error; gradients are added to ``grad`` of the parameters."""


@dataclass(frozen=True)
class GradientRule:
    """A way to the gradient, and what it costs.

    Attributes:
        run: computes it.
        forwards_per_call: quantized forward passes per network call, a backward pass counting as two.
        forwards_per_group: what comes to that once.
    """

    run: Run
    forwards_per_call: float
    forwards_per_group: float = 0.0

    def forwards(self, calls: int) -> float:
        """Of one sample over a group of ``calls``."""
        return calls * self.forwards_per_call + self.forwards_per_group


def exact(problem: GroupProblem, parameters: Sequence[Tensor]) -> Tensor:
    """Full backpropagation through all calls; memory grows with M."""
    state = detached(problem.start)
    with torch.enable_grad():
        for call in problem.calls:
            state = problem.after(state, problem.denoise(state.x, call), call)
        loss = mean_square(state.x, problem.target)
    _backward(loss, parameters)
    return loss.detach()


def replayed(problem: GroupProblem, parameters: Sequence[Tensor]) -> Tensor:
    """The exact gradient in the memory of one call: M states are kept, and each call is run again on the way back."""
    states, _ = problem.run()
    of_state = _Adjoint(mean_square_gradient(states[-1].x, problem.target))
    for call in reversed(problem.calls):
        of_state = of_state.before(problem, states[call - problem.first], call, parameters)
    return mean_square(states[-1].x, problem.target)


class _Adjoint:
    """∂L/∂(state): of x, of the anchor and of the history."""

    def __init__(self, x: Tensor, anchor: Tensor | None = None, history: Sequence[Tensor | None] = ()) -> None:
        self.x, self.anchor, self.history = x, anchor, history

    def before(self, problem: GroupProblem, state: State, call: int, parameters: Sequence[Tensor]) -> "_Adjoint":
        """Carry it back over one call, and add what the call's parameters receive."""
        leaves = State(_leaf(state.x), _leaf(state.anchor), tuple(map(_leaf, state.history)))
        with torch.enable_grad():
            after = problem.after(leaves, problem.denoise(leaves.x, call), call)
        pairs = [
            (tensor, gradient)
            for tensor, gradient in zip_longest(  # nothing is asked of the last state's history
                (after.x, after.anchor, *after.history), (self.x, self.anchor, *self.history)
            )
            if gradient is not None and tensor.requires_grad
        ]
        own = [leaves.x, leaves.anchor, *leaves.history]
        tensors, gradients = zip(*pairs, strict=True)
        torch.autograd.backward(tensors, gradients, inputs=[*parameters, *own])
        assert leaves.x.grad is not None
        return _Adjoint(leaves.x.grad, leaves.anchor.grad, [tensor.grad for tensor in leaves.history])


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(True)


def transported(transport_of: Callable[[GroupProblem], Transport]) -> Run:
    """The end state's gradient is brought to earlier states without the network; each call is then run by itself."""

    def run(problem: GroupProblem, parameters: Sequence[Tensor]) -> Tensor:
        states, outputs = problem.run()
        residual = mean_square_gradient(states[-1].x, problem.target)
        transport = transport_of(problem)
        inside = range(problem.first + 1, problem.end)
        gradients = [*(transport(residual, place) for place in inside), residual]
        _apply(problem, states, outputs, gradients, parameters)
        return mean_square(states[-1].x, problem.target)

    return run


def _apply(
    problem: GroupProblem,
    states: Sequence[State],
    outputs: Sequence[Tensor],
    gradients: Sequence[Tensor],
    parameters: Sequence[Tensor],
) -> None:
    """Add what parameters receive from gradients at the states after each call; one call's graph at a time."""
    of_outputs = output_gradients(problem.plan, problem.first, states, outputs, problem.noises, gradients)
    for call, state, gradient in zip(problem.calls, states[:-1], of_outputs, strict=True):
        with torch.enable_grad():
            output = problem.denoise(state.x, call)
        torch.autograd.backward(output, gradient, inputs=list(parameters))


def truncated(problem: GroupProblem, parameters: Sequence[Tensor]) -> Tensor:
    """Only the last call learns; a control."""
    states, outputs = problem.run()
    last = replace(problem, first=problem.end - 1, start=states[-2], noises=problem.noises[-1:])
    _apply(last, states[-2:], outputs[-1:], [mean_square_gradient(states[-1].x, problem.target)], parameters)
    return mean_square(states[-1].x, problem.target)


def online(problem: GroupProblem, parameters: Sequence[Tensor]) -> Tensor:
    """Every call answers for its own next state, on the states that the quantized model visits; one pass."""
    state = detached(problem.start)
    for call, reference in zip(problem.calls, problem.references[1:], strict=True):
        state = detached(_local(problem, state, reference, call, parameters))
    return mean_square(state.x, problem.target)


def independent(problem: GroupProblem, parameters: Sequence[Tensor]) -> Tensor:
    """Every call answers for its own next state, from full-precision states: calibration step by step.

    Returns the sum of these errors: the end state is not computed.
    """
    errors = []
    for call, (before, reference) in zip(problem.calls, pairwise(problem.references), strict=True):
        errors.append(mean_square(_local(problem, before, reference, call, parameters).x.detach(), reference.x))
    return torch.stack(errors).sum()


def _local(problem: GroupProblem, state: State, reference: State, call: int, parameters: Sequence[Tensor]) -> State:
    with torch.enable_grad():
        after = problem.after(state, problem.denoise(state.x, call), call)
        _backward(mean_square(after.x, reference.x), parameters)
    return after


def _backward(loss: Tensor, parameters: Sequence[Tensor]) -> None:
    """Add the gradient of a loss; it has none where the update stays at its noise level and ignores the network."""
    if loss.requires_grad:
        torch.autograd.backward(loss, inputs=list(parameters))


def _mean_variance(problem: GroupProblem) -> float:
    """Variance of one coordinate of the data: each bin of the half spectrum stands for itself and its mirror image."""
    spectrum = problem.spectrum
    width = problem.target.shape[-1]
    columns = torch.full((spectrum.shape[-1],), 2.0, device=spectrum.device)
    columns[0] = 1.0
    if width % 2 == 0:
        columns[-1] = 1.0
    return float((spectrum * columns).sum() / (spectrum[..., 0].numel() * width))


RULES: dict[str, GradientRule] = {
    "independent": GradientRule(independent, 3.0),
    "exact": GradientRule(exact, 3.0),
    "replayed": GradientRule(replayed, 4.0),
    "identity": GradientRule(transported(lambda p: unit_transport(p.plan, p.end)), 4.0),
    "scalar": GradientRule(transported(lambda p: scalar_transport(p.plan, p.end, _mean_variance(p))), 4.0),
    "spectral": GradientRule(transported(lambda p: spectral_transport(p.plan, p.end, p.spectrum)), 4.0),
    "online": GradientRule(online, 3.0),
}
"""Name → rule. ``identity`` is the paper's, as its figure shows it, between states over their size where a process
changes that; ``replayed`` is exact in the same memory."""

CONTROLS: dict[str, GradientRule] = {
    "truncated": GradientRule(truncated, 1.0, forwards_per_group=3.0),
    "linear": GradientRule(transported(lambda p: linear_transport(p.plan, p.end)), 4.0),
}
"""Rules that are known to be wrong, for tests and ablations."""
