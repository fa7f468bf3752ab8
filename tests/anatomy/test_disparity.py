"""Skip-channel disparity against NumPy, a literal hook and closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import dit, unet
from workbench import workbench

from dmqbench.anatomy.disparity import measure_disparity, model_disparity, skip_layers
from dmqbench.quant.layers import quant_layers, set_quantization_
from dmqbench.quant.scaling import channel_disparity

magnitudes = st.lists(st.floats(2**-20, 2**20, width=32), min_size=1, max_size=12)


@given(magnitudes)
def test_a_layer_s_disparity_is_max_over_median(values):
    expected = np.max(values) / np.median(np.array(values, dtype=np.float64))
    assert channel_disparity(torch.tensor(values)) == pytest.approx(expected, rel=1e-12)


@given(magnitudes, st.integers(-10, 10), st.randoms(use_true_random=False))
def test_scaling_all_channels_or_reordering_them_changes_nothing(values, exponent, random):
    shuffled = random.sample(values, len(values))
    before = channel_disparity(torch.tensor(values))
    assert channel_disparity(torch.tensor(shuffled) * 2.0**exponent) == before >= 1


def test_layers_with_channels_that_are_always_zero():
    assert channel_disparity(torch.zeros(5)) == 1
    assert channel_disparity(torch.tensor([0.0, 0.0, 3.0])) == math.inf
    assert channel_disparity(torch.tensor([0.0, 2.0, 3.0])) == 1.5
    assert model_disparity({"a": math.inf, "b": 2.0}) == math.inf


@pytest.mark.parametrize(
    "bad", [torch.empty(0), torch.ones(2, 2), torch.tensor([1.0, -1.0]), torch.tensor([1.0, math.nan])]
)
def test_what_is_no_list_of_magnitudes_is_refused(bad):
    with pytest.raises(ValueError, match="magnitudes"):
        channel_disparity(bad)


def test_a_model_s_disparity_is_the_geometric_mean():
    assert model_disparity({"a": 2.0, "b": 8.0}) == pytest.approx(4)
    with pytest.raises(ValueError, match="skip"):
        model_disparity({})


def test_on_a_bank_it_is_what_hooks_on_the_shortcuts_see():
    """One channel of a skip is enlarged in the layer that makes it; a literal hook then says what must be found."""
    network = unet()
    bench = workbench(network=network)
    with torch.no_grad():
        bench.adapter.network.conv_in.weight[3] *= 50
    found = measure_disparity(bench.denoising, bench.bank.cal, members=5, chunk=2)
    names = [name for name in quant_layers(bench.adapter.network) if name.endswith("conv_shortcut")]
    assert sorted(found) == sorted(names) and len(names) == 5

    seen: dict[str, list[np.ndarray]] = {name: [] for name in names}
    handles = [
        bench.adapter.network.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen[name].append(args[0].numpy())
        )
        for name in names
    ]
    set_quantization_(bench.adapter.network, weight=False, activation=False)
    for call in range(bench.bank.cal.calls):
        batch = bench.bank.cal.at(torch.arange(5) * bench.bank.cal.calls + call)
        bench.adapter.denoise(batch.x, batch.timestep, batch.cond, batch.step)
    for handle in handles:
        handle.remove()
    for name, inputs in seen.items():
        largest = np.abs(np.concatenate(inputs)).max(axis=(0, 2, 3)).astype(np.float64)
        assert found[name] == pytest.approx(largest.max() / np.median(largest), rel=1e-5)
    last = bench.topology.by_name[names[-1]]
    assert found[last.name] > 10, "the enlarged skip feeds the last block"


def test_quantizers_are_off_meanwhile_and_as_before_afterwards():
    bench = workbench()
    expected = measure_disparity(bench.denoising, bench.bank.cal, members=4)
    layers = quant_layers(bench.adapter.network).values()
    set_quantization_(bench.adapter.network, weight=True, activation=True)
    assert measure_disparity(bench.denoising, bench.bank.cal, members=4) == expected
    assert all(layer.weight_on and layer.activation_on for layer in layers)


def test_a_network_without_skips_has_no_layers_to_measure():
    bench = workbench(network=dit())
    assert skip_layers(bench.topology) == ()
    assert measure_disparity(bench.denoising, bench.bank.cal, members=2) == {}
