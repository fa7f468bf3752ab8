"""Images made elsewhere through the real command: every way in, every metric, and what is missing is said.

The oracles are numpy, skimage, and the same pixels in another kind of file.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from e2e.commands import dmqbench, result_folder
from PIL import Image
from skimage.metrics import structural_similarity
from standins import stand_in_folder
from tiny import save_pipeline, smallest_unet

from dmqbench.config.metric_facts import OWN_METRICS
from dmqbench.eval import inception

COUNT, SIDE = 128, 16
QUICK = ("task=evaluate", "tracker.mode=disabled", "sampler.steps=2", f"metrics.samples={COUNT}", "metrics.pairs=16")


def pictures(channels: int, seed: int = 0, count: int = COUNT) -> np.ndarray:
    """uint8 [N, H, W, C]"""
    waves = np.random.default_rng(seed).uniform(1, 9, (count, 1, 1, channels))
    y, x = np.mgrid[:SIDE, :SIDE]
    return (127 + 120 * np.sin((x * 0.3 + y * 0.2)[None, ..., None] * waves)).astype(np.uint8)


def noisy(images: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(7).integers(-12, 13, images.shape)
    return np.clip(images.astype(int) + noise, 0, 255).astype(np.uint8)


def as_npz(path: Path, images: np.ndarray) -> Path:
    np.savez(path.with_suffix(".npz"), images)
    return path.with_suffix(".npz")


def as_folder(path: Path, images: np.ndarray, suffix: str = "png") -> Path:
    path.mkdir(exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image.squeeze()).save(path / f"{number}.{suffix}")
    return path


KINDS: dict[str, Callable[[Path, np.ndarray], Path]] = {"npz": as_npz, "folder": as_folder}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return stand_in_folder(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def small_inception(monkeypatch):
    """Inception of eight features: its own size takes minutes, and these tests are about what comes before it."""
    matrix = torch.randn(27, 8, generator=torch.Generator().manual_seed(0))

    def forward(images: torch.Tensor) -> dict[str, torch.Tensor]:
        features = F.adaptive_avg_pool2d(images.float() / 255, 3).flatten(1) @ matrix
        return {"pool": features, "spatial": features.square(), "logits": features}

    monkeypatch.setattr(inception, "adm_network", lambda *_: forward)
    monkeypatch.setattr(inception, "clean_fid", lambda *_: forward)
    inception._extractor.cache_clear()
    yield
    inception._extractor.cache_clear()


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[int, Path]:
    """Channels → a model that makes such images."""
    networks = {n: smallest_unet(in_channels=n, out_channels=n, size=SIDE, class_entries=None) for n in (1, 3)}
    return {n: save_pipeline(tmp_path_factory.mktemp(f"model{n}"), network) for n, network in networks.items()}


def expected_pairs(images: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    errors = ((images.astype(float) - reference) ** 2).mean((1, 2, 3))
    similar = [
        structural_similarity(a, b, gaussian_weights=True, use_sample_covariance=False, sigma=1.5, channel_axis=-1)
        for a, b in zip(images, reference, strict=True)
    ]
    return {"psnr": float((10 * np.log10(255**2 / errors)).mean()), "ssim": float(np.mean(similar))}


@pytest.mark.parametrize("paired", [True, False], ids=["paired", "alone"])
@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "colour"])
def test_every_metric_of_a_folder_is_that_of_the_same_pixels_as_npz(
    tmp_path, weights, models, small_inception, channels, paired
):
    fp = pictures(channels)
    images = noisy(fp)
    (tmp_path / "prompts.txt").write_text("a wave\n" * COUNT)
    found = {}
    for kind, write in KINDS.items():
        inputs = {name: write(tmp_path / name, part) for name, part in (("fp", fp), ("q", images))}
        given = [f"evaluate.samples={inputs['q']}", f"evaluate.prompts={tmp_path / 'prompts.txt'}"]
        given += [f"evaluate.fp_samples={inputs['fp']}"] if paired else []
        given += ["model=local", f"model.path={models[channels]}", f"dataset.reference={inputs['fp']}"]
        status, output, errors = dmqbench(
            tmp_path / f"runs-{kind}",
            *QUICK,
            *given,
            f"metrics.weights={weights}",
            f"metrics.names=[{','.join(OWN_METRICS)}]",
        )
        assert status == 0, errors
        result = json.loads((result_folder(output) / "result.json").read_text())
        found[kind] = ({name: one["value"] for name, one in result["metrics"].items()}, result["unavailable"])
    assert found["folder"] == found["npz"]
    values, unavailable = found["folder"]
    of_sets = ("fid", "sfid", "fid2fp32", "kid", "precision", "recall", "clip")
    assert {f"stand-in-{name}" for name in of_sets} <= values.keys()
    assert "needs at least 1000 samples" in unavailable["is"]
    assert "needs at least 2560 samples" in unavailable["fd_effnet"]
    if channels == 1:
        assert {"fd_digits", "fd2fp32_digits"} <= values.keys()
    else:
        assert "takes images of 1×16×16" in unavailable["fd_digits"]
    if not paired:
        assert all("share the noise" in unavailable[name] for name in ("psnr", "ssim", "lpips"))
        return
    assert "stand-in-lpips" in values
    for name, value in expected_pairs(images[:16], fp[:16]).items():
        assert values[name] == pytest.approx(value, abs=2e-3), name


def test_what_is_missing_in_a_folder_is_one_line_and_status_2(tmp_path):
    fp, images = as_folder(tmp_path / "fp", pictures(3, count=5)), as_folder(tmp_path / "q", pictures(3, 1, 5))
    given = (*QUICK, f"evaluate.samples={images}", f"evaluate.fp_samples={fp}", "metrics.names=[psnr]")
    (images / ".#0.png").symlink_to("me@host.1:2")  # of an open editor
    assert dmqbench(tmp_path / "runs", *given)[0] == 0
    (images / "5.png").symlink_to("/nowhere/5.png")
    status, output, errors = dmqbench(tmp_path / "runs", *given)
    assert (status, output) == (2, "") and "5.png: a link to nothing" in errors and errors.count("\n") == 1
    (images / "5.png").unlink()
    (images / "4.png").write_bytes((images / "4.png").read_bytes()[:-40])
    status, output, errors = dmqbench(tmp_path / "runs", *given, "task=plan")
    assert status == 2 and errors.count("\n") == 1


def test_sets_of_other_sizes_say_how_many_are_pairs(tmp_path):
    fp, images = as_npz(tmp_path / "fp", pictures(3, count=5)), as_npz(tmp_path / "q", pictures(3, 1, 4))
    given = (f"evaluate.samples={images}", f"evaluate.fp_samples={fp}", "metrics.names=[psnr]")
    status, output, errors = dmqbench(tmp_path / "runs", *QUICK, *given)
    assert status == 0, errors
    assert "4 images and 5 of full precision: the first 4 of both are pairs" in " ".join(output.split())
