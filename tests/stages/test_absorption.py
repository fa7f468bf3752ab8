"""Equivalent scales that layers share and that go into what writes their inputs."""

import pytest
import torch
from tiny import dit, inputs, text_unet
from twins import LEAST
from workbench import ACTIVATION_RANGE, EQUIVALENT_SCALING, MSE, workbench

from dmqbench.calibration.checkpoint import UnitCheckpoint
from dmqbench.calibration.offloading import weights_elsewhere
from dmqbench.calibration.rows import Shelf
from dmqbench.calibration.run import run_stage
from dmqbench.models.absorption import ADDED_UP, absorbable, load_state_into_
from dmqbench.models.attention import set_explicit_attention_
from dmqbench.models.equivalence_table import ACTIVATED
from dmqbench.quant.attention import AttentionQuantizers
from dmqbench.quant.layers import quant_layers, set_quantization_
from dmqbench.quant.spec import BitWidth
from dmqbench.quant.state import calibration_state
from dmqbench.stages.equivalent_scaling import EquivalentScaling
from dmqbench.stages.ranges import ActivationRange, WeightRange

W8A8 = BitWidth(8, 8)
BUILDERS = {"dit": dit, "text_unet": lambda: text_unet(**LEAST)}
"""Modulated norms; and norms with affine parameters, gated units, group norms."""


def stage_of(build, bits=W8A8, **settings):
    return EquivalentScaling.of(workbench(bits, network=build()), **{**EQUIVALENT_SCALING, "absorb": True, **settings})


def learned(build, **settings):
    stage = stage_of(build, **settings)
    run_stage(stage, "cpu", [])
    return stage


@torch.no_grad()
def computed(network, quantized=False):
    set_quantization_(network, weight=quantized, activation=quantized)
    args, kwargs = inputs(network)
    result = network(*args, **kwargs)[0]
    set_quantization_(network, weight=False, activation=False)
    return result


def with_ranges(bench):
    for stage in (WeightRange.of(bench, **MSE), ActivationRange.of(bench, **ACTIVATION_RANGE)):
        run_stage(stage, "cpu", [])
    return computed(bench.network, quantized=True)


def fresh_bench(stage):
    """Of the network that the stage's bench had in the beginning."""
    build = next(build for build in BUILDERS.values() if type(build()) is type(stage.bench.network))
    return workbench(W8A8, network=build())


@pytest.fixture(scope="module", params=BUILDERS)
def pair(request):
    """A stage whose scales are shared and not absorbed, and the same one with them absorbed."""
    apart, absorbed = (learned(BUILDERS[request.param]) for _ in range(2))
    absorbed.conclude_()
    return apart, absorbed


def test_layers_that_read_the_same_share_one_scale(pair):
    apart, _ = pair
    layers = quant_layers(apart.bench.network)
    norm1 = next(members for name, members in apart.absorbed.shared.items() if name.endswith("norm1"))
    query, key, value = (layers[name].equivalent_scale for name in norm1)
    assert query is key is value and len(query.unique()) > 1
    assert all(name.endswith(f"attn1.to_{letter}") for name, letter in zip(norm1, "qkv", strict=True))
    own = {id(layer.equivalent_scale) for layer in layers.values()}
    assert len(own) == len(layers) - sum(len(members) - 1 for members in apart.absorbed.shared.values())


def test_all_readers_teach_the_shared_scale():
    """Left to one of them alone it would be another."""
    both, alone = stage_of(dit), stage_of(dit)
    leader = "transformer_blocks.0.attn1.to_q"
    alone.leader |= {leader.replace("to_q", other): leader.replace("to_q", other) for other in ("to_k", "to_v")}
    for name in ("to_k", "to_v"):
        layer = alone.learners[leader.replace("to_q", name)].layer
        layer.set_equivalent_scale_(layer.weight.new_ones(layer.weight.shape[1]))
    alone._tie_()
    for stage in (both, alone):
        run_stage(stage, "cpu", [])
    assert not torch.allclose(both.learners[leader].scale, alone.learners[leader].scale, rtol=1e-3)


