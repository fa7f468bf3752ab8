"""Restoration and editing: how the images of a stream reach a denoiser, as a condition or as a start.

A network for restoration reads a degraded image beside its state. Editing needs no network of its own (SDEdit, Meng et
al. 2022): trajectories start from an image that was noised, not from noise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmqbench.data.degradation import super_resolution_condition
from dmqbench.data.image_streams import ImageStreams
from dmqbench.data.images import to_uint8
from dmqbench.data.noise import Stream
from dmqbench.models.adapter import IMAGE, Adapter
from dmqbench.models.conditioning import ClassConditioner, Conditioner, Decoder


@dataclass(frozen=True)
class OfImages:
    """Conditions that belong to the images: their labels, and for restoration the degraded image.

    Args:
        inner: what the network is conditioned on besides.
        factor: of super-resolution; None: the image itself is no condition.
    """

    inner: Conditioner
    images: ImageStreams
    classes: int | None
    factor: int | None = None

    def conditions(self, stream: Stream, seed: int, indices: Sequence[int]) -> dict[str, Tensor]:
        cond = self.inner.conditions(stream, seed, indices)
        if isinstance(self.inner, ClassConditioner):
            assert self.classes is not None
            cond |= self.inner.of_labels(self.images.labels_of(stream, indices, self.classes))
        if self.factor is not None:
            cond[IMAGE] = torch.cat([self._degraded(stream, index) for index in indices])
        return cond

    def null(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the conditions without a class; the image stays, as it is what is to be restored."""
        image = {IMAGE: cond[IMAGE]} if IMAGE in cond else {}
        return self.inner.null(cond) | image

    def example(self, batch: int, device: torch.device | str) -> dict[str, Tensor]:
        cond = self.inner.example(batch, device)
        if self.factor is not None:
            cond[IMAGE] = torch.zeros_like(self._degraded("cal", 0), device=device).expand(batch, -1, -1, -1)
        return cond

    def shown(self, indices: Sequence[int]) -> Tensor:
        """Return what samples ``indices`` of the stream ``eval`` start from, as uint8 [B, C, H, W]."""
        if self.factor is None:
            return self.images.pixels("eval", indices)
        return to_uint8(torch.cat([self._degraded("eval", index) for index in indices]))

    def _degraded(self, stream: Stream, index: int) -> Tensor:
        """One at a time, so that its bits depend on no batch."""
        assert self.factor is not None
        return super_resolution_condition(self.images.signed(stream, [index]), self.factor)


@dataclass(frozen=True)
class CleanStates:
    """The states that the images have before any noise."""

    images: ImageStreams
    decoder: Decoder

    def __call__(self, stream: Stream, indices: Sequence[int]) -> Tensor:
        """Return x_0 of samples ``indices``, float32 [B, C, H, W] on the CPU; one at a time, as above."""
        return torch.cat([self.decoder.encode(self.images.signed(stream, [index])).cpu() for index in indices])


def restore_images_(adapter: Adapter, images: ImageStreams, factor: int, classes: int | None = None) -> None:
    """Let the adapter restore the images, reduced ``factor`` times."""
    adapter.conditioner = OfImages(adapter.conditioner, images, classes, factor)


def edit_images_(adapter: Adapter, images: ImageStreams, classes: int | None = None) -> None:
    """Let the adapter edit the images: trajectories start from them, noised to the first timestep of the plan."""
    adapter.conditioner = OfImages(adapter.conditioner, images, classes)
    adapter.start = CleanStates(images, adapter.decoder)
