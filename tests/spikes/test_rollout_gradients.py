"""Gradients of a rollout's end state through quantized layers: full backpropagation, latent-checkpointed replay, and
the identity approximation.

With x̃ the quantized and x the full-precision trajectory from the same state, L = mean (x̃_M − x_M)² after M calls.
Replay keeps only the states of a pass without gradients and propagates the adjoint backwards, one call at a time; the
identity approximation applies the residual ∂L/∂x̃_M to every call's update as if no network stood behind it.
"""

import pytest
import torch
from saved_bytes import peak_bytes
from tiny import smallest_unet
from workbench import adapter_of, recompute_blocks_, sampler, set_min_max_ranges_, topology_of

from dmqbench.quant.layers import freeze_weight_, quant_layers, quantization, quantize_layers_, set_quantization_
from dmqbench.quant.plan import uniform_plan
from dmqbench.quant.spec import COMMON_SCOPE, BitWidth, StepGroups
from dmqbench.quant.state import activation_quantizers
from dmqbench.samplers.plan import State

BATCH = 2
GROUPS = {"two calls": (1, 3), "three calls": (0, 3)}
"""First call and end, of a plan of four: DPM-Solver++ then carries a history into, inside and out of the group."""


def activation_scales(network):
    """Weights frozen; the trainable parameters are the per-step activation scales."""
    freeze_weight_(network)
    return [quantizer.scale.requires_grad_(True) for quantizer in activation_quantizers(network).values()]


def rounding(network):
    """The trainable parameters are AdaRound's, away from where soft rounding reproduces the weight."""
    generator = torch.Generator().manual_seed(2)
    alphas = []
    for layer in quant_layers(network).values():
        alpha = layer.weight_quantizer.learn_rounding_(layer.scaled_weight())
        alpha.data += torch.randn(alpha.shape, generator=generator)
        alphas.append(alpha)
    return alphas


class Rollout:
    """A W4A6 network with other activation parameters at every step, and the state where a group of calls starts."""

    def __init__(self, kind, calls, trainable=activation_scales, guidance=1.0):
        self.adapter, self.plan = adapter_of(smallest_unet()), sampler(kind)
        self.calls, self.guidance = range(*calls), guidance
        network, topology = self.adapter.network, topology_of(self.adapter)
        steps = StepGroups.per_step(self.plan.network_calls)
        precision = uniform_plan(topology.layers, BitWidth(4, 6), COMMON_SCOPE)
        quantize_layers_(network, precision, self.adapter.context, steps)
        x = torch.randn(BATCH, *self.adapter.sample_shape, generator=torch.Generator().manual_seed(0))
        self.cond = self.adapter.conditioner.conditions("cal", 0, range(BATCH))
        set_min_max_ranges_(self.adapter, x, 600, self.cond, torch.zeros(BATCH, dtype=torch.long))
        for quantizer in activation_quantizers(network).values():
            quantizer.scale.data *= 0.7 + 0.15 * torch.arange(steps.rows)[:, None]
        self.parameters = trainable(network)
        with torch.no_grad():
            self.start = self.advance(self.plan.initial(x), range(calls[0]))
            self.target = self.advance(self.start, self.calls).x
        set_quantization_(network, weight=True, activation=True)

    def call(self, state, index):
        step = torch.full((BATCH,), index)
        return self.adapter.denoise(state.x, self.plan.timesteps[index], self.cond, step, self.guidance)

    def advance(self, state, calls):
        for index in calls:
            state = self.plan.step(state, self.call(state, index), index)
        return state

    def loss(self, end):
        return (end.x - self.target).square().mean()

    def visited(self):
        """The states before each call and at the end, without a graph."""
        states = [self.start]
        with torch.no_grad():
            for index in self.calls:
                states.append(self.advance(states[-1], [index]))
        return states

    def residual(self, end):
        return 2 * (end.x - self.target) / end.x.numel()


def zeros_for_none(gradients, like):
    return [torch.zeros_like(t) if g is None else g for g, t in zip(gradients, like, strict=True)]


