"""How much of the bare libraries' speed is left when features and metrics go through this project.

Weights are random: speed does not depend on them. One thread; images per second, taken in turns.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cleanfid.fid import get_batch_features
from cleanfid.resize import make_resizer
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from benchmarks.common import interleaved_seconds
from dmqbench.config.schema import MetricsConfig
from dmqbench.eval import inception, lpips
from dmqbench.eval.features import Extractor, extract
from dmqbench.eval.paired import ssim

IMAGES = 16
SIDE = 256
ROUNDS = 3


class Features(nn.Module):
    """In the place of Inception: cheap, so that what surrounds it is what is timed."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images, 8).flatten(1)


def main() -> None:
    """Print one line per metric: images per second here and in the bare library."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    shape = (2, IMAGES, 3, SIDE, SIDE)
    images, reference = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    print(f"| {IMAGES} images of {SIDE}×{SIDE} | here, images/s | bare library, images/s | here / bare |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        cases: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "clean-fid: resize and batch, a trivial network": clean_fid_case(images),
            "torch-fidelity: Inception of the ADM suite": adm_case(images, Path(folder)),
            "torchmetrics: LPIPS (squeeze)": lpips_case(images, reference, Path(folder)),
            "torchmetrics: SSIM": ssim_case(images, reference),
        }
        for name, (here, bare) in cases.items():
            seconds = interleaved_seconds({"here": here, "bare": bare}, ROUNDS)
            speed = {key: IMAGES / value for key, value in seconds.items()}
            print(f"| {name} | {speed['here']:.1f} | {speed['bare']:.1f} | {speed['here'] / speed['bare']:.2f} |")


def clean_fid_case(images: Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    """As clean-fid computes features of a folder, image by image through its resizer, without its reading of files."""
    network, resize = Features(), inception._clean_fid_resizer("clean")
    extractor = Extractor("benchmark", "none", "clean-fid", lambda batch: {"pool": network(resize(batch))})
    bare_resize = make_resizer("PIL", False, "bicubic", (299, 299))

    def bare() -> None:
        for batch in images.split(16):
            resized = [bare_resize(np.asarray(image.permute(1, 2, 0))) for image in batch]
            stacked = torch.stack([torch.from_numpy(image.transpose(2, 0, 1)) for image in resized])
            get_batch_features(stacked, network, torch.device("cpu"))

    return partial(extract, extractor, images), bare


def adm_case(images: Tensor, folder: Path) -> tuple[Callable[[], object], Callable[[], object]]:
    """The real architecture."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = folder / "inception.pth"
    torch.save(random_inception(), path)
    forward = inception.adm_network(path, "cpu")
    extractor = Extractor("benchmark", "none", "torch-fidelity", forward, ("pool", "spatial", "logits"))
    bare = FeatureExtractorInceptionV3(
        "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
    )

    @torch.no_grad()
    def run_bare() -> None:
        bare(images)

    return partial(extract, extractor, images), run_bare


def random_inception() -> dict[str, Tensor]:
    """A state of torch-fidelity's Inception."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
            """Keep the weights that it began with."""

    with tempfile.NamedTemporaryFile(suffix=".pth") as nothing:
        torch.save({}, nothing.name)
        return Unloaded("inception", ["2048"], feature_extractor_weights_path=nothing.name).state_dict()


def lpips_case(images: Tensor, reference: Tensor, folder: Path) -> tuple[Callable[[], object], Callable[[], object]]:
    """With one random backbone on both sides."""
    import torchvision

    backbone = torchvision.models.squeezenet1_1(weights=None)
    path = folder / lpips.LPIPS_BACKBONE_FILES["squeeze"].name
    torch.save(backbone.state_dict(), path)
    (folder / "STAND-IN").touch()
    settings = MetricsConfig(names=(), pairs=1, samples=1, weights=str(folder), lpips="squeeze", download=False)
    metric = lpips.lpips_metric(settings, "cpu")
    network = lpips.load_network("squeeze", path)

    @torch.no_grad()
    def run_bare() -> None:
        for ours, theirs in zip(images.split(16), reference.split(16), strict=True):
            network(ours.float() / 127.5 - 1, theirs.float() / 127.5 - 1)

    @torch.no_grad()
    def here() -> None:
        metric.per_image(images, reference)

    return here, run_bare


def ssim_case(images: Tensor, reference: Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    """Both in float64."""

    def bare() -> None:
        for ours, theirs in zip(images.split(16), reference.split(16), strict=True):
            structural_similarity_index_measure(
                ours.double() / 255, theirs.double() / 255, data_range=1.0, reduction="none", return_full_image=True
            )

    return partial(ssim, images, reference), bare


if __name__ == "__main__":
    main()
