"""The bank of trajectories: how often the network is called, what is kept, and which points calibration looks at."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import CLASSES, dit, text_unet, unet
from workbench import adapter_of, sampler

from dmqbench.data.bank import Trajectories, join
from dmqbench.data.noise import initial_noise, step_noise
from dmqbench.models.rollout import Denoising

PLANS = {
    "ddim": sampler("ddim"),
    "ddim, eta 1": sampler("ddim", eta=1.0),
    "ddim, clipped": sampler("ddim", clip_sample=1.0),
    "ddpm": sampler("ddpm"),
    "dpmpp": sampler("dpmpp"),
    "pndm": sampler("pndm", steps=5),
    "pndm, Runge-Kutta start": sampler("pndm", steps=5, skip_prk=False),
}
plans = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())


class Calls:
    """What the network was called with."""

    def __init__(self, adapter):
        self.seen = []
        adapter.network.register_forward_hook(self.note, with_kwargs=True)

    def note(self, module, args, kwargs, output):
        self.seen.append((args[0].clone(), args[1].clone(), dict(kwargs), output[0].clone()))


def followed(adapter, plan, guidance=1.0, indices=range(3), stream="cal"):
    return Denoising(adapter, plan, guidance).follow(stream=stream, seed=0, indices=indices)


@plans
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_network_is_called_exactly_as_often_as_the_plan_says(plan, guidance):
    adapter = adapter_of(unet())
    calls = Calls(adapter)
    bank = followed(adapter, plan, guidance)
    assert len(calls.seen) == plan.network_calls == bank.calls
    assert [len(x) for x, *_ in calls.seen] == [3 if guidance == 1.0 else 6] * plan.network_calls
    assert [timestep.unique().tolist() for _, timestep, *_ in calls.seen] == [[t] for t in plan.timesteps]
    assert bank.timesteps == plan.timesteps


@plans
def test_every_state_follows_from_the_recorded_outputs(plan):
    bank = followed(adapter_of(unet()), plan)
    assert bank.x.shape == (3, plan.network_calls + 1, 1, 8, 8)
    assert bank.output.shape == (3, plan.network_calls, 1, 8, 8)
    assert torch.equal(bank.x[:, 0], initial_noise("cal", 0, range(3), (1, 8, 8)))
    state = plan.initial(bank.x[:, 0])
    for call in range(plan.network_calls):
        noise = step_noise("cal", 0, range(3), call, (1, 8, 8)) if plan.calls[call].sigma > 0 else None
        state = plan.step(state, bank.output[:, call], call, noise)
        assert torch.equal(bank.x[:, call + 1], state.x)


@pytest.mark.parametrize("build", [unet, text_unet, dit])
@torch.no_grad()
def test_outputs_are_the_networks_on_the_recorded_states(build):
    adapter = adapter_of(build())
    bank = followed(adapter, sampler())
    for call, timestep in enumerate(bank.timesteps):
        x = bank.x[:, call].contiguous()
        direct = adapter.network(x, torch.full((3,), timestep), **bank.cond, return_dict=False)[0]
        torch.testing.assert_close(bank.output[:, call], direct[:, : x.shape[1]])


@torch.no_grad()
def test_guided_outputs_come_from_one_doubled_call_with_the_null_label_first():
    adapter = adapter_of(unet())
    calls = Calls(adapter)
    bank = followed(adapter, sampler(), guidance=3.0)
    labels = bank.cond["class_labels"]
    for call, (x, _, kwargs, output) in enumerate(calls.seen):
        assert torch.equal(x, torch.cat([bank.x[:, call]] * 2))
        assert torch.equal(kwargs["class_labels"], torch.cat([torch.full_like(labels, CLASSES), labels]))
        unguided, guided = output.chunk(2)
        torch.testing.assert_close(bank.output[:, call], 3 * guided - 2 * unguided, rtol=1e-4, atol=1e-5)


def test_a_trajectory_does_not_depend_on_the_batch_it_was_followed_in():
    adapter, plan = adapter_of(unet()), sampler("ddim", eta=1.0)
    whole = followed(adapter, plan, indices=range(4))
    joined = join([followed(adapter, plan, indices=part) for part in (range(1), range(1, 4))])
    torch.testing.assert_close(joined.x, whole.x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(joined.output, whole.output, rtol=1e-4, atol=1e-5)
    assert torch.equal(joined.cond["class_labels"], whole.cond["class_labels"])


def test_streams_have_other_trajectories_and_labels():
    adapter, plan = adapter_of(unet()), sampler()
    cal, val = (followed(adapter, plan, indices=range(8), stream=stream) for stream in ("cal", "val"))
    assert not (cal.x[:, 0, None] == val.x[None, :, 0]).flatten(2).all(-1).any()
    assert not torch.equal(cal.cond["class_labels"], val.cond["class_labels"])


def test_following_leaves_no_graph():
    adapter = adapter_of(unet())
    adapter.network.requires_grad_(True)
    bank = followed(adapter, sampler())
    assert not bank.x.requires_grad
    assert not bank.output.requires_grad


def numbered(trajectories, calls):
    """Trajectories whose state says which one and which call it is."""
    number = torch.arange(trajectories)[:, None] * 100.0 + torch.arange(calls + 1)
    cond = {"class_labels": torch.arange(trajectories) * 7}
    return Trajectories(
        number[..., None, None, None], number[:, :-1, None, None, None], cond, tuple(range(calls, 0, -1))
    )


sizes = st.tuples(st.integers(1, 30), st.integers(1, 30))


@given(sizes, st.integers(1, 1000))
def test_spread_never_repeats_a_point_and_favours_no_call(shape, count):
    trajectories, calls = shape
    bank = numbered(trajectories, calls)
    points = bank.spread(count)
    assert len(points) == min(count, trajectories * calls) == len(points.unique())
    assert points.min() >= 0
    assert points.max() < bank.points
    per_call = (points % calls).bincount(minlength=calls)
    assert per_call.max() - per_call.min() <= 1


@given(sizes)
def test_a_spread_of_all_points_is_all_points(shape):
    bank = numbered(*shape)
    assert bank.spread(bank.points).sort().values.tolist() == list(range(bank.points))
    assert len(bank) * bank.calls == bank.points


@given(sizes)
def test_a_spread_of_one_point_per_call_uses_as_many_trajectories_as_it_can(shape):
    trajectories, calls = shape
    points = numbered(trajectories, calls).spread(calls)
    per_trajectory = (points // calls).bincount(minlength=trajectories)
    assert per_trajectory.max() - per_trajectory.min() <= 1


@given(sizes, st.data())
def test_a_point_has_the_inputs_of_its_own_call(shape, data):
    trajectories, calls = shape
    bank = numbered(trajectories, calls)
    points = torch.tensor(data.draw(st.lists(st.integers(0, bank.points - 1), min_size=1, max_size=6)))
    batch = bank.at(points)
    for position, point in enumerate(points.tolist()):
        trajectory, call = divmod(point, calls)
        assert batch.x[position].item() == 100 * trajectory + call
        assert batch.timestep[position] == calls - call
        assert batch.step[position] == call
        assert batch.cond["class_labels"][position] == 7 * trajectory


@pytest.mark.parametrize("build", [unet, text_unet])
def test_tensors_round_trip(build):
    bank = followed(adapter_of(build()), sampler())
    tensors = bank.to_tensors()
    assert all(isinstance(value, torch.Tensor) for value in tensors.values())
    again = Trajectories.from_tensors(tensors)
    assert again.timesteps == bank.timesteps
    assert torch.equal(again.x, bank.x)
    assert torch.equal(again.output, bank.output)
    assert again.cond.keys() == bank.cond.keys()
    assert all(torch.equal(again.cond[name], bank.cond[name]) for name in bank.cond)


def test_trajectories_of_other_samplers_are_not_joined():
    bank = numbered(2, 3)
    with pytest.raises(ValueError, match="different samplers"):
        join([bank, dataclasses.replace(bank, timesteps=(9, 8, 7))])
