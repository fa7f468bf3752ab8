"""Which denoising step each sample of a batch is at, for quantizers that keep parameters per step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute


class StepContext:
    """Holds the network-call index of every sample in the batch that is in flight.

    One object is shared by all quantizers of a model. No argument can be handed to a convolution through a
    diffusers forward, and calibration batches mix steps: so the step is written here, once per network call.
    """

    def __init__(self) -> None:
        self._step: Tensor | None = None

    @property
    def step(self) -> Tensor:
        """Call indices, int64 [B].

        Raises:
            RuntimeError: no call is in flight; a stale step would silently select the wrong parameters.
        """
        if self._step is None:
            raise RuntimeError("the denoising step is not set: call the network through the adapter's denoise()")
        return self._step

    @contextmanager
    def at(self, step: Tensor) -> Iterator[None]:
        """Set ``step`` [B] for the duration of one network call."""
        if step.ndim != 1:
            raise ValueError(f"step must be one call index per sample, shape [B], not {list(step.shape)}")
        before = self._step
        self._step = step
        try:
            yield
        finally:
            self._step = before

    def checkpoint(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run ``function(*args)`` under gradient checkpointing, at the same step when it is run again.

        A rollout runs one block at many steps before the backward pass runs it again: without the capture, every
        recomputation would see the step that was set last.
        """
        captured = self._step

        def at_captured_step(*inner: Any) -> Any:
            before, self._step = self._step, captured
            try:
                return function(*inner)
            finally:
                self._step = before

        return recompute(at_captured_step, *args, use_reentrant=False)