def test_nothing_is_divided_any_more_and_full_precision_is_as_it_was(pair):
    _, absorbed = pair
    members = {name for names in absorbed.absorbed.shared.values() for name in names}
    for name, layer in quant_layers(absorbed.bench.network).items():
        assert (layer.equivalent_scale is None) == (name in members)
        assert (layer.absorbed_scale is not None) == (name in members)
    expected, found = (computed(stage.bench.network) for stage in pair)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(found, expected)


def test_the_record_says_what_was_absorbed_and_what_was_not_and_why(pair):
    _, absorbed = pair
    (event,) = absorbed.bench.record.of("absorbed")
    layers = quant_layers(absorbed.bench.network)
    assert {*event["left_out"]} | {n for names in event["places"].values() for n in names} == layers.keys()
    reasons = set(event["left_out"].values())
    assert ADDED_UP in reasons and ACTIVATED in reasons


def test_quantized_it_computes_what_undivided_layers_compute(pair):
    """Each row's step is scaled with the row, so that its codes are the same."""
    expected, found = (with_ranges(stage.bench) for stage in pair)
    full = computed(pair[0].bench.network)
    assert (found - expected).abs().max() < 0.02 * (expected - full).abs().max()


def test_a_fresh_network_that_loads_the_state_has_the_same_bits(pair):
    apart, absorbed = pair
    state = calibration_state(absorbed.bench.network)
    fresh = fresh_bench(absorbed)
    for _ in range(2):  # the second time nothing is left to do
        load_state_into_(fresh.network, state)
        assert torch.equal(computed(fresh.network), computed(absorbed.bench.network))
    with pytest.raises(ValueError, match="absorbed other equivalent scales"):
        load_state_into_(fresh.network, calibration_state(apart.bench.network))


def test_weights_that_lie_elsewhere_are_rescaled_too(pair):
    _, absorbed = pair
    state, fresh = calibration_state(absorbed.bench.network), fresh_bench(absorbed)
    with weights_elsewhere(fresh.network, Shelf(moved=True)):
        load_state_into_(fresh.network, state)
        assert torch.equal(computed(fresh.network), computed(absorbed.bench.network))
    assert torch.equal(computed(fresh.network), computed(absorbed.bench.network))


@pytest.mark.parametrize("settings", [{"patience": 1}, {"schedule": "cached", "memory_mib": 1, "patience": 1}])
def test_a_resumed_stage_shares_as_before(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("dmqbench.stages.equivalent_scaling.SLICE", 2)
    few = {"iterations": 4, "samples": 8, "batch": 4, **settings}
    whole = stage_of(dit, **few)
    run_stage(whole, "cpu", [])

    class Stopped(EquivalentScaling):
        def start_unit(self, unit):
            if self.units().index(unit) == (2 if self.groups else 1):
                raise KeyboardInterrupt
            super().start_unit(unit)

    bench = workbench(W8A8, network=dit())
    path = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        run_stage(Stopped.of(bench, **{**EQUIVALENT_SCALING, "absorb": True, **few}), "cpu", [UnitCheckpoint(path)])
    resumed = stage_of(dit, **few)
    UnitCheckpoint(path).resume(resumed)
    assert resumed.first_unit > 0
    run_stage(resumed, "cpu", [])
    for stage in (whole, resumed):
        stage.findings()
        stage.conclude_()
    states = [calibration_state(stage.bench.network) for stage in (whole, resumed)]
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0, equal_nan=True)


def test_values_that_are_quantized_themselves_are_not_absorbed():
    bench = workbench(W8A8, network=dit())
    names = [attention.name for attention in bench.topology.attentions]
    set_explicit_attention_(bench.network, {name: AttentionQuantizers(bench.adapter.context, 256) for name in names})
    left_out = absorbable(bench.network, quant_layers(bench.network)).left_out
    assert "quantized" in left_out["transformer_blocks.0.attn1.to_out.0"]


def test_weights_in_fewer_bits_are_not_absorbed():
    bench = workbench(W8A8, network=dit())
    bench.network.bfloat16()
    found = absorbable(bench.network, quant_layers(bench.network))
    assert not found.shared and "rounded again" in found.left_out["transformer_blocks.0.attn1.to_q"]
