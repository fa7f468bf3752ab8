"""Which calls share activation parameters, and which calibrated call a call of another plan takes them from."""

import numpy as np
import pytest
import torch
from workbench import set_min_max_ranges_, workbench

from dmqbench.quant.context import StepContext, Toward
from dmqbench.quant.functional import interpolate_parameters
from dmqbench.quant.quantizer import ActivationQuantizer
from dmqbench.quant.spec import InputGroups, Neighbours, StepGroups, group_size, nearest_calls, neighbouring_calls
from dmqbench.quant.state import activation_quantizers, follow_calls_, interpolate_calls_
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


# ---- between calls


@pytest.mark.parametrize("kind", ["ddim", "pndm", "dpmpp"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(("calibrated", "sampled"), [(20, 10), (20, 50), (100, 20), (7, 3), (1, 5)])
def test_any_quantity_is_interpolated_linearly_in_the_timestep(kind, spacing, calibrated, sampled):
    kept, wanted = (np.array(plan_timesteps(kind, steps, spacing, 0, 1000)) for steps in (calibrated, sampled))
    quantity = np.random.default_rng(0).normal(size=1000)[kept]  # calls at one timestep have one value
    found = neighbouring_calls(kept.tolist(), wanted.tolist())
    ours = [quantity[each.near] + each.share * (quantity[each.far] - quantity[each.near]) for each in found]
    np.testing.assert_allclose(ours, np.interp(wanted, kept[::-1], quantity[::-1]), rtol=0, atol=1e-12)
    assert tuple(each.near for each in found) == nearest_calls(kept.tolist(), wanted.tolist())
    assert all(0 <= each.share <= 0.5 and (each.share == 0) == (each.near == each.far) for each in found)


def test_between_repeated_timesteps_the_first_of_their_calls_counts():
    found = neighbouring_calls((750, 500, 500, 250), (600, 500, 300))
    assert [(each.near, each.far) for each in found] == [(1, 0), (1, 1), (3, 1)]


def test_half_way_between_two_scales_is_their_geometric_mean_and_zero_points_are_rounded():
    scale, zero_point = interpolate_parameters(*map(torch.tensor, (0.1, 10.0, 0.4, 13.0)), torch.tensor(0.5))
    torch.testing.assert_close(scale, torch.tensor(0.2))
    assert float(zero_point) == 12  # 11.5, half to even
    third = interpolate_parameters(*map(torch.tensor, (8.0, 0.0, 1.0, 100.0)), torch.tensor(1 / 3))
    torch.testing.assert_close(third, (torch.tensor(4.0), torch.tensor(33.0)))


def test_the_ends_and_equal_ends_keep_their_bits_and_all_else_lies_between():
    random = torch.Generator().manual_seed(0)
    scale, other = (torch.exp(8 * torch.randn(2000, generator=random)) for _ in range(2))
    zero_point, its = (torch.randint(0, 256, (2000,), generator=random).float() for _ in range(2))
    share = torch.rand(2000, generator=random)
    for found in (
        interpolate_parameters(scale, zero_point, other, its, torch.zeros(1)),
        interpolate_parameters(scale, zero_point, scale, zero_point, share),
        interpolate_parameters(other, its, scale, zero_point, torch.ones(1)),
    ):
        assert torch.equal(found[0], scale) and torch.equal(found[1], zero_point)
    for found, one, two in zip(
        interpolate_parameters(scale, zero_point, other, its, share), (scale, zero_point), (other, its), strict=True
    ):
        assert (torch.minimum(one, two) <= found).all() and (found <= torch.maximum(one, two)).all()
        assert torch.equal(found, found.round()) == (one is zero_point)


def quantizer_of(steps: StepGroups, exponents: int | None = None) -> ActivationQuantizer:
    """Two groups of three channels; every row has other parameters, and ``exponents`` rows of powers of two."""
    random = torch.Generator().manual_seed(1)
    quantizer = ActivationQuantizer(StepContext(), 64, InputGroups(6, (3,)), steps=steps)
    quantizer.scale.copy_(torch.rand(quantizer.scale.shape, generator=random) + 0.01)
    quantizer.zero_point.copy_(torch.randint(0, 64, quantizer.scale.shape, generator=random))
    if exponents is not None:
        quantizer.exponent = torch.randint(-3, 1, (exponents, 6), generator=random, dtype=torch.int8)
    return quantizer


NETWORK_PLAN, SAMPLED = (750, 500, 250, 0), (900, 750, 600, 300, 250, 20)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("exponents", [None, "shared", "per row"])
def test_tables_of_another_plan_lie_between_the_rows_around_each_call(size, exponents):
    steps = StepGroups.of_size(4, size)
    quantizer = quantizer_of(steps, {None: None, "shared": 1, "per row": steps.rows}[exponents])
    scale, zero_point, exponent = quantizer.scale.clone(), quantizer.zero_point.clone(), quantizer.exponent
    interpolate_calls_(quantizer, neighbouring_calls(NETWORK_PLAN, SAMPLED))
    assert quantizer.row_of_call.tolist() == list(range(6))
    at, known = np.array(SAMPLED), np.array(NETWORK_PLAN)[::-1]
    for group in range(2):
        of_call = scale[list(steps.row_of_call), group].double().log().numpy()
        logarithms = np.interp(at, known, of_call[::-1])
        torch.testing.assert_close(quantizer.scale[:, group], torch.tensor(logarithms).exp().float())
        places = np.interp(at, known, zero_point[list(steps.row_of_call), group].double().numpy()[::-1])
        assert quantizer.zero_point[:, group].tolist() == np.round(places).tolist()
    for sampled, calibrated in ((0, 0), (1, 0), (4, 2)):  # beyond the first call, and at calibrated ones
        row = steps.row_of_call[calibrated]
        assert torch.equal(quantizer.scale[sampled], scale[row])
        assert torch.equal(quantizer.zero_point[sampled], zero_point[row])
    if exponents == "per row":
        nearest = [steps.row_of_call[call] for call in nearest_calls(NETWORK_PLAN, SAMPLED)]
        assert torch.equal(quantizer.exponent, exponent[nearest])
    else:
        assert quantizer.exponent is exponent


def test_a_sample_on_its_way_to_another_call_has_the_parameters_of_the_table():
    table, blended = quantizer_of(StepGroups.of_size(4, 2), 2), quantizer_of(StepGroups.of_size(4, 2), 2)
    calls = neighbouring_calls(NETWORK_PLAN, SAMPLED)
    interpolate_calls_(table, calls)
    x = torch.randn(6, 6, 5, generator=torch.Generator().manual_seed(2))
    near, far = (torch.tensor([getattr(each, name) for each in calls]) for name in ("near", "far"))
    with table.context.at(torch.arange(6)):
        expected = table(x)
    share = torch.tensor([each.share for each in calls], dtype=torch.float64)
    with blended.context.at(near, Toward(far, share)):
        assert torch.equal(blended(x), expected)
    with blended.context.at(near):
        assert not torch.equal(blended(x), expected)


def test_interpolating_leaves_shared_parameters_alone():
    quantizer = quantizer_of(StepGroups.shared())
    before = quantizer.scale
    interpolate_calls_(quantizer, (Neighbours(0, 3, 0.25),))
    assert quantizer.scale is before and not quantizer.per_step
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(2))
    plain = quantizer(x)
    with quantizer.context.at(torch.tensor([0, 1]), Toward(torch.tensor([1, 0]), torch.tensor([0.5, 0.5]))):
        assert torch.equal(quantizer(x), plain)
