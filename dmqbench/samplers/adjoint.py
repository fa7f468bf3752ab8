"""How an error of a state, or of a network's output, arrives at a later state: the algebra of multi-step calibration.

A sampler's update is x_s = a x_t + Σ_j b_j ε_j, so an error δ travels as δ_s = (a I + b J) δ_t with J the Jacobian of
the network. Along a trajectory that product, Φ, is close to the identity for data of unit variance: for data ~ N(0, λ)
it is √(v_s / v_t), v = ᾱ λ + 1 − ᾱ. So an end state's gradient can be brought to earlier states without the network.

Flow matching has a = 1, b = σ_s − σ_t and, for x = (1−σ) x_0 + σ ε, v = (1−σ)² λ + σ² and E[ε − x_0 | x] = x v' / 2v:
δ' = δ v' / 2v, so Φ = √(v_s / v_t) again. EDM's slope (x − D) / σ = x v' / 2v has v = λ + σ²: the same.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from dmqbench.samplers.calls import Call
from dmqbench.samplers.levels import Level
from dmqbench.samplers.plan import SamplerPlan, State

Transport = Callable[[Tensor, int], Tensor]
"""(gradient at the end state [B, …], index k of the call that sees an earlier state) → gradient at that state."""


def detached(state: State) -> State:
    """The same state, cut from the graph that computed it."""
    return State(state.x.detach(), state.anchor.detach(), tuple(output.detach() for output in state.history))


def recorded_states(plan: SamplerPlan, x: Tensor, outputs: Tensor) -> Iterator[State]:
    """Yield the states before every call and the final one of recorded trajectories, without the network.

    Args:
        x: the states' x, [N, T+1, …].
        outputs: what the network predicted, [N, T, …].
    """
    state = plan.initial(x[:, 0])
    yield state
    for call in range(plan.network_calls):
        # Only anchor and history are computed, on which noise has no part; x is the recorded one, which may have been
        # rounded on another device.
        noise = torch.zeros_like(x[:, call]) if plan.calls[call].sigma > 0 else None
        state = plan.step(state, outputs[:, call], call, noise)._replace(x=x[:, call + 1])
        yield state


def on_trajectory(plan: SamplerPlan, place: int, end: int) -> bool:
    """Whether the state before call ``place`` carries on to ``end`` by itself; else the network only looks at it.

    The intermediate points of a Runge-Kutta step are of the second kind: the next update starts from the anchor.
    """
    return place == end or plan.calls[place].base == "current"


def output_gradients(
    plan: SamplerPlan,
    first: int,
    states: Sequence[State],
    outputs: Sequence[Tensor],
    noises: Sequence[Tensor | None],
    gradients: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """Return ∂L/∂ε of the network's outputs in M consecutive calls, given ∂L/∂x of the states they lead to.

    An output acts on the next state and, in multistep solvers, on later ones through the history; both are followed,
    clipping included. What an output does through the network's next input is what ``gradients`` already stand for.

    Args:
        first: index of the first call.
        states: before each call and at the end, M+1.
        outputs: of the calls, M of shape [B, …].
        noises: added after each call; None where there is none.
        gradients: at the states after each call, M of shape [B, …]; those off the trajectory are not read.
    """
    end = first + len(outputs)
    with torch.enable_grad():
        leaves = [output.detach().requires_grad_(True) for output in outputs]
        history = detached(states[0]).history
        arrived: list[Tensor] = []
        applied: list[Tensor] = []
        ahead: Tensor | None = None
        for index, leaf in enumerate(leaves):
            before = detached(states[index])._replace(history=history)
            if ahead is not None and not on_trajectory(plan, first + index, end):
                before = before._replace(x=ahead)  # which acts on the update beside the network, as in EDM's slopes
            after = plan.step(before, leaf, first + index, noises[index])
            ahead = after.x
            history = after.history
            # A last update that stays at its noise level does not use the output.
            if on_trajectory(plan, first + index + 1, end) and after.x.requires_grad:
                arrived.append(after.x)
                applied.append(gradients[index])
        if not arrived:
            return tuple(torch.zeros_like(output) for output in outputs)
        return torch.autograd.grad(arrived, leaves, applied, materialize_grads=True, allow_unused=True)


def identity_transport(gradient: Tensor, place: int) -> Tensor:
    """Φ = I: exact for data of unit variance in the limit of small steps (the dashed arrows of AccuQuant's figure)."""
    return gradient


def unit_transport(plan: SamplerPlan, end: int) -> Transport:
    """Φ = √(v_end / v_k) for data of unit variance: the identity, wherever a process preserves that variance."""
    if all(level.size == 1 for level in plan.levels):
        return identity_transport
    return scalar_transport(plan, end, 1.0)


def marginal_variance(level: Level, variance: Tensor | float) -> Tensor | float:
    """v = ᾱ λ + 1 − ᾱ, of a state at ``level`` whose data has variance λ, times the state's size."""
    return level.size * (level.alpha * variance + 1 - level.alpha)


def scalar_transport(plan: SamplerPlan, end: int, variance: float) -> Transport:
    """Φ = √(v_end / v_k) for data whose coordinates have one ``variance``."""

    def transport(gradient: Tensor, place: int) -> Tensor:
        at_end, here = (marginal_variance(plan.levels[index], variance) for index in (end, place))
        return gradient * math.sqrt(at_end / here)

    return transport


def spectral_transport(plan: SamplerPlan, end: int, spectrum: Tensor) -> Transport:
    """Φ = √(v_end / v_k) per spatial frequency.

    Args:
        spectrum: variance of the data at every frequency, [C, H, W // 2 + 1], see ``power_spectrum``.
    """

    def transport(gradient: Tensor, place: int) -> Tensor:
        at_end, here = (marginal_variance(plan.levels[index], spectrum.to(gradient)) for index in (end, place))
        ratio = torch.as_tensor(at_end / here).sqrt()
        return torch.fft.irfft2(torch.fft.rfft2(gradient) * ratio, s=gradient.shape[-2:])

    return transport


def power_spectrum(samples: Tensor) -> Tensor:
    """Variance over samples [N, C, H, W] of every spatial frequency, [C, H, W // 2 + 1]; 1 for white noise.

    A single sample has no variance: then it is taken to be 1 throughout.
    """
    centred = samples - samples.mean(dim=0)
    power = torch.fft.rfft2(centred, norm="ortho").abs().square().sum(dim=0)
    return power / (len(samples) - 1) if len(samples) > 1 else torch.ones_like(power)


def linear_transport(plan: SamplerPlan, end: int) -> Transport:
    """Φ = Π a: as if the network did not look at the state. Wrong by the ratio of signal strengths; a control.

    A step of Heun's method counts as what it takes over from its start.
    """

    def transport(gradient: Tensor, place: int) -> Tensor:
        updates = [call for call in range(place, end) if on_trajectory(plan, call + 1, end)]
        return gradient * math.prod(_carry(plan.calls[update]) for update in updates)

    return transport


def _carry(call: Call) -> float:
    """∂x_next/∂(the state that the update starts from) at fixed network outputs."""
    return call.carry if call.base == "current" else call.a
