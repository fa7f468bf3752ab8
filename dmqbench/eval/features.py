"""Feature networks: what ``fid``, ``kid``, ``fd_digits`` and their kin measure in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dmqbench.data.images import require_images
from dmqbench.eval.protocol import FeatureNetwork

Output = Literal["pool", "spatial", "logits"]
"""pool [N, d]: the last features; spatial [N, d']: a few channels of an earlier layer, flattened; logits [N, K]."""

Features = Mapping[str, Tensor]
"""Output → float32 [N, ...] on the CPU."""

IMAGES_AT_ONCE = 64


@dataclass(frozen=True)
class Extractor:
    """A frozen feature network.

    ``network`` maps uint8 images [N, C, H, W] with C = 1 or 3 to all ``outputs``. ``hash`` is the sha256 of its
    weights; ``resize`` is one word for what it does to the images first; both are part of the protocol. ``tool`` is
    the implementation and its mode.
    """

    name: str
    hash: str
    tool: str
    network: Callable[[Tensor], Features]
    outputs: tuple[Output, ...] = ("pool",)
    resize: str = "none"

    @property
    def facts(self) -> FeatureNetwork:
        return FeatureNetwork(self.name, self.hash, self.resize)


def require_matrix(values: Tensor, what: str, columns: str = "d") -> None:
    """Refuse what is no finite matrix of one row per image; ValueError, one line."""
    if values.ndim != 2:
        raise ValueError(f"{what} must be N×{columns}, got shape {tuple(values.shape)}")
    if not torch.isfinite(values).all():
        raise ValueError(f"{what} hold NaN or infinity")


def require_comparable(features: Tensor, reference: Tensor, paired: bool) -> None:
    """Refuse features [N, d] and [M, d] that differ in d, or in their rows where these pair; ValueError, one line."""
    if features.shape[1] != reference.shape[1]:
        raise ValueError(f"features of {features.shape[1]} and {reference.shape[1]} dimensions do not compare")
    if paired and len(features) != len(reference):
        raise ValueError(f"paired features must have the same rows, got {len(features)} and {len(reference)}")


@torch.no_grad()
def extract(extractor: Extractor, images: Tensor, images_at_once: int = IMAGES_AT_ONCE) -> dict[str, Tensor]:
    """Return all outputs of the network for uint8 images [N, C, H, W], float32 on the CPU."""
    require_images(images)
    parts = [extractor.network(part) for part in images.split(images_at_once)]
    return {name: torch.cat([part[name].float().cpu() for part in parts]) for name in extractor.outputs}