def tensors(state):
    return [state.x, state.anchor, *state.history]


def full_backpropagation(rollout):
    end = rollout.advance(rollout.start, rollout.calls)
    gradients = torch.autograd.grad(rollout.loss(end), rollout.parameters, allow_unused=True)
    return zeros_for_none(gradients, rollout.parameters)


def latent_checkpointed_replay(rollout):
    states = rollout.visited()
    adjoint = [rollout.residual(states[-1]), *(torch.zeros_like(t) for t in tensors(states[-1])[1:])]
    total = [torch.zeros_like(parameter) for parameter in rollout.parameters]
    for index, before in zip(reversed(rollout.calls), reversed(states[:-1]), strict=True):
        leaves = [tensor.detach().clone().requires_grad_(True) for tensor in tensors(before)]
        after = rollout.advance(State(leaves[0], leaves[1], tuple(leaves[2:])), [index])
        inputs = [*leaves, *rollout.parameters]
        gradients = torch.autograd.grad(tensors(after), inputs, adjoint, allow_unused=True)
        gradients = zeros_for_none(gradients, inputs)
        adjoint = gradients[: len(leaves)]
        total = [old + new for old, new in zip(total, gradients[len(leaves) :], strict=True)]
    return total


def identity_approximation(rollout):
    states = rollout.visited()
    residual = rollout.residual(states[-1])
    total = [torch.zeros_like(parameter) for parameter in rollout.parameters]
    for index, before in zip(rollout.calls, states, strict=False):
        after = rollout.advance(before, [index]).x
        gradients = torch.autograd.grad(after, rollout.parameters, residual, allow_unused=True)
        gradients = zeros_for_none(gradients, rollout.parameters)
        total = [old + new for old, new in zip(total, gradients, strict=True)]
    return total


def flat(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients]).double()


def assert_same(gradients, expected):
    """Equal to float32 tolerance: relative to the largest gradient of each parameter."""
    for gradient, reference in zip(gradients, expected, strict=True):
        tolerance = 2e-4 * float(reference.abs().max())
        torch.testing.assert_close(gradient, reference, rtol=0, atol=tolerance + 1e-12)


@pytest.mark.parametrize("trainable", [activation_scales, rounding])
@pytest.mark.parametrize("calls", GROUPS.values(), ids=GROUPS.keys())
@pytest.mark.parametrize("kind", ["ddim", "dpmpp"])
def test_replay_equals_full_backpropagation_with_and_without_gradient_checkpointing(kind, calls, trainable):
    rollout = Rollout(kind, calls, trainable)
    expected = full_backpropagation(rollout)
    assert all(gradient.isfinite().all() for gradient in expected)
    assert all(gradient.any() for gradient in expected)
    assert_same(latent_checkpointed_replay(rollout), expected)
    recompute_blocks_(rollout.adapter)
    assert_same(full_backpropagation(rollout), expected)
    assert_same(latent_checkpointed_replay(rollout), expected)


@pytest.mark.parametrize("kind", ["ddim", "dpmpp"])
def test_guidance_changes_nothing_of_that(kind):
    rollout = Rollout(kind, (1, 3), guidance=2.0)
    expected = full_backpropagation(rollout)
    assert_same(latent_checkpointed_replay(rollout), expected)
    recompute_blocks_(rollout.adapter)
    assert_same(full_backpropagation(rollout), expected)


@pytest.mark.parametrize("calls", GROUPS.values(), ids=GROUPS.keys())
def test_the_history_of_dpm_solver_carries_a_part_of_the_gradient(calls):
    rollout = Rollout("dpmpp", calls)
    state = rollout.start
    for index in rollout.calls:
        cut = tuple(output.detach() for output in state.history)
        state = rollout.advance(state._replace(history=cut), [index])
    without = torch.autograd.grad(rollout.loss(state), rollout.parameters, allow_unused=True)
    without = flat(zeros_for_none(without, rollout.parameters))
    exact = flat(full_backpropagation(rollout))
    assert (without - exact).norm() > 1e-2 * exact.norm()


