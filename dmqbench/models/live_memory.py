"""How many bytes of tensors a computation holds at once, also where the tensors are shapes alone."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dmqbench.models.shape_memo import compute, storage_of, tensors


class LiveMemory(TorchDispatchMode):
    """Counts the storages that are made while it is entered, for as long as anything holds them.

    What an operation needs inside itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        """Bytes."""
        self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result, memory = compute(func, args, kwargs or {})
        if memory != "given":
            found = tensors((args, tuple((kwargs or {}).values()))) if memory == "unknown" else ()
            given = {storage_of(tensor) for tensor in found}
            for tensor in tensors(result):
                if storage_of(tensor) not in given:
                    self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known[key] = weakref.ref(storage, lambda _: self._remove(key, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _remove(self, key: int, size: int) -> None:
        del self._known[key]
        self.now -= size


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *_: Any,
    scale: float | None = None,
    **__: Any,
) -> Tensor:
    """On the meta device torch computes attention in steps, where processors and GPUs keep no table of scores."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return fused(query, key, value, attn_mask=attn_mask, scale=scale)[0]


@contextmanager
def live_memory() -> Iterator[LiveMemory]:
    """Watch what is computed on the meta device, attention as it is computed elsewhere."""
    plain = nn.functional.scaled_dot_product_attention
    # No mode of torch's: those are not in force in what a backward pass computes again.
    nn.functional.scaled_dot_product_attention = _attention
    try:
        with LiveMemory() as live:
            yield live
    finally:
        nn.functional.scaled_dot_product_attention = plain


def peak_of(compute: Callable[[], Any]) -> int:
    """Return the most bytes that ``compute`` holds at once, its result included."""
    with live_memory() as live:
        compute()
    return live.peak


def held_by(tensors: Iterable[Tensor | None]) -> int:
    """Return the bytes that tensors hold together; what several share is counted once."""
    storages = {storage_of(tensor): tensor.untyped_storage().nbytes() for tensor in tensors if tensor is not None}
    return sum(storages.values())


def network_bytes(network: nn.Module) -> int:
    """Return the bytes of the parameters and buffers of a network."""
    return held_by([*network.parameters(), *network.buffers()])
