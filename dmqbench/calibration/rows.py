"""Tensors that are filled batch by batch and read by rows, wherever they lie."""

import mmap
import tempfile
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shelf:
    """Where rows are kept: on the device that they come from, or elsewhere.

    Elsewhere is the host's memory for those of a GPU, and for those of a CPU a file in ``folder`` that nobody else sees
    and that is gone with them.
    """

    moved: bool = False
    folder: Path | None = None

    def rows(self, count: int, like: Tensor) -> "Rows":
        """Return room for ``count`` rows of the shape, type and device of those of ``like`` [B, …]."""
        shape, file = (count, *like.shape[1:]), None
        if not self.moved or like.is_meta:
            values = like.new_empty(shape)
        elif like.device.type != "cpu":
            values = torch.empty(shape, dtype=like.dtype)
        else:
            file = self._file(prod(shape) * like.element_size())
            values = torch.frombuffer(file, dtype=like.dtype, count=prod(shape)).view(shape)
        return Rows(values, like.device, file, copied=self.moved)

    def _file(self, size: int) -> mmap.mmap:
        with tempfile.TemporaryFile(dir=self.folder) as file:
            file.truncate(size)
            return mmap.mmap(file.fileno(), size)


class Rows:
    """Rows [N, …] that are filled from the front and read by index.

    Args:
        device: where rows are given.
        file: what ``values`` lie in, if that is a file: what of it is not being read then takes no memory.
        copied: whether what is read takes memory of its own.
    """

    def __init__(
        self, values: Tensor, device: torch.device, file: mmap.mmap | None = None, copied: bool = False
    ) -> None:
        self._values, self._device, self._file, self._copied = values, device, file, copied
        self._filled = 0

    def append(self, rows: Tensor) -> None:
        """Take the next rows."""
        self._values[self._filled : self._filled + len(rows)] = rows
        self._filled += len(rows)
        self._let_go()

    @property
    def nbytes(self) -> int:
        return self._values.nbytes

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        chosen = self._values[index].to(self._device, copy=self._copied)
        self._let_go()
        return chosen

    def _let_go(self) -> None:
        if self._file is not None:
            self._file.madvise(mmap.MADV_DONTNEED)
