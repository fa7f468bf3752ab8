"""Which denoising step each sample of a batch is at, for quantizers that keep parameters per step."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute


class Toward(NamedTuple):
    """Samples between two calls take parameters from both."""

    call: Tensor
    """Index of the other call, int64 [B]."""
    share: Tensor
    """How much of the way from their own step to that call they have gone, float [B] in 0..1."""


class StepContext(threading.local):
    """Holds the network-call index of every sample in the batch that is in flight in a thread.

    One object is shared by all quantizers of a model. No argument can be handed to a convolution through a
    diffusers forward, and calibration batches mix steps: so the step is written here, once per network call. Each
    thread has its own: a network may be called in several at once.
    """

    def __init__(self) -> None:
        self._step: Tensor | None = None
        self._toward: Toward | None = None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """A copy is of no call in flight."""
        return type(self), ()

    @property
    def step(self) -> Tensor:
        """Call indices, int64 [B].

        Raises:
            RuntimeError: no call is in flight; a stale step would silently select the wrong parameters.
        """
        if self._step is None:
            raise RuntimeError("the denoising step is not set: call the network through the adapter's denoise()")
        return self._step

    @property
    def toward(self) -> Toward | None:
        """Which other call every sample is on the way to; None while all are at their steps."""
        return self._toward

    @contextmanager
    def at(self, step: Tensor, toward: Toward | None = None) -> Iterator[None]:
        """Set ``step`` [B], and what lies between steps, for the duration of one network call."""
        if step.ndim != 1:
            raise ValueError(f"step must be one call index per sample, shape [B], not {list(step.shape)}")
        before = self._step, self._toward
        self._step, self._toward = step, toward
        try:
            yield
        finally:
            self._step, self._toward = before

    def checkpoint(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run ``function(*args, **kwargs)`` under gradient checkpointing, at the same step when it is run again.

        A rollout runs one block at many steps before the backward pass runs it again: without the capture, every
        recomputation would see the step that was set last.
        """
        captured = self._step, self._toward

        def at_captured_step(*inner: Any, **named: Any) -> Any:
            before = self._step, self._toward
            self._step, self._toward = captured
            try:
                return function(*inner, **named)
            finally:
                self._step, self._toward = before

        return recompute(at_captured_step, *args, use_reentrant=False, **kwargs)
