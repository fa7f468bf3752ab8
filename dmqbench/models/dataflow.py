"""What a probe learns from the torch functions that a network calls, whatever the names of its modules."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary


class Watch(TorchFunctionMode):
    """Is told every torch function that is called while it is entered, with its arguments and its result."""

    @abstractmethod
    def note(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        """Take note of one call."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.note(func, args, kwargs or {}, result)
        return result


class ChannelCuts(Watch):
    """Remembers where the results of channel concatenations were joined."""

    def __init__(self) -> None:
        super().__init__()
        # The tensor is kept beside its cuts: a freed one's id could be given to another.
        self._results: dict[int, tuple[Tensor, tuple[int, ...]]] = {}

    def of(self, tensor: Tensor) -> tuple[int, ...]:
        """Cut points of ``tensor``; empty if it is not the result of a concatenation."""
        return self._results[id(tensor)][1] if id(tensor) in self._results else ()

    def note(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        if func in (torch.cat, torch.concat, torch.concatenate) and result.ndim == 4:
            tensors = args[0] if args else kwargs["tensors"]
            dim = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
            if dim in (1, -3) and len(tensors) > 1:
                cuts = tuple(accumulate(tensor.shape[1] for tensor in tensors))[:-1]
                self._results[id(result)] = (result, cuts)


class ResidualSums(Watch):
    """Finds the layers beside a residual branch: y = layer(x) + f(x), where f does not read the layer's output.

    What a tensor was made of is a set of numbered tensors, kept as the bits of an integer; parameters do not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shortcuts: set[str] = set()
        self._numbers = WeakTensorKeyDictionary()
        self._made_of = WeakTensorKeyDictionary()
        self._outputs = WeakTensorKeyDictionary()
        self._count = 0

    def made_of(self, tensor: Tensor, number: int) -> bool:
        """Whether ``tensor`` is the one of that ``number``, or was made of it."""
        return bool(self._sources(tensor) >> number & 1)

    def note_layer(self, name: str, x: Tensor, output: Tensor) -> None:
        """``output`` is what layer ``name`` has just made of ``x``."""
        self._outputs[output] = (name, self.number(x))

    def _note_sum(self, output: Tensor, sources: int) -> None:
        """``output`` is added to something made of ``sources``."""
        if output in self._outputs:
            name, x = self._outputs[output]
            if sources >> x & 1 and not sources >> self.number(output) & 1:
                self.shortcuts.add(name)

    def number(self, tensor: Tensor) -> int:
        """Return what a tensor is known by, also when it is gone."""
        if tensor not in self._numbers:
            self._numbers[tensor] = self._count
            self._count += 1
        return self._numbers[tensor]

    def _made_before(self, tensor: Tensor) -> int:
        return self._made_of.get(tensor) or 0

    def _sources(self, tensor: Tensor) -> int:
        return self._made_before(tensor) | 1 << self.number(tensor)

    def note(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        operands = [leaf for leaf in tree_leaves((args, kwargs)) if _is_data(leaf)]
        if getattr(func, "__name__", "") in ("add", "add_") and len(operands) == 2:
            for output, other in (operands, operands[::-1]):
                self._note_sum(output, self._sources(other))
        sources = 0
        for operand in operands:
            sources |= self._sources(operand)
        for made in tree_leaves(result):
            if _is_data(made):
                self._made_of[made] = self._made_before(made) | sources


def _is_data(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and not isinstance(leaf, nn.Parameter)
