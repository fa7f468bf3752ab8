"""The memory that measuring is thought to take, against the tensors that live while it measures."""

from math import prod

import pytest
import torch
import torchvision

from dmqbench.config.schema import MetricsConfig
from dmqbench.eval import memory
from dmqbench.eval.frechet import frechet_estimate
from dmqbench.eval.inception import INPUT_SIZE
from dmqbench.eval.kid import kid_estimate
from dmqbench.eval.lpips import LEAST_SIDE, empty_network, lpips
from dmqbench.eval.memory import Sizes, statistics_bytes
from dmqbench.eval.paired import PIXELS_AT_ONCE, mse, psnr, ssim
from dmqbench.eval.precision_recall import precision_recall_estimates
from dmqbench.models.live_memory import network_bytes, peak_of

CLOSE = 0.03


@pytest.mark.parametrize("shape", [(40, 3, 48, 48), (5, 1, 96, 80)])
def test_metrics_of_pairs(shape):
    images, others = (torch.randint(0, 256, shape, dtype=torch.uint8) for _ in range(2))
    sizes = Sizes(len(images), len(images), shape[1:], shape[1:])
    found = {"psnr": lambda: psnr(images, others), "ssim": lambda: ssim(images, others)}
    states = images.float(), others.float()
    found["mse"] = lambda: mse(*states)
    inside = min(shape[0], 32) * prod(shape[2:]) * memory.OF_WINDOWS  # of an operation: no tensor
    for name, compute in found.items():
        told = statistics_bytes([name], sizes) - inside * (name == "ssim")
        assert told == pytest.approx(peak_of(compute), rel=0.1), name


def test_similarity_of_large_images_is_found_for_a_few_at_once(monkeypatch):
    images = torch.randint(0, 256, (35, 3, 40, 32), dtype=torch.uint8)
    others = (images.int() + torch.randint(-9, 9, images.shape)).clamp(0, 255).to(torch.uint8)
    together = peak_of(lambda: ssim(images, others)), ssim(images, others)
    monkeypatch.setattr("dmqbench.eval.paired.PIXELS_AT_ONCE", 3 * prod(images.shape[2:]))
    assert ssim(images, others) == together[1]
    assert peak_of(lambda: ssim(images, others)) < 0.25 * together[0]
    assert images[:, 0].numel() < PIXELS_AT_ONCE


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("rows", [2, 16])
def test_distances_of_gaussians(paired, rows):
    features, others = (torch.randn(rows * 64, 64) for _ in range(2))
    squares = memory.SQUARES_OF_PAIRS if paired else memory.SQUARES
    found = peak_of(lambda: frechet_estimate(features, others, paired))
    assert memory._frechet(len(features), 64, squares) == pytest.approx(found, rel=CLOSE)


def test_blocks_of_kernels_and_of_neighbours():
    features, others = (torch.randn(4500, 16) for _ in range(2))
    assert peak_of(lambda: kid_estimate(features, others)) == pytest.approx(memory.OF_KERNEL, rel=CLOSE)
    found = peak_of(lambda: precision_recall_estimates(features, others, False))
    assert found == pytest.approx(memory.OF_NEIGHBOURS, rel=0.1)


def test_an_image_in_inception():
    """As torchvision has the network."""
    with torch.device("meta"):
        network = torchvision.models.inception_v3(weights=None, init_weights=False, aux_logits=False).eval()
        images = torch.empty(8, 3, INPUT_SIZE, INPUT_SIZE)
    with torch.no_grad():
        found = peak_of(lambda: network(images)) + images.nbytes
    assert pytest.approx(found, rel=CLOSE) == 8 * memory.OF_INCEPTION


@pytest.mark.filterwarnings("ignore:The parameter 'pretrained'", "ignore:Arguments other than a weight enum")
def test_pairs_in_lpips():
    settings = MetricsConfig(names=("lpips", "psnr"), pairs=3, samples=3, lpips="squeeze")
    network, images = empty_network("squeeze"), torch.randint(0, 256, (3, 3, 72, 64), dtype=torch.uint8)
    with torch.no_grad():
        found = peak_of(lambda: lpips(images, images, network, LEAST_SIDE["squeeze"], "cpu"))
    held, computing = memory.networks_bytes(settings, Sizes(3, 3, images.shape[1:], (3, 8, 8)))
    assert held == network_bytes(network)
    assert computing == pytest.approx(found, rel=CLOSE)
