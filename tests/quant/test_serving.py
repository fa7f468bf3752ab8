import copy
import threading

import pytest
import torch
from workbench import set_min_max_ranges_, workbench

from dmqbench.engines import ENGINES, lower_
from dmqbench.quant.context import StepContext
from dmqbench.quant.layers import freeze_, quant_layers
from dmqbench.quant.serving import CallWatch, ServingError, is_quantized, serve_
from dmqbench.quant.spec import FULL_PRECISION, BitWidth, StepGroups, neighbouring_calls
from dmqbench.quant.state import activation_quantizers, interpolate_calls_

TIMESTEPS = (750, 500, 250, 0)


W4A6 = BitWidth(4, 6)


def calibrated(bits=W4A6, steps=None):
    """A workbench whose ranges are set, and one call of its network."""
    bench = workbench(bits, steps=steps)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    call = (x, torch.full((2,), 500), {"class_labels": torch.tensor([1, 2])}, torch.ones(2, dtype=torch.long))
    set_min_max_ranges_(bench.adapter, *call)
    return bench, call


def output(network, call):
    x, timestep, cond, _ = call
    return network(x, timestep, **cond).sample


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("steps", [StepGroups.shared(), StepGroups.per_step(4)], ids=["shared", "step"])
def test_a_served_network_computes_what_the_adapter_does_and_has_no_old_weights(engine, steps):
    bench, call = calibrated(steps=steps)
    served = copy.deepcopy(bench.adapter)
    freeze_(bench.network)
    lower_(bench.network, engine)
    expected = bench.adapter.denoise(*call)
    serve_(served.network, ENGINES[engine], served.context, TIMESTEPS)
    assert torch.equal(output(served.network, call), expected)
    assert all(layer.weight is None for layer in quant_layers(served.network).values())
    assert not any(parameter.requires_grad for parameter in served.network.parameters())


@pytest.mark.parametrize("moved", [lambda n: copy.deepcopy(n), lambda n: n.to("cpu")], ids=["copied", "moved"])
def test_it_computes_the_same_after(moved):
    bench, call = calibrated(steps=StepGroups.per_step(4))
    serve_(bench.network, ENGINES["simulate"], bench.adapter.context, TIMESTEPS)
    before = output(bench.network, call)
    after = moved(bench.network)
    assert torch.equal(output(after, call), before)


def test_a_copy_reads_its_own_step_and_codes():
    bench, call = calibrated(steps=StepGroups.per_step(4))
    serve_(bench.network, ENGINES["simulate"], bench.adapter.context, TIMESTEPS)
    expected = output(bench.network, call)
    other = copy.deepcopy(bench.network)
    with pytest.raises(RuntimeError):  # nothing was left behind in the context that both began with
        bench.adapter.context.step  # noqa: B018
    for layer in quant_layers(other).values():
        layer.weight_quantizer.codes.zero_()
    assert not torch.equal(output(other, call), expected)
    assert torch.equal(output(bench.network, call), expected)


def test_weights_stay_where_only_activations_are_quantized():
    bench, call = calibrated()
    full = {name: layer.weight for name, layer in quant_layers(bench.network).items()}
    for layer in quant_layers(bench.network).values():
        layer.weight_quantizer = None
    serve_(bench.network, ENGINES["simulate"], StepContext(), TIMESTEPS)
    assert {name: layer.weight for name, layer in quant_layers(bench.network).items()} == full
    assert torch.isfinite(output(bench.network, call)).all()


def test_an_uncalibrated_network_is_not_served():
    bench = workbench(W4A6)
    with pytest.raises(RuntimeError, match="not calibrated"):
        serve_(bench.network, ENGINES["simulate"], StepContext(), TIMESTEPS)


def test_ranges_per_step_need_one_call_per_timestep():
    bench, _ = calibrated(steps=StepGroups.per_step(4))
    with pytest.raises(ValueError, match="several at 500"):
        serve_(bench.network, ENGINES["simulate"], StepContext(), (750, 500, 500, 0))
    assert all(layer.weight is not None for layer in quant_layers(bench.network).values())


@pytest.mark.parametrize(
    ("timestep", "expected"),
    [
        (500, [1, 1, 1]),
        (0.0, [3, 3, 3]),
        (torch.tensor(250), [2, 2, 2]),
        (torch.tensor([750.0]), [0, 0, 0]),
        (torch.tensor([0, 750, 500]), [3, 0, 1]),
    ],
)
def test_timesteps_are_mapped_to_calls(timestep, expected):
    assert CallWatch(StepContext(), TIMESTEPS).steps(timestep, 3)[0].tolist() == expected


def test_groups_serve_a_timestep_that_several_calls_have_if_they_share_a_row():
    bench, call = calibrated(steps=StepGroups.of_size(4, 3))
    served = copy.deepcopy(bench.adapter)
    freeze_(bench.network)
    lower_(bench.network, "simulate")
    serve_(served.network, ENGINES["simulate"], served.context, (750, 500, 500, 0))
    assert torch.equal(output(served.network, call), bench.adapter.denoise(*call))


def test_groups_that_divide_a_timestep_are_not_served():
    bench, _ = calibrated(steps=StepGroups.of_size(4, 2))
    with pytest.raises(ValueError, match="several at 500"):
        serve_(bench.network, ENGINES["simulate"], StepContext(), (750, 500, 500, 0))


@pytest.mark.parametrize(("timestep", "expected"), [(999, 0), (600, 1), (625, 0), (-3.0, 3), (500, 1), (125.5, 2)])
def test_the_nearest_call_is_taken_where_that_was_asked_for(timestep, expected):
    """625 lies between 750 and 500: of two equally near it is the noisier."""
    step, toward = CallWatch(StepContext(), TIMESTEPS, "nearest").steps(timestep, 2)
    assert step.tolist() == [expected] * 2 and toward is None