def test_only_the_rows_of_the_steps_in_the_group_have_gradients():
    gradients = full_backpropagation(Rollout("ddim", (1, 3)))
    for gradient in gradients:
        assert gradient[1:3].any(dim=1).all()
        assert not gradient[[0, 3]].any()


@pytest.mark.parametrize("trainable", [activation_scales, rounding])
@pytest.mark.parametrize("kind", ["ddim", "dpmpp"])
def test_the_identity_approximation_is_exact_for_one_call(kind, trainable):
    rollout = Rollout(kind, (1, 2), trainable)
    assert_same(identity_approximation(rollout), full_backpropagation(rollout))


@pytest.mark.parametrize(
    ("trainable", "checkpointing"), [(activation_scales, False), (activation_scales, True), (rounding, False)]
)
@pytest.mark.parametrize("kind", ["ddim", "dpmpp"])
def test_the_identity_approximation_of_two_calls_is_a_sum_of_products_of_one_network_call(
    kind, trainable, checkpointing
):
    """Σ_i b_i (∂ε_i/∂θ)ᵀ r, with b_i from the sampler's table, from graphs that hold nothing of the sampler."""
    rollout = Rollout(kind, (1, 3), trainable)
    states = rollout.visited()
    residual = rollout.residual(states[-1])
    expected = torch.zeros(sum(parameter.numel() for parameter in rollout.parameters), dtype=torch.float64)
    for index, state in zip(rollout.calls, states, strict=False):
        output = rollout.call(state, index)
        products = torch.autograd.grad(output, rollout.parameters, residual, allow_unused=True)
        expected += rollout.plan.gains[index] * flat(zeros_for_none(products, rollout.parameters))
    if checkpointing:
        recompute_blocks_(rollout.adapter)
    gradient = flat(identity_approximation(rollout))
    assert (gradient - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("trainable", [activation_scales, rounding])
@pytest.mark.parametrize("calls", GROUPS.values(), ids=GROUPS.keys())
@pytest.mark.parametrize("kind", ["ddim", "dpmpp"])
def test_the_identity_approximation_points_the_same_way_but_is_not_the_gradient(kind, calls, trainable):
    rollout = Rollout(kind, calls, trainable)
    exact, approximate = flat(full_backpropagation(rollout)), flat(identity_approximation(rollout))
    assert torch.cosine_similarity(exact, approximate, dim=0) > 0.1
    assert (exact - approximate).norm() > 1e-2 * exact.norm()


def test_the_last_call_of_the_identity_approximation_is_exact():
    rollout = Rollout("ddim", (1, 3))
    pairs = zip(identity_approximation(rollout), full_backpropagation(rollout), strict=True)
    last = [(approximate[2:3], exact[2:3]) for approximate, exact in pairs]
    assert_same([approximate for approximate, _ in last], [exact for _, exact in last])


def bytes_of(gradient_of, calls):
    rollout = Rollout("ddim", (0, calls))
    return peak_bytes(lambda: gradient_of(rollout))


def test_memory_of_full_backpropagation_grows_with_every_call():
    one, two, three, four = (bytes_of(full_backpropagation, calls) for calls in (1, 2, 3, 4))
    assert one > 10_000
    for larger, smaller in ((two, one), (three, two), (four, three)):
        assert larger - smaller == pytest.approx(one, rel=0.05)


@pytest.mark.parametrize("gradient_of", [latent_checkpointed_replay, identity_approximation])
def test_memory_of_the_others_does_not(gradient_of):
    one, two, four = (bytes_of(gradient_of, calls) for calls in (1, 2, 4))
    assert one <= 1.05 * bytes_of(full_backpropagation, 1)
    assert two <= 1.01 * one
    assert four <= 1.01 * one


def test_the_teacher_is_the_same_network_switched_off():
    rollout = Rollout("ddim", (0, 2))
    with torch.no_grad(), quantization(rollout.adapter.network, weight=False, activation=False):
        end = rollout.advance(rollout.start, rollout.calls)
    assert torch.equal(end.x, rollout.target)
    assert rollout.loss(rollout.visited()[-1]) > 0
