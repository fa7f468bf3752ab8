"""Counting what autograd keeps for the backward pass."""

import weakref
from collections.abc import Callable

import torch


class Saved:
    """A tensor kept for the backward pass."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class Meter:
    """Counts the bytes that are kept for the backward pass at one time."""

    def __init__(self) -> None:
        self.live = self.peak = 0

    def pack(self, tensor: torch.Tensor) -> Saved:
        saved = Saved(tensor)
        size = tensor.nbytes
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(saved, self.release, size)
        return saved

    def release(self, size: int) -> None:
        self.live -= size


def peak_bytes(run: Callable[[], object]) -> int:
    """The largest number of bytes that were kept for the backward pass while ``run`` ran."""
    meter = Meter()
    with torch.autograd.graph.saved_tensors_hooks(meter.pack, lambda saved: saved.tensor):
        run()
    return meter.peak
