"""Inception-v3 as each evaluation protocol uses it: four ways to prepare an image, and two programs to run it with.

The modes ``clean``, ``legacy_tensorflow`` and ``legacy_pytorch`` are clean-fid's (Parmar et al. 2022), with its own
functions; ``adm`` is that of the evaluation suite of Dhariwal and Nichol 2021, with torch-fidelity's port of the
TensorFlow network. Values of different modes are different quantities.
"""

import io
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from dmqbench.config.names import STAND_IN
from dmqbench.config.schema import MetricsConfig
from dmqbench.eval.features import Extractor, Features
from dmqbench.eval.resizing import as_rgb, each_resized
from dmqbench.eval.weights import Located, inception_file, locate

ADM = "adm"
INCEPTION = "inception-"
"""How the names of these networks begin; the protocol follows."""

POOL_DIMENSION = 2048
SPATIAL_CHANNELS = 7
SPATIAL_DIMENSION = SPATIAL_CHANNELS * 17 * 17
INPUT_SIZE = 299

STAND_IN_INPUT_SIZE = 75
"""The least that the network accepts: with made-up weights only speed matters."""

_RESIZE = {
    "clean": "pil-bicubic-float",
    "legacy_tensorflow": "tf1-bilinear-in-network",
    "legacy_pytorch": "torch-bilinear",
    ADM: "tf1-bilinear",
}

Forward = Callable[[Tensor], Features]


def inception_extractor(settings: MetricsConfig, device: str, protocol: str | None = None) -> Extractor:
    """Return the network of ``protocol``, one of ``INCEPTIONS``, or else of ``metrics.inception``.

    All give "pool" [N, 2048]; ``adm`` gives "logits" [N, 1008], without the bias of the last layer, and "spatial"
    [N, 2023] as well. ``MetricUnavailable`` if its weights are not to be had.
    """
    protocol = protocol or settings.inception
    return _extractor(protocol, locate(inception_file(protocol), settings), device)


@cache
def _extractor(protocol: str, located: Located, device: str) -> Extractor:
    size = STAND_IN_INPUT_SIZE if located.stand_in and protocol == ADM else INPUT_SIZE
    forward = adm_network(located.path, device, size) if protocol == ADM else clean_fid(protocol, located.path, device)
    return Extractor(
        name=f"{STAND_IN if located.stand_in else ''}{INCEPTION}{protocol}",
        hash=located.sha256,
        tool=f"{'torch-fidelity' if protocol == ADM else 'clean-fid'}/{protocol}",
        network=lambda images: forward(as_rgb(images)),
        outputs=("pool", "spatial", "logits") if protocol == ADM else ("pool",),
        resize=f"{_RESIZE[protocol]}-{size}+grey-to-rgb",
    )


def clean_fid(mode: str, path: Path, device: str) -> Forward:
    """Return clean-fid's feature function of ``mode``, with the weights at ``path``, for uint8 images [N, 3, H, W]."""
    network = _clean_fid_network(mode, path).to(device)
    resize = _clean_fid_resizer(mode)

    def forward(images: Tensor) -> Features:
        return {"pool": network(resize(images).to(device))}

    return forward


def _clean_fid_network(mode: str, path: Path) -> nn.Module:
    """The network [N, 3, H, W] in 0..255 → [N, 2048]."""
    with warnings.catch_warnings():  # of what clean-fid uses and torch deprecates, about which a user can do nothing
        warnings.simplefilter("ignore")
        if mode == "legacy_pytorch":
            return _Unit255(_pytorch_inception(path)).eval()
        from cleanfid.inception_torchscript import InceptionV3W

        return InceptionV3W(str(path.parent), download=False, resize_inside=mode == "legacy_tensorflow").eval()


class _Unit255(nn.Module):
    """pytorch-fid's network, which takes images in [0, 1], for images in 0..255."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images / 255)[0].flatten(1)


def _pytorch_inception(path: Path) -> nn.Module:
    """clean-fid's copy of pytorch-fid's network; it knows no other source of weights than its own download."""
    from cleanfid import inception_pytorch

    state = torch.load(path, map_location="cpu", weights_only=True)
    with mock.patch.object(inception_pytorch, "load_state_dict_from_url", lambda *_, **__: state):
        return inception_pytorch.InceptionV3(output_blocks=[3], resize_input=False)


def _clean_fid_resizer(mode: str) -> Callable[[Tensor], Tensor]:
    """What clean-fid's data set does to an image: uint8 [N, 3, H, W] → float32 [N, 3, H', W'] in 0..255."""
    if mode == "legacy_tensorflow":
        # Its ToTensor divides, then it multiplies: not always the same integers in float32.
        return lambda images: images.float().div(255) * 255
    from cleanfid.resize import build_resizer

    with warnings.catch_warnings():  # building one silences the warnings of the whole process
        return each_resized(build_resizer(mode))


def adm_network(path: Path, device: str, input_size: int = INPUT_SIZE) -> Forward:
    """Return the features of the ADM evaluation suite, with the weights at ``path``, for uint8 images [N, 3, H, W].

    "spatial" is what its graph calls ``mixed_6/conv``, the first branch of that block after its ReLU: seven of its
    channels at all 17×17 places, places before channels, as the suite flattens them.
    """
    network = _torch_fidelity_network(path).to(device)
    network.INPUT_IMAGE_SIZE = input_size
    seen: dict[str, Tensor] = {}

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        seen["spatial"] = output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)

    network.get_submodule("Mixed_6d.branch1x1").register_forward_hook(keep)

    def forward(images: Tensor) -> Mapping[str, Tensor]:
        pool, logits = network(images.to(device))
        return {"pool": pool, "spatial": seen.pop("spatial"), "logits": logits}

    return forward


def _torch_fidelity_network(path: Path) -> Any:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # It unpickles without restraint whatever it is given: what it is given is written here, from tensors.
    checked = io.BytesIO()
    torch.save(torch.load(path, map_location="cpu", weights_only=True), checked)
    checked.seek(0)
    return FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=checked)
