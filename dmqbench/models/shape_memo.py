"""What operations make of shapes, found once: on the meta device torch finds it in Python, again for every block."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")

Memory = Literal["new", "given", "unknown"]
"""Whose storages the tensors of a result have: all their own, or all those of arguments."""


class ShapeMemo(TorchDispatchMode):
    """While it is entered, no operation on the meta device is looked into twice."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return compute(func, args, kwargs or {})[0]


class _Made(NamedTuple):
    """A tensor that is all of a storage of its own."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def again(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=META)


IN_PLACE, VIEW, UNKNOWN = "in place", "view", "unknown"
"""The result is the first argument; lies in the arguments; or may be anything."""

_known: dict[Any, Any] = {}


def compute(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Memory]:
    """Return what ``func`` returns, made again if its shape is known, and whose memory it is in."""
    try:
        key = func, _form((args, tuple(kwargs.items())))
        known = _known.get(key)
    except (TypeError, _NotOfShapes):  # without a hash; or of values
        return func(*args, **kwargs), UNKNOWN
    if known is None:
        result = func(*args, **kwargs)
        _known[key] = _kind(result, key[1], args, kwargs)
        return result, UNKNOWN
    if known is IN_PLACE:
        return args[0], "given"
    if isinstance(known, str):
        return func(*args, **kwargs), "given" if known is VIEW else UNKNOWN
    return known.again() if isinstance(known, _Made) else tuple(map(_again, known)), "new"


class _NotOfShapes(Exception):
    """An argument has values, on which the result's shape may depend."""


def _form(value: Any) -> Any:
    """All that the shape of a result depends on."""
    if isinstance(value, Tensor):
        if value.device != META:
            raise _NotOfShapes
        return value.shape, value.stride(), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple(map(_form, value))
    return type(value), value


def _again(part: Any) -> Any:
    return part.again() if isinstance(part, _Made) else part


def _kind(result: Any, form: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """How the result of arguments that had this ``form`` could be made again."""
    if args and result is args[0]:
        return IN_PLACE if _form(result) == form[0][0] else UNKNOWN
    made = list(tensors(result))
    ours, given = ({storage_of(tensor) for tensor in some} for some in (made, tensors((args, tuple(kwargs.values())))))
    if made and ours <= given:
        return VIEW
    whole = len(ours) == len(made) > 0 and all(map(_is_whole, made))
    if ours & given or not whole or not isinstance(result, (Tensor, tuple)):
        return UNKNOWN
    parts = tuple(_Made(*_form(part)) if isinstance(part, Tensor) else part for part in _parts(result))
    return parts if isinstance(result, tuple) else parts[0]


def _parts(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors among the arguments or results of an operation."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for part in tree:
            yield from tensors(part)


def storage_of(tensor: Tensor) -> int:
    """What tells storages apart."""
    return tensor.untyped_storage()._cdata


def _is_whole(tensor: Tensor) -> bool:
    """Whether a tensor on the meta device is all of its storage."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    values = reach + 1 if tensor.numel() else 0
    starts = tensor.device == META and tensor.storage_offset() == 0
    return bool(starts and values * tensor.itemsize == tensor.untyped_storage().nbytes())
