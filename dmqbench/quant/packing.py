"""Weight codes as one stream of bits, in which every row takes its own number of bits a code.

Rows are ordered by their width, rows of the same width as they stand, and follow each other without a gap; codes of a
row follow each other by column, the least significant bit first; bytes fill from their least significant bit. Only the
end is padded, with zeros, so that the length depends on the sum of the widths alone.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

LARGEST_WIDTH = 8
"""Bits of a stored code, which is a uint8."""


def packed_length(bits: Sequence[int], columns: int) -> int:
    """Return the bytes that a layer takes: ⌈columns · Σ bits / 8⌉.

    Args:
        bits: of the codes of every row, each 1 to 8.
        columns: codes in a row.

    Raises:
        ValueError: a row has another number of bits.

    >>> packed_length([1, 2, 3, 4], columns=9)
    12
    """
    strange = [width for width in bits if not 1 <= width <= LARGEST_WIDTH]
    if strange:
        raise ValueError(f"codes of {strange[0]} bits cannot be packed: allowed are 1 to {LARGEST_WIDTH}")
    return -(-columns * sum(bits) // 8)


def pack(codes: Tensor, bits: Sequence[int]) -> Tensor:
    """Return the stream of ``codes``, uint8 [⌈K · Σ bits / 8⌉], on their device; on the meta device its shape alone.

    Args:
        codes: uint8 [R, K], of row r in 0..2^bits[r] − 1.
        bits: of every row, R numbers from 1 to 8.

    Raises:
        ValueError: there is not one number of bits for every row, or a code does not fit its own.
    """
    rows, columns = codes.shape
    if len(bits) != rows:
        raise ValueError(f"{rows} rows of codes and {len(bits)} numbers of bits")
    length = packed_length(bits, columns)
    if codes.is_meta:
        return codes.new_empty(length)
    parts = []
    for width, members in _by_width(bits):
        group = codes[members.to(codes.device)]
        if columns and width < LARGEST_WIDTH and int(group.max()) >> width:
            row = int(members[(group >> width).any(1).nonzero()[0, 0].cpu()])
            raise ValueError(f"row {row} has the code {int(codes[row].max())}, which {width} bits cannot hold")
        parts.append(_to_bits(group.reshape(-1, 1), width).flatten())
    stream = torch.cat(parts) if parts else codes.new_empty(0)
    padded = torch.nn.functional.pad(stream, (0, 8 * length - len(stream)))
    return _to_numbers(padded.reshape(length, 8))


def unpack(stream: Tensor, bits: Sequence[int], columns: int) -> Tensor:
    """Return the codes uint8 [R, K] that ``pack`` made ``stream`` of.

    Args:
        stream: uint8 [⌈K · Σ bits / 8⌉].
        bits: of every row.
        columns: K.

    Raises:
        ValueError: the stream is no uint8 vector of that length.
    """
    length = packed_length(bits, columns)
    if stream.dtype != torch.uint8 or stream.shape != (length,):
        given = f"{str(stream.dtype).removeprefix('torch.')} {list(stream.shape)}"
        raise ValueError(f"packed codes are {given}, and its rows and bits make uint8 {[length]}")
    flat = _to_bits(stream.reshape(-1, 1), 8).flatten()
    codes = stream.new_empty(len(bits), columns)
    start = 0
    for width, members in _by_width(bits):
        end = start + len(members) * columns * width
        codes[members.to(stream.device)] = _to_numbers(flat[start:end].reshape(-1, width)).reshape(
            len(members), columns
        )
        start = end
    return codes


def _by_width(bits: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """Every number of bits that occurs, the smallest first, and the rows that have it, int64 [n]."""
    widths = torch.tensor(bits, dtype=torch.long)
    for width in widths.unique().tolist():
        yield width, (widths == width).nonzero().flatten()


def _to_bits(numbers: Tensor, width: int) -> Tensor:
    """[n, 1] → the lowest ``width`` bits of every number, [n, width] of 0 and 1."""
    return (numbers >> torch.arange(width, dtype=torch.uint8, device=numbers.device)) & 1


def _to_numbers(bits: Tensor) -> Tensor:
    """[n, width] of 0 and 1 → numbers, uint8 [n]."""
    places = torch.arange(bits.shape[1], dtype=torch.uint8, device=bits.device)
    return (bits << places).sum(dim=1, dtype=torch.uint8)
