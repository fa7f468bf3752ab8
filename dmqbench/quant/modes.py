"""The modes of torch under which everything here is computed, whatever those of the caller are."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from typing import Any, NamedTuple

import torch


class _Mode(NamedTuple):
    """A setting of the process: how it is read and written, and what it is while something is computed here."""

    read: Callable[[], Any]
    write: Callable[[Any], None]
    ours: Any


def _of_backends(path: str, ours: Any) -> _Mode:
    owner, _, name = path.rpartition(".")

    def write(value: Any) -> None:
        setattr(attrgetter(owner)(torch.backends) if owner else torch.backends, name, value)

    return _Mode(lambda: attrgetter(path)(torch.backends), write, ours)


_PRECISIONS = (
    *("mkldnn.", "", "cudnn.", "cuda.matmul.", "cudnn.conv.", "cudnn.rnn."),
    *("mkldnn.matmul.", "mkldnn.conv.", "mkldnn.rnn."),
)
"""Whose float32 may be rounded to TF32 or bfloat16, which older versions of torch do not say; what sets others comes
before them."""

_MODES = (
    _Mode(torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    _Mode(
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda modes: torch.autograd.set_detect_anomaly(*modes) and None,
        (False, True),
    ),
    _Mode(torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, 0),
    _of_backends("cudnn.deterministic", True),
    _of_backends("cudnn.benchmark", False),
    _Mode(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
    _of_backends("cuda.matmul.allow_tf32", False),
    _of_backends("cuda.matmul.allow_bf16_reduced_precision_reduction", False),
    _of_backends("cudnn.allow_tf32", False),
    *(_of_backends(f"{whose}fp32_precision", "ieee") for whose in _PRECISIONS),
)

_ABSENT, _UNREADABLE = object(), object()


def _value(mode: _Mode) -> Any:
    """What is set, or why that is not known: this torch has no such setting, or it was set by its newer name."""
    try:
        return mode.read()
    except AttributeError:
        return _ABSENT
    except RuntimeError:
        return _UNREADABLE


class _Process:
    """The modes of the whole process: the first of the calls that are in flight, in whatever threads, makes them ours,
    the last puts back what the first found. Beside them, the caller's other threads compute under ours too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._before: list[tuple[_Mode, Any]] = []

    @contextmanager
    def ours(self) -> Iterator[None]:
        with self._lock:
            if self._calls == 0:
                self._before = [(mode, _value(mode)) for mode in _MODES]
            self._calls += 1
        try:
            with self._lock:
                _write([(mode, mode.ours) for mode in _MODES])
            yield
        finally:
            with self._lock:
                self._calls -= 1
                if self._calls == 0:
                    _write(self._before)


_PROCESS = _Process()


@contextmanager
def own_modes(gradients: bool = True) -> Iterator[None]:
    """Compute as if the caller had no modes: no autocast, default dtype or device, inference or anomaly mode,
    deterministic algorithms, TF32 or sums in bfloat16; with gradients or without. Afterwards all modes are what they
    were, once no other thread computes here."""
    with ExitStack() as entered:
        entered.enter_context(torch.inference_mode(False))
        entered.enter_context(torch.set_grad_enabled(gradients))
        for kind in ("cpu", "cuda"):
            entered.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            entered.enter_context(torch.device("cpu"))
        entered.enter_context(_PROCESS.ours())
        yield


def _write(values: list[tuple[_Mode, Any]]) -> None:
    for mode, value in values:
        if value is not _UNREADABLE and _value(mode) not in (value, _ABSENT):
            mode.write(value)


@contextmanager
def undisturbed(device: torch.device | str = "cpu") -> Iterator[None]:
    """Compute under modes of our own, and leave the caller's modes and random numbers, of ``device`` too, as they
    were."""
    devices = [device] if torch.device(device).type == "cuda" else []
    with own_modes(), torch.random.fork_rng(devices=devices):
        yield
