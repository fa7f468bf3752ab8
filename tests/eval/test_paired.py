import numpy as np
import pytest
import skimage.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmqbench.config.metric_facts import OWN_METRICS
from dmqbench.data.images import ImageError
from dmqbench.eval.paired import PSNR, SSIM, mse, psnr, ssim, summarise
from dmqbench.eval.protocol import MetricUnavailable, Protocol


def noisy_pair(n: int, channels: int, size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth images and the same with noise of a different strength in each."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 4, 4, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    strength = torch.linspace(1, 60, n)[:, None, None, None]
    noisy = smooth + strength * torch.randn(smooth.shape, generator=generator)
    return noisy.clamp(0, 255).to(torch.uint8), smooth.to(torch.uint8)


def protocol(metric: str, n: int, **changes) -> Protocol:
    shared = {
        "tool": "dmqbench",
        "rounding": "uint8",
        "seed": 0,
        "sampler": "ddim",
        "timesteps": (1,),
        "eta": 0.0,
    }
    rest = {"guidance": 1.0, "chunk": 32, "engine": "simulate", "version": OWN_METRICS[metric].version}
    return Protocol(metric=metric, n=n, **shared | rest | changes)


@pytest.mark.parametrize(("channels", "size"), [(1, 16), (3, 24)], ids=["grey", "rgb"])
def test_psnr_is_scikit_images_for_each_image(channels, size):
    images, reference = noisy_pair(8, channels, size)
    expected = [
        skimage.metrics.peak_signal_noise_ratio(theirs.numpy(), ours.numpy(), data_range=255)
        for ours, theirs in zip(images, reference, strict=True)
    ]
    np.testing.assert_allclose(psnr(images, reference), expected, atol=1e-5)


@pytest.mark.parametrize(("n", "channels", "size"), [(40, 1, 16), (4, 3, 24), (2, 1, 11)], ids=["grey", "rgb", "least"])
def test_ssim_is_scikit_images_for_each_image(n, channels, size):
    images, reference = noisy_pair(n, channels, size)
    expected = [
        skimage.metrics.structural_similarity(
            theirs.numpy() / 255,
            ours.numpy() / 255,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            channel_axis=0,
        )
        for ours, theirs in zip(images, reference, strict=True)
    ]
    np.testing.assert_allclose(ssim(images, reference), expected, atol=1e-5)


def test_ssim_of_too_small_images_is_unavailable():
    images, reference = noisy_pair(2, 1, 10)
    with pytest.raises(MetricUnavailable, match="11×11 or more, got 10×10"):
        ssim(images, reference)


def test_mse_is_the_plain_mean_of_squares():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, 4, 8, 8, generator=generator)
    expected = [np.mean((x.numpy().astype(float) - y.numpy().astype(float)) ** 2) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(mse(a, b), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("states", "said"),
    [
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), "float32"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.float16), "float32"),
        (torch.full((2, 1, 4, 4), float("nan")), "NaN"),
        (torch.zeros(3, 1, 4, 4), "do not pair"),
        (torch.zeros(0, 1, 4, 4), "float32 N"),
    ],
    ids=["uint8", "half", "nan", "count", "empty"],
)
def test_states_that_do_not_compare_are_refused_in_one_line(states, said):
    with pytest.raises(ValueError, match=said) as error:
        mse(states, torch.zeros(2, 1, 4, 4))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_floats_are_refused_whatever_their_range(metric):
    images = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
    for wrong in (torch.rand(2, 1, 16, 16), torch.rand(2, 1, 16, 16) * 2 - 1):
        with pytest.raises(ImageError, match="expected uint8"):
            metric(wrong, images)
        with pytest.raises(ImageError, match="reference: expected uint8"):
            metric(images, wrong)


def test_identical_images():
    images, reference = noisy_pair(3, 1, 16)
    images[1] = reference[1]
    assert [value is None for value in psnr(images, reference)] == [False, True, False]
    assert ssim(images, reference)[1] == pytest.approx(1.0)
    assert mse(images.float(), reference.float())[1] == 0


@given(st.integers(0, 1000), st.sampled_from([PSNR, SSIM]))
def test_image_metrics_are_symmetric_and_blind_to_batching(seed, image_metric):
    images, reference = noisy_pair(4, 1, 12, seed)
    metric = image_metric.per_image
    together = metric(images, reference)
    assert together == pytest.approx(metric(reference, images), abs=1e-9)
    alone = [metric(images[i : i + 1], reference[i : i + 1])[0] for i in range(4)]
    assert together == pytest.approx(alone, abs=1e-9)


def test_the_mean_is_over_images_not_over_pooled_pixels():
    images, reference = noisy_pair(8, 1, 16)
    values = psnr(images, reference)
    measurement = summarise(PSNR, values, protocol("psnr", 8))
    pooled = skimage.metrics.peak_signal_noise_ratio(reference.numpy(), images.numpy(), data_range=255)
    assert measurement.value == pytest.approx(np.mean(values))
    assert abs(measurement.value - pooled) > 1
    assert measurement.ci95 is not None
    assert measurement.ci95[0] < measurement.value < measurement.ci95[1]
    assert (measurement.n, measurement.higher_is_better, measurement.exact) == (8, True, False)


def test_identical_pairs_are_counted_not_averaged():
    measurement = summarise(PSNR, [30.0, None, 32.0, None], protocol("psnr", 4))
    assert (measurement.value, measurement.n, measurement.extra) == (31.0, 4, {"identical": 2})
    exact = summarise(PSNR, [None, None], protocol("psnr", 2))
    assert (exact.value, exact.ci95, exact.exact, exact.extra) == (None, None, True, {"identical": 2})


def test_one_image_has_no_interval():
    assert summarise(PSNR, [30.0], protocol("psnr", 1)).ci95 is None


@pytest.mark.parametrize("wrong", [protocol("ssim", 2), protocol("psnr", 3), protocol("psnr", 2, version=99)])
def test_a_protocol_of_something_else_is_refused(wrong):
    with pytest.raises(ValueError, match=r"psnr/\d+ over 2 pairs cannot carry"):
        summarise(PSNR, [30.0, 31.0], wrong)
