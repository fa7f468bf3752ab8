"""Metrics that compare each sample with the full-precision sample of the same seed, the ground truth or its prompt.

Range, reduction and identical images are fixed here, once: a metric is one ``PairedMetric`` with a function
from two batches to one number per pair; register it in ``registry.py`` and it is computed, reported and compared.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dmqbench.config.plugins import metrics
from dmqbench.data.images import require_pair, to_float01
from dmqbench.eval.measurement import Measurement
from dmqbench.eval.protocol import FeatureNetwork, MetricUnavailable, Protocol
from dmqbench.eval.statistics import bootstrap_mean

PerImage = list[float | None]

SSIM_WINDOW = 11
_SSIM_SIGMA = 1.5
IMAGES_AT_ONCE = 32
"""Whose means are taken together: those of an image alone are added in another order by several threads."""
PIXELS_AT_ONCE = 2**17
"""Of images whose structural similarity is found together, on which no number depends: torch unfolds every window."""


@dataclass(frozen=True)
class PairedMetric:
    """``per_image(samples, reference)`` gives one number per pair, ``None`` where it is infinite.

    ``operand`` says what it compares: "images" (uint8 [N, C, H, W]) or "state" (the sampler's final state,
    float32 [N, ...], before decoding); ``against``: with full precision, with the ground truth, or images with their
    prompts, N strings.
    """

    name: str
    higher_is_better: bool
    operand: Literal["images", "state"]
    tool: str
    per_image: Callable[[Tensor, Any], PerImage]
    network: FeatureNetwork | None = None
    against: Literal["fp", "truth", "prompts"] = "fp"

    @property
    def version(self) -> int:
        return metrics()[self.name].version

    @property
    def rounding(self) -> str:
        """What the values were rounded to before they were compared, as it stands in the protocol."""
        return "uint8" if self.operand == "images" else "float32"


def psnr(images: Tensor, reference: Tensor) -> PerImage:
    """Return 10 log10(255² / MSE) in dB of each pair of uint8 images [N, C, H, W], ``None`` if identical."""
    require_pair(images, reference)
    pairs = zip(images.split(IMAGES_AT_ONCE), reference.split(IMAGES_AT_ONCE), strict=True)
    squared = ((some.to(torch.int32) - others.to(torch.int32)).square() for some, others in pairs)
    errors = torch.cat([part.flatten(1).double().mean(dim=1) for part in squared])  # of integers: exact
    decibels = 10 * torch.log10(255.0**2 / errors)
    return [None if math.isinf(value) else value for value in decibels.tolist()]


def ssim(images: Tensor, reference: Tensor) -> PerImage:
    """Return the structural similarity of each pair of uint8 images, in [-1, 1], 1 where identical.

    Wang et al. 2004, eq. 13, with their Gaussian window (σ 1.5, 11×11) and constants, in float64. The mean is
    theirs, over the pixels whose window lies inside the image; torchmetrics' own mean takes in borders that
    it reflects, which is another number on small images. ``MetricUnavailable`` for images smaller than the
    window.
    """
    require_pair(images, reference)
    height, width = images.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        raise MetricUnavailable(f"ssim needs images of {SSIM_WINDOW}×{SSIM_WINDOW} or more, got {height}×{width}")
    step = ssim_step(height * width)
    values: list[float | None] = []
    for together in zip(images.split(IMAGES_AT_ONCE), reference.split(IMAGES_AT_ONCE), strict=True):
        portions = zip(*(batch.split(step) for batch in together), strict=True)
        similarity = torch.cat([_similarity(*portion) for portion in portions])
        values += similarity.flatten(1).mean(dim=1).tolist()
    return values


def ssim_step(pixels: int) -> int:
    """Return how many images of so many pixels are compared at once."""
    return min(IMAGES_AT_ONCE, max(1, PIXELS_AT_ONCE // pixels))


def _similarity(images: Tensor, reference: Tensor) -> Tensor:
    """The map of structural similarity, where the window lies inside the image."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    _, similarity = structural_similarity_index_measure(
        to_float01(images, torch.float64),
        to_float01(reference, torch.float64),
        gaussian_kernel=True,
        sigma=_SSIM_SIGMA,
        kernel_size=SSIM_WINDOW,
        data_range=1.0,
        reduction="none",
        return_full_image=True,
    )
    border = SSIM_WINDOW // 2
    return similarity[..., border:-border, border:-border]


def mse(states: Tensor, reference: Tensor) -> PerImage:
    """Return the mean squared error of each pair of final sampler states, float32 [N, ...]."""
    for what, batch in (("states", states), ("reference", reference)):
        if batch.dtype != torch.float32 or batch.ndim < 2 or batch.numel() == 0:
            raise ValueError(f"mse: {what} must be float32 N×..., got {batch.dtype} of shape {tuple(batch.shape)}")
        if not torch.isfinite(batch).all():
            raise ValueError(f"mse: {what} hold NaN or infinity")
    if states.shape != reference.shape:
        raise ValueError(f"mse: {tuple(states.shape)} and {tuple(reference.shape)} do not pair one to one")
    return (states.double() - reference.double()).square().flatten(1).mean(dim=1).tolist()


PSNR = PairedMetric("psnr", True, "images", "dmqbench", psnr)
SSIM = PairedMetric("ssim", True, "images", "torchmetrics-interior", ssim)
PSNR_TRUTH = PairedMetric("psnr_truth", True, "images", "dmqbench", psnr, against="truth")
MSE = PairedMetric("mse", False, "state", "dmqbench", mse)


def summarise(metric: PairedMetric, values: Sequence[float | None], protocol: Protocol) -> Measurement:
    """Return the mean over the pairs that have a number, with its bootstrap interval.

    Pairs without one are identical: they are counted in ``extra["identical"]``, not averaged. When all are,
    the value is ``None`` and the measurement exact. ``protocol`` must speak of this metric, version and
    number of pairs.
    """
    if (protocol.metric, protocol.version, protocol.n) != (metric.name, metric.version, len(values)):
        raise ValueError(
            f"{metric.name}/{metric.version} over {len(values)} pairs cannot carry the protocol of "
            f"{protocol.metric}/{protocol.version} over {protocol.n}"
        )
    numbers = [value for value in values if value is not None]
    return Measurement(
        value=sum(numbers) / len(numbers) if numbers else None,
        ci95=bootstrap_mean(numbers) if numbers else None,
        n=len(values),
        protocol=protocol.id,
        exact=not numbers,
        higher_is_better=metric.higher_is_better,
        extra={"identical": len(values) - len(numbers)} if len(numbers) < len(values) else {},
    )
