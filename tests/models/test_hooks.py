"""Hooks that see what they should and leave nothing behind."""

import pytest
import torch
from torch import nn

from dmqbench.models.hooks import hooked


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))


def hooks_of(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def test_every_module_is_seen_under_its_name_with_its_output():
    model, x, seen = network(), torch.ones(3, 2), {}
    with hooked(
        {"first": model[0], "last": model[2]}, lambda name, module, args, out: seen.update({name: (module, out)})
    ):
        output = model(x)
    assert list(seen) == ["first", "last"]
    assert seen["first"][0] is model[0] and torch.equal(seen["last"][1], output)
    model(x)
    assert hooks_of(model) == 0


def test_what_a_hook_returns_takes_the_place_of_output_or_arguments():
    model, x = network(), torch.ones(3, 2)
    with hooked({"last": model[2]}, lambda _name, _module, _args, output: output + 1):
        assert torch.equal(model(x), network_output(model, x) + 1)
    with hooked({"first": model[0]}, lambda _name, _module, args: (args[0] * 0,), pre=True):
        assert model(x).abs().max() == 0


def network_output(model: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    return model[1](x @ model[0].weight.T) @ model[2].weight.T


@pytest.mark.parametrize("pre", [False, True])
def test_hooks_are_gone_after_an_error_and_keyword_arguments_are_given(pre):
    class Scaled(nn.Module):
        def forward(self, x, *, by):
            return x * by

    model, seen = Scaled(), []

    def fail(name, module, args, kwargs, *output):
        seen.append((kwargs, len(output)))
        raise KeyError(name)

    with pytest.raises(KeyError, match="scaled"), hooked({"scaled": model}, fail, pre=pre, with_kwargs=True):
        model(torch.ones(1), by=2)
    assert seen == [({"by": 2}, 0 if pre else 1)]
    assert hooks_of(model) == 0
