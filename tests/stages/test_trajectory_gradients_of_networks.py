"""The ways to a group's gradient on a quantized U-Net: against each other, without quantization, and their memory."""

from dataclasses import replace

import pytest
import torch
from saved_bytes import peak_bytes
from stages.test_trajectory_gradients import ALL, assert_close, gradients
from tiny import smallest_unet
from workbench import adapter_of, recompute_blocks_, sampler, set_min_max_ranges_, topology_of

from dmqbench.data.noise import step_noise
from dmqbench.models.rollout import Denoising
from dmqbench.quant.layers import freeze_weight_, quantization, quantize_layers_, set_quantization_
from dmqbench.quant.plan import uniform_plan
from dmqbench.quant.spec import COMMON_SCOPE, BitWidth, StepGroups
from dmqbench.quant.state import activation_quantizers
from dmqbench.samplers.plan import build_plan
from dmqbench.samplers.processes import Consistency, Edm, Flow
from dmqbench.samplers.spec import SamplerSpec
from dmqbench.stages.trajectory_gradients import GroupProblem

BATCH = 2


class Group:
    """A W4A6 network with other activation parameters at every call, and a group of full precision's states."""

    def __init__(self, plan, first, count, guidance=1.0):
        adapter = adapter_of(smallest_unet())
        denoising = Denoising(adapter, plan, guidance)
        steps = StepGroups.per_step(plan.network_calls)
        cond = adapter.conditioner.conditions("cal", 0, range(BATCH))
        topology = topology_of(adapter)
        visits = list(denoising.rollout(stream="cal", seed=0, indices=range(BATCH)))
        precision = uniform_plan(topology.layers, BitWidth(4, 6), COMMON_SCOPE)
        quantize_layers_(adapter.network, precision, adapter.context, steps)
        x = visits[0].before.x
        set_min_max_ranges_(adapter, x, 600, cond, torch.zeros(BATCH, dtype=torch.long))
        for quantizer in activation_quantizers(adapter.network).values():
            quantizer.scale.data *= 0.7 + 0.15 * torch.arange(steps.rows)[:, None] / steps.rows * 4
        freeze_weight_(adapter.network)
        self.scales = [q.scale.requires_grad_(True) for q in activation_quantizers(adapter.network).values()]
        set_quantization_(adapter.network, weight=True, activation=True)
        self.adapter = adapter

        def denoise(x, call):
            return denoising.predict_at(x, call, cond)

        states = [visits[0].before, *(visit.after for visit in visits)]
        self.problem = GroupProblem(
            denoise=denoise,
            plan=plan,
            first=first,
            start=states[first],
            references=states[first : first + count + 1],
            noises=[
                step_noise("cal", 0, range(BATCH), call, adapter.sample_shape) if plan.calls[call].sigma > 0 else None
                for call in range(first, first + count)
            ],
            spectrum=torch.ones(1, 8, 5),
        )

    def gradients(self, name):
        return gradients(ALL[name], self.problem, self.scales)[1]


OVER_SIGMAS = {
    "flow": build_plan(SamplerSpec("flow", 5, spacing="linspace"), Flow(shift=3.0)),
    "heun": build_plan(SamplerSpec("edm", 4, solver="heun"), Edm(sigma_max=10.0)),
    "consistency": build_plan(SamplerSpec("consistency", 3), Consistency()),
}
"""Their networks see scaled states at real timesteps."""

FP32 = 2e-4
"""Relative to the largest gradient of a parameter: sums are taken in another order."""

