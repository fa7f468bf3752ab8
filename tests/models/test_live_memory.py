"""What a computation holds at once, on the meta device, against the same computation on the processor."""

import pytest
import torch
from tiny import dit, text_unet, unet
from torch.utils.checkpoint import checkpoint

from dmqbench.models.families import family_of
from dmqbench.models.live_memory import LiveMemory, held_by, live_memory, peak_of
from dmqbench.models.sources import example_inputs, meta_model


def test_a_chain_holds_two_of_its_tensors():
    with LiveMemory() as live:
        x = torch.ones(1000)
        for _ in range(5):
            x = x + 1
        view = x[:10]
        assert (live.now, live.peak) == (4000, 8000)
        del x
        assert live.now == 4000  # a view holds what it looks at
        del view
    assert live.now == 0


def test_what_tensors_share_is_counted_once():
    x = torch.ones(1000)
    assert held_by([x, x[:10], None, torch.ones(10)]) == 4040


@pytest.mark.parametrize("network", [unet(), text_unet(), dit()], ids=["unet", "text", "dit"])
@pytest.mark.parametrize("trained", [False, True], ids=["forward", "with gradients"])
def test_shapes_hold_what_values_do(network, trained):
    config = {**network.config, "_class_name": type(network).__name__}
    family, of_shapes = family_of(config, 0), meta_model(config)

    def step(each, device):
        args, kwargs = example_inputs(family, 3, device)
        with torch.set_grad_enabled(trained):
            output = family.prediction(family.output(each, args, kwargs), args[0])
            if trained:
                torch.autograd.grad(output.sum(), list(each.requires_grad_(True).parameters()), allow_unused=True)

    network.requires_grad_(trained)
    of_shapes.requires_grad_(trained)
    with LiveMemory() as computed:
        step(network, "cpu")
    with live_memory() as planned:
        step(of_shapes, "meta")
    assert planned.peak == computed.peak > 1000


def test_attention_that_is_computed_again_keeps_no_scores():
    x = torch.empty(1, 2, 256, 8, device="meta", requires_grad=True)

    def attention(x):
        return torch.nn.functional.scaled_dot_product_attention(x, x, x)

    def again():
        output = checkpoint(attention, x, use_reentrant=False)
        torch.autograd.grad(output.sum(), x)

    assert x.nbytes < peak_of(again) < 12 * x.nbytes < 2 * 256 * 256 * 4
