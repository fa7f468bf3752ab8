"""Rescaled channels change nothing that a network computes, but what the layers behind them read."""

import copy

import pytest
import torch
from tiny import dit, flux, inputs, pixart, sd3, sdxl_unet, text_unet, unet
from torch import nn

from dmqbench.models.equivalence_table import ACTIVATED, SHARED_MODULATION, found_in
from dmqbench.models.equivalences import rescale_
from dmqbench.models.hooks import hooked

FOUND = {
    unet: {"group_norm": 4, "value": 4},
    text_unet: {"group_norm": 4, "norm": 12, "value": 8, "gate": 4},
    sdxl_unet: {"group_norm": 4, "norm": 24, "value": 16, "gate": 8},
    dit: {"norm": 5, "value": 2},
    pixart: {"value": 4},
    sd3: {"norm": 9, "value": 3},
    flux: {"norm": 6, "value": 2},
}
"""How many places of every kind each network has."""


def in_double(value):
    """Floating tensors of a tree in double precision; the rest as it is."""

    def convert(leaf):
        return leaf.double() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf

    return torch.utils._pytree.tree_map(convert, value)


@torch.no_grad()
def output(network, double=False):
    args, kwargs = inputs(network)
    if double:
        args, kwargs = in_double((args, kwargs))
    return network(*args, **kwargs)[0]


def factors(place, powers=False):
    random = torch.Generator().manual_seed(place.channels)
    if powers:
        return torch.exp2(torch.randint(-6, 7, (place.channels,), generator=random).float())
    return torch.exp(2 * torch.randn(place.channels, generator=random, dtype=torch.float64))


@pytest.mark.parametrize("build", FOUND)
def test_random_factors_at_every_place_change_nothing(build):
    network = build().double()
    expected = output(network, double=True)
    places, _ = found_in(network)
    assert {kind: sum(place.kind == kind for place in places) for kind in FOUND[build]} == FOUND[build]
    assert len(places) == sum(FOUND[build].values())
    for place in places:
        rescale_(network, place, factors(place))
    difference = (output(network, double=True) - expected).abs().max() / expected.abs().max()
    assert 0 < difference <= 1e-9


@pytest.mark.parametrize("build", FOUND)
def test_powers_of_two_change_no_bit_where_nothing_is_added_to_what_is_scaled(build):
    network = build()
    expected = output(network)
    modulated = 0
    for place in found_in(network)[0]:
        if any(rows.one_added for rows in place.writers):
            modulated += 1
        else:
            rescale_(network, place, factors(place, powers=True))
    assert torch.equal(output(network), expected)
    assert (modulated > 0) == (build in (dit, sd3, flux))


def multiplied(x, factor, part, layer):
    """What a layer reads, with the channels from ``part.start`` on multiplied."""
    axis = 1 if isinstance(layer, nn.Conv2d) else -1
    wide = torch.ones(x.shape[axis], dtype=x.dtype)
    wide[part.start : part.start + len(factor)] = factor
    return x * (wide.view(-1, 1, 1) if axis == 1 else wide)


@pytest.mark.parametrize("build", [build for build in FOUND if build is not sdxl_unet])  # of the same blocks
def test_all_that_reads_a_place_sees_its_factor_and_each_undoes_it(build):
    network = build().double()
    layers = {part.layer: network.get_submodule(part.layer) for place in found_in(network)[0] for part in place.readers}
    seen = {}

    def look(name, _, args, __):
        seen[name] = args[0]

    with hooked(layers, look):
        expected = output(network, double=True)
        before = dict(seen)
        for place in found_in(network)[0]:
            state, factor = copy.deepcopy(network.state_dict()), factors(place)
            rescale_(network, place, factor)
            output(network, double=True)
            for part in place.readers:
                told = multiplied(before[part.layer], factor, part, layers[part.layer])
                torch.testing.assert_close(seen[part.layer], told, rtol=1e-6, atol=1e-9)
            layers[part.layer].weight.copy_(state[f"{part.layer}.weight"])
            assert not torch.allclose(output(network, double=True), expected, rtol=1e-6), part.layer
            network.load_state_dict(state)


def test_why_layers_have_no_place_is_said():
    reasons = found_in(pixart())[1]
    block = "transformer_blocks.0"
    assert reasons[f"{block}.attn1.to_q"] == reasons[f"{block}.ff.net.0.proj"] == SHARED_MODULATION
    assert reasons[f"{block}.ff.net.2"] == ACTIVATED
    assert found_in(unet())[1]["mid_block.resnets.0.conv1"] == ACTIVATED


def test_modulation_without_a_bias_and_tied_parameters_are_no_places():
    network = dit()
    network.transformer_blocks[0].norm1.linear.bias = None
    network.transformer_blocks[1].attn1.to_v.weight = network.transformer_blocks[1].attn1.to_k.weight
    places, reasons = found_in(network)
    assert [place.name for place in places if "blocks" in place.name] == [
        "transformer_blocks.0.attn1.value",
        "transformer_blocks.1.norm3",
    ]
    assert "bias" in reasons["transformer_blocks.0.ff.net.0.proj"]
    assert "shared" in reasons["transformer_blocks.1.attn1.to_q"]