PLACES = {
    "ddim, first": (sampler(), 0, 3),
    "ddim, last": (sampler(), 1, 3),
    "ddim, stochastic and clipped": (sampler(eta=1.0, clip_sample=1.0), 1, 3),
    "dpmpp, with a history": (sampler("dpmpp"), 1, 3),
    "pndm, over the second look at its first step": (sampler("pndm"), 0, 4),
    "pndm, Adams-Bashforth": (sampler("pndm", 6), 3, 3),
    "pndm, inside a Runge-Kutta step": (sampler("pndm", skip_prk=False), 2, 4),
    "pndm, from Runge-Kutta to Adams-Bashforth": (sampler("pndm", 5, skip_prk=False), 10, 4),
    "flow": (OVER_SIGMAS["flow"], 1, 3),
    "edm by Heun's method, from inside a step": (OVER_SIGMAS["heun"], 1, 4),
    "consistency": (OVER_SIGMAS["consistency"], 0, 3),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
def test_replayed_is_exact_on_a_network_to_float32(place):
    group = Group(*place)
    expected = group.gradients("exact")
    assert sum(bool(gradient.any()) for gradient in expected) == len(expected)
    assert_close(group.gradients("replayed"), expected, FP32)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_recomputing_blocks_keeps_the_step_and_guidance_changes_nothing(guidance):
    group = Group(sampler("dpmpp"), 1, 3, guidance)
    names = ("exact", "replayed", "identity", "online")
    expected = {name: group.gradients(name) for name in names}
    assert_close(expected["replayed"], expected["exact"], FP32)
    recompute_blocks_(group.adapter)
    for name in names:
        assert_close(group.gradients(name), expected[name], FP32)
    for gradient in expected["exact"]:
        assert gradient[1:].any(dim=1).all()
        assert not gradient[0].any()


def test_only_replayed_and_exact_know_the_network_between_the_calls():
    """And identity is near enough to be of use."""
    group = Group(sampler(), 0, 4)
    exactly, roughly = (torch.cat([g.flatten() for g in group.gradients(name)]) for name in ("exact", "identity"))
    assert torch.cosine_similarity(exactly, roughly, dim=0) > 0.3
    assert (exactly - roughly).norm() > 0.02 * exactly.norm()


IDENTICAL = {
    "stochastic": sampler(eta=1.0),
    "ddpm": sampler("ddpm"),
    "dpmpp": sampler("dpmpp"),
    "pndm": sampler("pndm", 5),
    "runge-kutta": sampler("pndm", skip_prk=False),
    "heun": OVER_SIGMAS["heun"],
}


@pytest.mark.parametrize("plan", IDENTICAL.values(), ids=IDENTICAL.keys())
def test_without_quantization_there_is_no_difference_wherever_a_group_starts(plan):
    """Full precision's history and the same noise are what the group starts with; with others it would be one."""
    whole = Group(plan, 0, plan.network_calls)
    states, noises = whole.problem.references, whole.problem.noises
    differences = []
    with quantization(whole.adapter.network, weight=False, activation=False):
        for first in range(plan.network_calls - 1):
            stop = min(first + 3, plan.network_calls)
            part = replace(
                whole.problem,
                first=first,
                start=states[first],
                references=states[first : stop + 1],
                noises=noises[first:stop],
            )
            assert part.end_state_error() < 1e-9
            wrong = replace(
                part,
                start=part.start._replace(history=tuple(-output for output in part.start.history)),
                noises=[None if noise is None else -noise for noise in part.noises],
            )
            differences.append(float(wrong.end_state_error()))
    assert max(differences) > 1e-4


def test_memory_of_one_call_serves_any_number_but_for_full_backpropagation():
    """Bytes kept for the backward pass at one time, counted by hooks, are exact numbers."""
    plan = sampler(steps=8)
    group = Group(plan, 0, 8)

    def kept(name, calls):
        problem = replace(
            group.problem, references=group.problem.references[: calls + 1], noises=group.problem.noises[:calls]
        )
        return peak_bytes(lambda: ALL[name].run(problem, group.scales))

    exactly = {calls: kept("exact", calls) for calls in (1, 2, 8)}
    assert exactly[1] > 10_000
    assert exactly[8] - exactly[2] == pytest.approx(6 * (exactly[2] - exactly[1]), rel=0.01)
    for name in ("identity", "replayed", "online", "independent"):
        assert kept(name, 8) <= 1.05 * kept(name, 2)
        assert kept(name, 2) <= 1.05 * exactly[1]
