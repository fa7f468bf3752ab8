"""LPIPS (Zhang et al. 2018), version 0.1: a learned distance between two images, 0 where they are identical."""

import hashlib
import re
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmqbench.config.names import STAND_IN
from dmqbench.config.schema import MetricsConfig
from dmqbench.data.images import require_pair, to_signed
from dmqbench.eval.paired import PairedMetric, PerImage
from dmqbench.eval.protocol import FeatureNetwork
from dmqbench.eval.resizing import as_rgb
from dmqbench.eval.weights import LPIPS_BACKBONE_FILES, Located, locate

LEAST_SIDE = {"alex": 31, "vgg": 16, "squeeze": 17}
"""Backbone → the shorter side, in pixels, below which its last layer has nothing to look at."""

IMAGES_AT_ONCE = 16
_SLICE = re.compile(r"(slice\d+|slices\.\d+)\.")


def lpips_metric(settings: MetricsConfig, device: str | torch.device) -> PairedMetric:
    """Return LPIPS with the backbone ``metrics.lpips`` and torchmetrics' linear heads.

    Smaller images than the backbone takes are enlarged bilinearly, by one factor, to the least that it does; grey ones
    are repeated to three channels. ``MetricUnavailable`` if the backbone's weights are not to be had.
    """
    return _metric(settings.lpips, locate(LPIPS_BACKBONE_FILES[settings.lpips], settings), str(device))


@cache
def _metric(backbone: str, located: Located, device: str) -> PairedMetric:
    network = load_network(backbone, located.path).to(device)
    least = LEAST_SIDE[backbone]
    return PairedMetric(
        name="lpips",
        higher_is_better=False,
        operand="images",
        tool="torchmetrics",
        per_image=partial(lpips, network=network, least_side=least, device=device),
        network=FeatureNetwork(
            f"{STAND_IN if located.stand_in else ''}lpips-{backbone}",
            _hash(located.sha256, network),
            f"bilinear-to-at-least-{least}+grey-to-rgb",
        ),
    )


def lpips(images: Tensor, reference: Tensor, network: nn.Module, least_side: int, device: str) -> PerImage:
    """Return the distance, ≥ 0, of each pair of uint8 images [N, C, H, W]."""
    require_pair(images, reference)
    values: list[float | None] = []
    for start in range(0, len(images), IMAGES_AT_ONCE):
        some, others = (batch[start : start + IMAGES_AT_ONCE].to(device) for batch in (images, reference))
        values += distances(network, some, others, least_side).tolist()
    return values


def distances(network: nn.Module, images: Tensor, reference: Tensor, least_side: int) -> Tensor:
    """Return the same of a few pairs, on the device of the network."""
    return network(*(enlarged(as_rgb(to_signed(batch)), least_side) for batch in (images, reference))).flatten()


def enlarged(images: Tensor, least_side: int) -> Tensor:
    """Return float images [N, C, H, W] with a shorter side of at least ``least_side``, at the same aspect ratio."""
    height, width = images.shape[-2:]
    if min(height, width) >= least_side:
        return images
    # Integers: a float factor could leave the shorter side a pixel short.
    size = [-(-side * least_side // min(height, width)) for side in (height, width)]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def load_network(backbone: str, path: Path) -> nn.Module:
    """Return torchmetrics' network, its backbone from torchvision's file at ``path``."""
    network = empty_network(backbone)
    published = torch.load(path, map_location="cpu", weights_only=True)
    state = {name: published[_SLICE.sub("features.", name, count=1)] for name in network.net.state_dict()}
    network.net.load_state_dict(state)
    return network


def empty_network(backbone: str, heads: bool = True) -> Any:
    """Return torchmetrics' network without the weights of its backbone, and perhaps without those of its linear heads,
    which come with it."""
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    # Its public class downloads the backbone by itself, without a check of what is in the cache.
    return _NoTrainLpips(pretrained=heads, net=backbone, pnet_rand=True)  # type: ignore[arg-type]


def _hash(backbone: str, network: nn.Module) -> str:
    """sha256 over the digest of the backbone's file and the linear heads, which come with torchmetrics."""
    heads = hashlib.sha256(backbone.encode())
    for name, value in network.get_submodule("lins").state_dict().items():
        heads.update(name.encode())
        heads.update(value.cpu().numpy().tobytes())
    return heads.hexdigest()
