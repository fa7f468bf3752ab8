"""The step context: set for one call, captured for recomputation."""

import pytest
import torch

from dmqbench.quant.context import StepContext
from dmqbench.quant.quantizer import ActivationQuantizer
from dmqbench.quant.spec import InputGroups, StepGroups


def test_the_step_is_set_for_the_duration_of_a_call_and_nests():
    context, outer, inner = StepContext(), torch.tensor([1]), torch.tensor([2])
    with context.at(outer):
        with context.at(inner):
            assert context.step is inner
        assert context.step is outer
    with pytest.raises(RuntimeError, match="the denoising step is not set"):
        _ = context.step


def test_a_failed_call_leaves_no_step_behind():
    context = StepContext()
    with pytest.raises(KeyError), context.at(torch.tensor([1])):
        raise KeyError
    with pytest.raises(RuntimeError):
        _ = context.step


@pytest.mark.parametrize("shape", [(), (2, 1)])
def test_a_step_is_one_index_per_sample(shape):
    with (
        pytest.raises(ValueError, match=r"shape \[B\]"),
        StepContext().at(torch.zeros(shape, dtype=torch.long)),
    ):
        pass


def test_recomputation_sees_the_step_of_its_own_call():
    """A rollout over all steps, backward at the end: each row's gradient must come from its own step."""
    context = StepContext()
    quantizer = ActivationQuantizer(context, 16, InputGroups(3), steps=StepGroups.per_step(4))
    x = torch.randn(2, 3)

    def block(value: torch.Tensor) -> torch.Tensor:
        return torch.tanh(quantizer(value)) * 1.7

    def gradients(checkpointed: bool) -> tuple[torch.Tensor, torch.Tensor]:
        quantizer.set_parameters_(torch.tensor([[0.3], [0.4], [0.5], [0.6]]), torch.full((4, 1), 8.0))
        quantizer.scale.requires_grad_(True)
        start = x.clone().requires_grad_(True)
        state = start
        for call in range(4):
            with context.at(torch.full((2,), call)):
                state = context.checkpoint(block, state) if checkpointed else block(state)
        state.square().sum().backward()
        assert quantizer.scale.grad is not None and start.grad is not None
        return quantizer.scale.grad, start.grad

    for plain, replayed in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(plain, replayed)
        assert (plain != 0).float().mean() > 0.5