def per_step_network(engine="simulate", match="interpolate"):
    """Two copies of a network whose scales differ by call, one of them served, and a call of it."""
    bench, call = calibrated(steps=StepGroups.per_step(4))
    for quantizer in activation_quantizers(bench.network).values():
        quantizer.scale *= torch.tensor([[1.0], [2.0], [3.0], [0.5]])
        quantizer.zero_point += torch.tensor([[0.0], [5.0], [2.0], [-3.0]])
    served = copy.deepcopy(bench.adapter)
    serve_(served.network, ENGINES[engine], served.context, TIMESTEPS, match)
    return bench.adapter, served.network, call


@pytest.mark.parametrize("engine", ENGINES)
def test_a_call_between_two_is_served_as_one_that_a_plan_interpolates(engine):
    """Tables with a row per sampled call, as jobs use them, and rows blended at each call: two implementations."""
    adapter, served, (x, _, cond, _) = per_step_network(engine)
    sampled = (900, 750, 600, 260, 250, 100, -1)
    interpolate_calls_(adapter.network, neighbouring_calls(TIMESTEPS, sampled))
    freeze_(adapter.network)
    lower_(adapter.network, engine)
    for call, timestep in enumerate(sampled):
        expected = adapter.denoise(x, torch.full((2,), timestep), cond, torch.full((2,), call))
        assert torch.equal(served(x, timestep, **cond).sample, expected)


def test_samples_of_one_call_are_interpolated_each_at_its_own_timestep():
    _, served, (x, _, cond, _) = per_step_network()
    together = served(x, torch.tensor([600, 100]), **cond).sample
    for i, timestep in enumerate((600, 100)):
        alone = served(x, timestep, **cond).sample[i]
        assert torch.equal(alone, served(x, torch.tensor(timestep), **cond).sample[i])
        torch.testing.assert_close(together[i], alone, rtol=0, atol=1e-6)


def test_what_is_calibrated_is_served_alike_whatever_is_done_between():
    x, _, cond, _ = per_step_network()[2]
    served = {match: per_step_network(match=match)[1] for match in ("refuse", "nearest", "interpolate")}
    outputs = {match: [network(x, t, **cond).sample for t in TIMESTEPS] for match, network in served.items()}
    for alike in zip(*outputs.values(), strict=True):
        assert all(torch.equal(output, alike[0]) for output in alike)
    between = [served[match](x, 600, **cond).sample for match in ("nearest", "interpolate")]
    assert not torch.equal(*between)
    with pytest.raises(RuntimeError, match="step is not set"):
        next(iter(activation_quantizers(served["interpolate"]).values())).context.step  # noqa: B018


@pytest.mark.parametrize("timestep", [751, 0.5, -1, torch.tensor([750, 3])])
def test_an_unknown_timestep_is_refused_with_the_known_ones(timestep):
    with pytest.raises(ServingError, match=r"was not calibrated.*allowed: 750, 500, 250, 0") as refused:
        CallWatch(StepContext(), TIMESTEPS).steps(timestep, 2)
    assert "\n" not in str(refused.value)


def test_the_step_is_gone_after_a_call_that_failed():
    bench, call = calibrated(steps=StepGroups.per_step(4))
    serve_(bench.network, ENGINES["simulate"], bench.adapter.context, TIMESTEPS)
    x, timestep, cond, _ = call
    with pytest.raises(RuntimeError):
        bench.network(x.expand(2, 3, 8, 8), timestep, **cond)
    with pytest.raises(RuntimeError, match="step is not set"):
        bench.adapter.context.step  # noqa: B018
    assert torch.isfinite(output(bench.network, call)).all()


def test_what_counts_as_quantized():
    bench = workbench(BitWidth(FULL_PRECISION, 6))
    assert is_quantized(bench.network)
    assert not is_quantized(torch.nn.Linear(2, 2))


def test_two_threads_that_call_one_network_at_once_have_their_own_steps_and_leave_no_mode():
    """One waits within its call, at the first layer, until the other has come and gone; and the other way round."""
    bench, (x, _, cond, _) = calibrated(steps=StepGroups.per_step(4))
    serve_(bench.network, ENGINES["simulate"], bench.adapter.context, TIMESTEPS)
    calls = [(x, torch.full((2,), timestep), cond, None) for timestep in (500, 0)]
    expected = [output(bench.network, call) for call in calls]
    assert not torch.equal(*expected)
    torch.set_default_dtype(torch.float64)
    try:
        for order in ("nested", "crossed"):
            found = at_once(bench.network, calls, order)
            assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
            assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def at_once(network, calls, order):
    """What two threads get: the first enters, the second enters, and either leaves first."""
    entered = [threading.Event(), threading.Event()]
    may_go_on = [threading.Event(), threading.Event()]
    found, failed = [None, None], []

    def wait_inside(module, args):
        number = int(threading.current_thread().name)
        entered[number].set()
        assert may_go_on[number].wait(30)

    def compute(number):
        try:
            found[number] = output(network, calls[number])
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=compute, args=(number,), name=str(number)) for number in range(2)]
    with network.conv_in.register_forward_pre_hook(wait_inside):
        for number, thread in enumerate(threads):
            thread.start()
            assert entered[number].wait(30)
        for number in (1, 0) if order == "nested" else (0, 1):
            may_go_on[number].set()
            threads[number].join(30)
    assert failed == []
    return found
