"""Which calls share activation parameters, and which calibrated call a call of another plan takes them from."""

import numpy as np
import pytest
import torch
from workbench import set_min_max_ranges_, workbench

from dmqbench.quant.spec import StepGroups, group_size, nearest_calls
from dmqbench.quant.state import activation_quantizers, follow_calls_
from dmqbench.samplers.timesteps import plan_timesteps


@pytest.mark.parametrize(("ranges", "size"), [("shared", None), ("step", 1), ("group1", 1), ("group20", 20)])
def test_words_of_ranges(ranges, size):
    assert group_size(ranges) == size


@pytest.mark.parametrize("ranges", ["group", "group0", "group05", "group-1", "group5 ", "group1.5", "Step", "", "5"])
def test_other_words_are_no_ranges(ranges):
    with pytest.raises(ValueError, match="allowed are shared, step, groupN"):
        group_size(ranges)


def test_groups_are_cut_by_call_and_the_last_may_be_shorter():
    assert StepGroups.of_size(7, 3).row_of_call == (0, 0, 0, 1, 1, 1, 2)
    assert StepGroups.of_size(7, 1) == StepGroups.per_step(7)
    assert StepGroups.of_size(7, 50).rows == 1


def test_a_timestep_tells_its_row_unless_its_calls_lie_in_different_groups():
    timesteps = (900, 800, 800, 700)
    assert StepGroups.of_size(4, 1).divided(timesteps) == 800
    assert StepGroups.of_size(4, 2).divided(timesteps) == 800
    assert StepGroups.of_size(4, 3).divided(timesteps) is None
    assert StepGroups.of_size(4, 1).divided((4, 3, 2, 1)) is None
    assert StepGroups.shared().divided(timesteps) is None


@pytest.mark.parametrize("kind", ["ddim", "pndm", "dpmpp"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(("calibrated", "sampled"), [(400, 500), (20, 50), (50, 20), (7, 3)])
def test_the_nearest_call_is_the_first_of_the_nearest(kind, spacing, calibrated, sampled):
    kept, wanted = (np.array(plan_timesteps(kind, steps, spacing, 0, 1000)) for steps in (calibrated, sampled))
    found = nearest_calls(kept.tolist(), wanted.tolist())
    assert list(found) == np.abs(kept[None] - wanted[:, None]).argmin(axis=1).tolist()
    assert list(found) == sorted(found)


def test_of_two_calls_that_are_equally_near_the_noisier_one_is_taken():
    assert nearest_calls((1000, 500, 0), (750, 250)) == (0, 1)


def test_steps_400_of_1000_are_no_steps_500():
    """Grouping by timestep arithmetic breaks where the steps do not divide 1000: 400 steps end at timestep 798."""
    kept, wanted = (plan_timesteps("ddim", steps, "leading", 0, 1000) for steps in (400, 500))
    found = nearest_calls(kept, wanted)
    assert (kept[0], wanted[0]) == (798, 998)
    assert found[:101] == (0,) * 101
    assert found[100:] == tuple(range(400))


def test_repeated_timesteps_take_the_first_of_their_calls():
    kept = plan_timesteps("pndm", 4, "leading", 0, 1000)
    assert kept == (750, 500, 500, 250, 0)
    assert nearest_calls(kept, (500, 260)) == (1, 3)


def test_a_network_follows_the_calls_of_another_plan():
    bench = workbench(steps=StepGroups.of_size(4, 2))
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    call = (x, torch.full((2,), 500), {"class_labels": torch.tensor([1, 2])}, torch.ones(2, dtype=torch.long))
    set_min_max_ranges_(bench.adapter, *call)
    quantizers = activation_quantizers(bench.network)
    for quantizer in quantizers.values():
        quantizer.scale[1] *= 2
    follow_calls_(bench.network, (0, 0, 3, 3, 1))
    assert {tuple(quantizer.row_of_call.tolist()) for quantizer in quantizers.values()} == {(0, 0, 1, 1, 0)}
    quantizer = next(iter(quantizers.values()))
    for step, row in ((1, 0), (2, 1), (4, 0)):
        with bench.adapter.context.at(torch.tensor([step])):
            scale, _ = quantizer.parameters_for(x[:1])
        assert torch.equal(scale.flatten().unique(), quantizer.scale[row].unique())


def test_shared_parameters_serve_every_plan():
    bench = workbench()
    follow_calls_(bench.network, (0, 0, 3, 3, 1))
    assert not any(quantizer.per_step for quantizer in activation_quantizers(bench.network).values())
