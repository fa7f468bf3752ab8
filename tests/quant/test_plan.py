"""Specifications and the precision plan."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmqbench.quant.plan import LayerPlan, PrecisionPlan, uniform_plan
from dmqbench.quant.quantizer import group_of_channel
from dmqbench.quant.spec import BitWidth, InputGroups, Scope, StepGroups


@dataclass(frozen=True)
class Layer:
    name: str
    kind: str = "linear"
    boundaries: tuple[int, ...] = ()
    embedding: bool = False
    shortcut: bool = False
    in_block: bool = False
    bare_attention: bool = False
    downsampling: bool = False


LAYERS = (
    Layer("time", embedding=True),
    Layer("first"),
    Layer("middle", boundaries=(4,)),
    Layer("projection", embedding=True),
    Layer("last"),
)


def names(plan: PrecisionPlan) -> list[str]:
    return [layer.name for layer in plan.layers]


def test_the_common_scope_leaves_ends_and_embedding_in_full_precision():
    plan = uniform_plan(LAYERS, BitWidth(4, 8), Scope())
    assert names(plan) == ["middle"]
    assert plan.full_precision == ("time", "first", "projection", "last")
    assert plan.layers[0] == LayerPlan("middle", 4, 8, (4,))


@pytest.mark.parametrize(
    ("scope", "quantized"),
    [
        (Scope(first_last=True), ["first", "middle", "last"]),
        (Scope(embedding=True), ["time", "middle", "projection"]),
        (Scope(first_last=True, embedding=True), [layer.name for layer in LAYERS]),
    ],
)
def test_a_scope_takes_in_what_it_names(scope, quantized):
    assert names(uniform_plan(LAYERS, BitWidth(4, 8), scope)) == quantized


def test_without_splitting_inputs_are_not_cut():
    (middle,) = uniform_plan(LAYERS, BitWidth(4, 8), Scope(split=False)).layers
    assert middle.boundaries == ()


KINDS = (
    Layer("time", embedding=True),
    Layer("patches", downsampling=True),
    Layer("projection", embedding=True, in_block=True),
    Layer("beside", in_block=True, shortcut=True),
    Layer("query", in_block=True, bare_attention=True),
    Layer("half", downsampling=True),
    Layer("inner", in_block=True),
    Layer("last"),
)
EVERYTHING = Scope(first_last=True, embedding=True)


@pytest.mark.parametrize(
    ("scope", "left_out"),
    [
        (replace(EVERYTHING, shortcuts=False), ("beside",)),
        (replace(EVERYTHING, downsampling=False), ("half",)),  # the first layer is the first layer, whatever its stride
        (replace(EVERYTHING, bare_attention=False), ("query",)),
        (Scope(shortcuts=False), ("time", "patches", "projection", "beside", "last")),
    ],
)
def test_a_scope_leaves_out_what_it_names(scope, left_out):
    plan = uniform_plan(KINDS, BitWidth(2, 4), scope)
    assert plan.full_precision == left_out
    assert {(layer.weight_bits, layer.activation_bits) for layer in plan.layers} == {(2, 4)}


@pytest.mark.parametrize(
    ("bits", "ends"), [((2, 4), (8, 8)), ((8, 8), (8, 8)), ((4, 16), (8, 16)), ((32, 6), (32, 8)), ((3, 32), (8, 32))]
)
def test_ends_have_eight_bits_where_others_have_less(bits, ends):
    plan = uniform_plan(KINDS, BitWidth(*bits), replace(EVERYTHING, ends_at_8=True))
    found = {layer.name: (layer.weight_bits, layer.activation_bits) for layer in plan.layers}
    assert found == {layer.name: ends if layer.name in ("time", "patches", "last") else bits for layer in KINDS}


def test_ends_in_full_precision_stay_so():
    plan = uniform_plan(KINDS, BitWidth(2, 4), Scope(ends_at_8=True))
    assert plan.full_precision == ("time", "patches", "projection", "last")
    assert {layer.weight_bits for layer in plan.layers} == {2}


def test_linear_layers_may_have_ranges_of_tokens():
    layers = (*LAYERS[:2], replace(LAYERS[2], kind="conv2d"), Layer("inner"), LAYERS[4])
    plan = uniform_plan(layers, BitWidth(4, 8), Scope(), "token")
    assert [(layer.name, layer.per_token) for layer in plan.layers] == [("middle", False), ("inner", True)]
    middle, inner = plan.to_json()["layers"]
    assert "per_token" not in middle and inner["per_token"]


def test_an_empty_network_has_an_empty_plan():
    assert uniform_plan((), BitWidth(4, 8), Scope()) == PrecisionPlan(())


bits = st.integers(1, 8)
layer_plans = st.builds(
    LayerPlan,
    name=st.text(min_size=1),
    weight_bits=st.one_of(bits, st.just(32), st.lists(bits, min_size=1, max_size=5).map(tuple)),
    activation_bits=st.sampled_from([2, 4, 8, 16, 32]),
    boundaries=st.lists(st.integers(1, 99), max_size=3, unique=True).map(sorted).map(tuple),
    per_token=st.booleans(),
)


@given(st.lists(layer_plans, max_size=4), st.lists(st.text(), max_size=3))
def test_a_plan_survives_json(layers, full_precision):
    plan = PrecisionPlan(tuple(layers), tuple(full_precision))
    assert PrecisionPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_bits_per_row():
    plan = LayerPlan("a", (1, 2, 8), 8)
    assert plan.bits_of_rows(3) == (1, 2, 8)
    assert LayerPlan("a", 3, 8).bits_of_rows(2) == (3, 3)
    plan.check_shape(torch.Size((3, 4)))
    with pytest.raises(ValueError, match="has 3 rows for layer a, the model has 5"):
        plan.check_shape(torch.Size((5, 4)))
    with pytest.raises(ValueError, match=r"layer b: boundaries \(4,\) do not cut 4 channels"):
        LayerPlan("b", 4, 8, (4,)).check_shape(torch.Size((5, 4)))


def test_rows_are_all_quantized_or_none():
    with pytest.raises(ValueError, match="layer a: rows of one layer are all quantized"):
        LayerPlan("a", (4, 32), 8)
    assert not LayerPlan("a", (32, 32), 8).quantizes_weight
    assert not LayerPlan("a", 32, 8).quantizes_weight
    assert LayerPlan("a", (4, 2), 8).quantizes_weight
    assert LayerPlan("a", 4, 32).activation_levels is None


@pytest.mark.parametrize(("weight", "activation"), [(0, 8), (9, 8), (16, 8), (33, 8), (4, 0), (4, 1), (4, 9), (4, 33)])
def test_impossible_bit_widths_are_refused_with_what_is_allowed(weight, activation):
    with pytest.raises(ValueError, match="allowed are"):
        BitWidth(weight, activation)
    with pytest.raises(ValueError, match="allowed are"):
        LayerPlan("a", weight, activation)


def test_bit_widths_name_themselves():
    assert BitWidth(3, 6).name == "w3a6"
    assert BitWidth(3, 6).activation_levels == 64 and BitWidth(32, 32).activation_levels is None


@given(st.integers(1, 60), st.data())
def test_input_groups_partition_the_channels(channels, data):
    cuts = data.draw(st.sets(st.integers(1, channels - 1), max_size=4)) if channels > 1 else set()
    groups = InputGroups(channels, tuple(sorted(cuts)))
    covered = [channel for part in groups.slices for channel in range(part.start, part.stop)]
    assert covered == list(range(channels))
    assert len(groups.slices) == groups.count == len(cuts) + 1
    for channel, group in enumerate(group_of_channel(groups).tolist()):
        assert groups.slices[group].start <= channel < groups.slices[group].stop


@pytest.mark.parametrize("boundaries", [(0,), (8,), (3, 3), (5, 2), (9,), (-1,)])
def test_cuts_that_leave_a_group_empty_are_refused(boundaries):
    with pytest.raises(ValueError, match="do not cut 8 channels"):
        InputGroups(8, boundaries)


def test_groups_of_a_size():
    assert StepGroups.of_size(5, 2).row_of_call == (0, 0, 1, 1, 2)
    assert StepGroups.of_size(5, 2).rows == 3
    assert StepGroups.per_step(3).row_of_call == (0, 1, 2)
    assert StepGroups.shared().rows == 1
