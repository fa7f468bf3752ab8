"""A GPU that is made believe: tensors of shapes, of which every operation demands that they lie on one device.

What values decide is decided somehow: a number read from a tensor is 1, gradients are zero, a mask chooses as many
rows as it has. So what runs here shows where things lie and nothing else.
"""

from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from dmqbench.calibration.stage import Stage
from dmqbench.quant import quantizer, scaling


def believed_gpu(monkeypatch: pytest.MonkeyPatch, rows: int) -> AbstractContextManager[Any]:
    """Return a context in which ``cuda`` is a device; ``rows`` of parameters are what whole numbers differ by."""

    def on_shapes(owner: Any, name: str, shown: Any) -> None:
        real = getattr(owner, name)

        def choose(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            return (shown if isinstance(self, FakeTensor) else real)(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, choose)

    for name, value in {"__bool__": True, "__int__": 1, "__index__": 1, "__float__": 1.0}.items():
        on_shapes(Tensor, name, lambda _, value=value: value)
    on_shapes(Tensor, "item", lambda tensor: _ones(tensor.flatten()[0]))
    on_shapes(Tensor, "tolist", _ones)
    on_shapes(Tensor, "unique", lambda _: SimpleNamespace(tolist=lambda: list(range(rows))))
    for module in (quantizer, scaling):
        monkeypatch.setattr(module, "group_of_channel", lambda groups: torch.zeros(groups.channels, dtype=torch.long))
    plain = Tensor.__getitem__
    on_shapes(Tensor, "__getitem__", lambda tensor, index: plain(tensor, _chosen(index)))
    on_shapes(Tensor, "backward", lambda loss: None)
    monkeypatch.setattr(torch.autograd, "grad", lambda outputs, inputs, *_, **__: _zeros(inputs))
    monkeypatch.setattr(torch.autograd, "backward", _no_slope)
    monkeypatch.setattr(torch.random, "fork_rng", lambda **_: nullcontext())
    monkeypatch.setattr(Stage, "log", lambda *_, **__: None)
    # Else a module keeps its parameters, and they their device.
    monkeypatch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
    return FakeTensorMode(allow_non_fake_inputs=True)


def _ones(tensor: Tensor) -> Any:
    """What a tensor's values are as a list, or as a number."""
    one = True if tensor.dtype == torch.bool else 1.0 if tensor.is_floating_point() else 1
    return [_ones(part) for part in tensor] if tensor.ndim else one


def _zeros(inputs: Any) -> tuple[Tensor, ...]:
    given = [inputs] if isinstance(inputs, Tensor) else inputs
    return tuple(torch.zeros_like(tensor) for tensor in given)


def _no_slope(*_: Any, inputs: list[Tensor], **__: Any) -> None:
    for tensor in inputs:
        tensor.grad = torch.zeros_like(tensor)


def _chosen(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(_chosen, index))
    is_mask = isinstance(index, Tensor) and index.dtype == torch.bool
    return torch.zeros(len(index), dtype=torch.long, device=index.device) if is_mask else index
