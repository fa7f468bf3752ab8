"""Packed codes against integers written by hand, and as laws."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmqbench.quant.packing import pack, packed_length, unpack


def by_hand(codes: list[list[int]], bits: list[int]) -> bytes:
    """One large integer, filled from below, row by row in order of width."""
    total = place = 0
    for row in sorted(range(len(bits)), key=lambda row: bits[row]):
        for code in codes[row]:
            total |= code << place
            place += bits[row]
    return total.to_bytes(-(-place // 8), "little")


def as_codes(rows: list[list[int]], columns: int) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.uint8).reshape(len(rows), columns)


@st.composite
def layers(draw):
    """(codes, bits, columns)."""
    bits = draw(st.lists(st.integers(1, 8), max_size=9))
    columns = draw(st.integers(0, 11))
    rows = [draw(st.lists(st.integers(0, 2**width - 1), min_size=columns, max_size=columns)) for width in bits]
    return rows, bits, columns


@given(layers())
def test_packing_is_read_back_exactly_and_as_long_as_its_bits(layer):
    rows, bits, columns = layer
    codes = as_codes(rows, columns)
    stream = pack(codes, bits)
    assert bytes(stream.tolist()) == by_hand(rows, bits)
    assert stream.dtype == torch.uint8
    assert len(stream) == packed_length(bits, columns) == -(-columns * sum(bits) // 8)
    assert torch.equal(unpack(stream, bits, columns), codes)


@given(st.permutations([1, 2, 3, 4, 8]), st.integers(1, 40))
def test_the_order_of_rows_changes_no_length_and_is_kept(bits, columns):
    generator = torch.Generator().manual_seed(columns)
    codes = torch.stack([torch.randint(2**width, (columns,), generator=generator) for width in bits]).to(torch.uint8)
    stream = pack(codes, bits)
    assert len(stream) == packed_length([1, 2, 3, 4, 8], columns)
    assert torch.equal(unpack(stream, bits, columns), codes)


def test_two_rows_bit_by_bit():
    # 2 bits: 1, 2, 3 → 01 10 11, filled from below: 0b111001; then 3 bits: 5, 0, 4.
    stream = pack(torch.tensor([[5, 0, 4], [1, 2, 3]], dtype=torch.uint8), [3, 2])
    assert stream.tolist() == [0b01_111001, 0b100_000_1]


def test_on_the_meta_device_only_the_length_is_known():
    codes = torch.empty(3, 7, dtype=torch.uint8, device="meta")
    stream = pack(codes, [1, 2, 3])
    assert stream.is_meta and stream.shape == (6,) and stream.dtype == torch.uint8


def test_what_does_not_fit_is_refused_and_the_row_is_named():
    codes = torch.tensor([[1, 1], [3, 4]], dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"row 1 has the code 4, which 2 bits cannot hold"):
        pack(codes, [8, 2])
    with pytest.raises(ValueError, match=r"2 rows of codes and 3 numbers"):
        pack(codes, [3, 3, 3])
    for width in (0, 9):
        with pytest.raises(ValueError, match=rf"codes of {width} bits .* 1 to 8"):
            pack(codes, [4, width])


@pytest.mark.parametrize(
    "stream", [torch.zeros(2, dtype=torch.uint8), torch.zeros(3), torch.zeros(3, 1, dtype=torch.uint8)]
)
def test_a_stream_of_another_length_or_type_is_refused(stream):
    with pytest.raises(ValueError, match=r"packed codes are .* make uint8 \[3\]"):
        unpack(stream, [4, 4], columns=3)
