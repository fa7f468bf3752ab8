"""The length of a safetensors file before it is written, against the library that writes it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from dmqbench.models.quantized_file import file_length, frozen_state, packed, shapes_in, unpacked
from dmqbench.quant.plan import LayerPlan, PrecisionPlan

TYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
SHAPES = st.lists(st.integers(0, 12), max_size=3)


def zeros(forms):
    return {name: torch.zeros(shape, dtype=dtype) for name, (dtype, shape) in forms.items()}


@given(st.dictionaries(NAMES, st.tuples(st.sampled_from(TYPES), SHAPES), max_size=12))
def test_the_length_is_that_of_the_file(forms):
    tensors = zeros(forms)
    meta = {name: value.to("meta") for name, value in tensors.items()}
    assert file_length(meta) == file_length(tensors) == len(save(tensors))


def test_offsets_of_many_digits_count():
    tensors = zeros({f"{dtype}.{n}": (dtype, (10**n,)) for dtype in TYPES for n in range(6)})
    assert file_length(tensors) == len(save(tensors))


def test_shapes_are_read_from_the_header(tmp_path):
    tensors = zeros({str(dtype): (dtype, (2, number)) for number, dtype in enumerate(TYPES)})
    save_file(tensors, tmp_path / "file.safetensors")
    found = shapes_in(tmp_path / "file.safetensors")
    assert {name: (value.dtype, value.shape) for name, value in found.items()} == {
        name: (value.dtype, value.shape) for name, value in tensors.items()
    }
    assert all(value.is_meta for value in found.values())


PLAN = PrecisionPlan((LayerPlan("conv", (1, 3, 3), 4), LayerPlan("plain", 32, 4), LayerPlan("linear", 2, 4)))
SHAPE = {"conv": (3, 2, 2, 1), "plain": (2, 2), "linear": (2, 5)}
STATE = {
    "conv.weight_quantizer.codes": torch.tensor([[1, 0, 1, 1], [7, 6, 5, 4], [0, 1, 2, 3]], dtype=torch.uint8).reshape(
        3, 2, 2, 1
    ),
    "conv.weight_quantizer.levels": torch.tensor([2, 8, 8], dtype=torch.int32),
    "linear.weight_quantizer.codes": torch.tensor([[3, 2, 1, 0, 3], [0, 0, 1, 1, 2]], dtype=torch.uint8),
    "linear.weight_quantizer.levels": torch.tensor([4, 4], dtype=torch.int32),
    "linear.weight_quantizer.scale": torch.rand(2, 1),
    "plain.weight": torch.rand(2, 2),
}


def test_codes_and_levels_come_back_and_the_rest_is_left_as_it_is():
    held = packed(STATE, PLAN)
    assert {name: list(value.shape) for name, value in held.items()} == {
        "conv.weight_quantizer.codes": [4],  # 4 · (1 + 3 + 3) = 28 bits
        "conv.weight_quantizer.bits": [3],
        "linear.weight_quantizer.codes": [3],  # 5 · (2 + 2) = 20 bits
        "linear.weight_quantizer.bits": [2],
        "linear.weight_quantizer.scale": [2, 1],
        "plain.weight": [2, 2],
    }
    again = unpacked(held, PLAN, SHAPE)
    assert again.keys() == STATE.keys()
    for name, value in STATE.items():
        assert again[name].dtype == value.dtype
        assert torch.equal(again[name], value)


def test_codes_that_do_not_fit_their_bits_are_refused_with_their_layer():
    with pytest.raises(ValueError, match=r"layer linear: row 0 has the code 3, which 1 bits cannot hold"):
        packed(STATE, PrecisionPlan((LayerPlan("linear", 1, 4),)))


def test_a_frozen_state_has_codes_in_the_place_of_weights_and_what_made_them():
    network = {"conv.weight": torch.rand(3, 2, 2, 1), "conv.bias": torch.rand(3), "plain.weight": torch.rand(2, 2)}
    calibration = {
        "conv.weight_quantizer.scale": torch.rand(3, 1),
        "conv.weight_quantizer.alpha": torch.rand(3, 2, 2, 1),
        "conv.adapter_down": torch.rand(1, 4),
        "conv.adapter_up": torch.rand(3, 1),
        "plain.activation_quantizer.scale": torch.rand(1, 1),
    }
    plan = PrecisionPlan((LayerPlan("conv", 2, 4), LayerPlan("plain", 32, 4)))
    state = frozen_state(network, calibration, plan)
    assert {name: (value.dtype, list(value.shape)) for name, value in state.items()} == {
        "conv.bias": (torch.float32, [3]),
        "conv.weight_quantizer.scale": (torch.float32, [3, 1]),
        "conv.weight_quantizer.codes": (torch.uint8, [3, 2, 2, 1]),
        "plain.weight": (torch.float32, [2, 2]),
        "plain.activation_quantizer.scale": (torch.float32, [1, 1]),
    }
