"""Bytes that measuring takes, told from sizes alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

from dmqbench.config.metric_facts import OWN_METRICS
from dmqbench.config.schema import MetricsConfig
from dmqbench.eval.features import IMAGES_AT_ONCE as FEATURES_AT_ONCE
from dmqbench.eval.inception import ADM, POOL_DIMENSION, SPATIAL_DIMENSION
from dmqbench.eval.lpips import IMAGES_AT_ONCE as DISTANCES_AT_ONCE
from dmqbench.eval.lpips import LEAST_SIDE, distances, empty_network
from dmqbench.eval.paired import IMAGES_AT_ONCE, SSIM_WINDOW, ssim_step
from dmqbench.eval.weights import LPIPS_BACKBONE_FILES, inception_file
from dmqbench.models.live_memory import network_bytes, peak_of

MIB = 2**20

OF_PSNR, OF_SSIM, OF_MSE = 12, 219, 24
"""Of a value of an image or a state, while those of a batch are compared: copies that are wider, and what they make."""
OF_WINDOWS = 5 * SSIM_WINDOW**2 * torch.float64.itemsize
"""Of a pixel, while a channel of the five maps of ``ssim`` is smoothed: torch unfolds every window of doubles."""
OF_INCEPTION = 14.2 * MIB
"""Of an image in the network: its enlarged copy, and the most that layers hold at once."""
OF_KERNEL = 100 * MIB
OF_NEIGHBOURS = 175 * MIB
"""Of a block of the kernel of ``kid``, and of distances."""
SQUARES, SQUARES_OF_PAIRS = 13.2, 19.5
"""Matrices of d × d values that a Fréchet distance holds; those of ``fid2fp32`` lose rows on both sides."""


@dataclass(frozen=True)
class Sizes:
    """Of what is measured: samples and pairs, and the shapes of an image and of the sampler's state."""

    samples: int
    pairs: int
    image: tuple[int, ...]
    state: tuple[int, ...]

    @property
    def sets(self) -> int:
        """Bytes of the samples, those of full precision, and the floors: images in bytes, and states in float32."""
        return (3 * self.samples + self.pairs) * (prod(self.image) + prod(self.state) * torch.float32.itemsize)


def statistics_bytes(names: Sequence[str], sizes: Sizes) -> int:
    """Return what the metrics ``names`` hold at most on the host, networks apart; those of plug-ins are not known."""
    return int(max((_statistic(name, sizes) for name in names), default=0))


def _statistic(name: str, sizes: Sizes) -> float:
    values, pairs = prod(sizes.image), min(sizes.pairs, IMAGES_AT_ONCE)
    pixels = prod(sizes.image[1:])
    at_once = min(pairs, ssim_step(pixels))
    maps = torch.float64.itemsize * values
    dimension = SPATIAL_DIMENSION if name == "sfid" else POOL_DIMENSION
    features = 2 * sizes.samples * dimension * torch.float32.itemsize
    found = {
        "psnr": OF_PSNR * pairs * values,
        "psnr_truth": OF_PSNR * pairs * values,
        "ssim": max((OF_SSIM * values + OF_WINDOWS * pixels) * at_once + maps * (pairs - at_once), 2 * maps * pairs),
        "mse": OF_MSE * sizes.pairs * prod(sizes.state),
        "kid": features + OF_KERNEL,
        "precision": features + OF_NEIGHBOURS,
        "recall": features + OF_NEIGHBOURS,
        "fid": features + _frechet(sizes.samples, dimension, SQUARES),
        "sfid": features + _frechet(sizes.samples, dimension, SQUARES),
        "fid2fp32": features + _frechet(sizes.samples, dimension, SQUARES_OF_PAIRS),
    }
    return found.get(name, 0)


def _frechet(samples: int, dimension: int, squares: float) -> float:
    values = max(2 * samples * dimension + 2 * dimension**2, squares * dimension**2)
    return torch.float64.itemsize * values


def networks_bytes(settings: MetricsConfig, sizes: Sizes) -> tuple[int, int]:
    """Return the bytes of the feature networks of the metrics, which stay once they are read, and the most that one of
    them computes with; that of ``clip`` is not known."""
    asked = {facts.features for name in settings.names if (facts := OWN_METRICS.get(name)) is not None}
    protocols = {settings.inception if features == "inception" else ADM for features in asked & {"inception", ADM}}
    held = sum(inception_file(protocol).size_bytes for protocol in protocols)
    computing = OF_INCEPTION * min(sizes.samples, FEATURES_AT_ONCE) if protocols else 0
    if "lpips" in settings.names:
        with torch.device("meta"):
            network = empty_network(settings.lpips, heads=False).to("meta")
        held += network_bytes(network)
        pairs = torch.empty(min(sizes.pairs, DISTANCES_AT_ONCE), *sizes.image, dtype=torch.uint8, device="meta")
        with torch.no_grad():
            of_pairs = peak_of(lambda: distances(network, pairs, pairs, LEAST_SIDE[settings.lpips]))
        # What is read lies beside what it is copied into.
        computing = max(computing, of_pairs, LPIPS_BACKBONE_FILES[settings.lpips].size_bytes)
    return held, int(computing)
