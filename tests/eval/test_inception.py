import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from standins import SPATIAL_DIMENSION, inception_state, stand_in_folder

from dmqbench.config.names import INCEPTIONS
from dmqbench.config.schema import MetricsConfig
from dmqbench.eval.extractors import extractor_for
from dmqbench.eval.features import extract
from dmqbench.eval.inception import (
    INPUT_SIZE,
    STAND_IN_INPUT_SIZE,
    adm_network,
    clean_fid,
    inception_extractor,
)
from dmqbench.eval.protocol import MetricUnavailable
from dmqbench.eval.resizing import as_rgb
from dmqbench.eval.weights import INCEPTION_STATE


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> MetricsConfig:
    folder = stand_in_folder(tmp_path_factory.mktemp("weights"), clip=False, backbones=())
    return MetricsConfig(names=("fid",), pairs=1, samples=1, weights=str(folder))


def some_images(n: int = 3, channels: int = 3, size: tuple[int, int] = (20, 24), seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, *size), dtype=torch.uint8, generator=generator)


def save_png(images: torch.Tensor, folder: Path) -> None:
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")


@pytest.mark.parametrize("mode", ["clean", "legacy_tensorflow"])
def test_features_are_those_of_clean_fid_over_a_folder_of_files(settings, tmp_path, mode):
    from cleanfid.fid import get_folder_features
    from cleanfid.inception_torchscript import InceptionV3W

    images = some_images()
    save_png(images, tmp_path)
    network = InceptionV3W(settings.weights, download=False, resize_inside=mode == "legacy_tensorflow")
    expected = get_folder_features(
        str(tmp_path), network, num_workers=0, batch_size=8, device=torch.device("cpu"), mode=mode, verbose=False
    )
    extractor = inception_extractor(replace(settings, inception=mode), "cpu")
    np.testing.assert_array_equal(extract(extractor, images)["pool"], expected)
    assert expected.std(axis=0).min() > 0


def test_modes_see_different_images(settings):
    images = some_images()
    clean, legacy = (
        extract(inception_extractor(replace(settings, inception=mode), "cpu"), images)["pool"]
        for mode in ("clean", "legacy_tensorflow")
    )
    assert (clean - legacy).abs().max() > 1e-3


def test_adm_spatial_features_are_places_times_seven_channels_of_the_first_branch(settings):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = Path(settings.weights) / INCEPTION_STATE.name
    images = some_images()
    features = adm_network(path, "cpu", STAND_IN_INPUT_SIZE)(images)
    network = FeatureExtractorInceptionV3("same", ["2048"], feature_extractor_weights_path=str(path))
    network.INPUT_IMAGE_SIZE = STAND_IN_INPUT_SIZE
    block = []
    network.Mixed_6d.register_forward_hook(lambda module, args, output: block.append(output))
    (pool,) = network(images)
    # The block's output begins with its first branch.
    expected = [[block[0][n, :7, i, j] for i in range(3) for j in range(3)] for n in range(len(images))]
    torch.testing.assert_close(features["spatial"], torch.stack([torch.cat(image) for image in expected]))
    torch.testing.assert_close(features["pool"], pool)
    torch.testing.assert_close(features["logits"], pool @ inception_state()["fc.weight"].T, rtol=1e-4, atol=1e-3)
    assert features["spatial"].shape[1] == SPATIAL_DIMENSION
    assert features["spatial"].std() > 0


def test_adm_network_is_the_one_of_pytorch_fid(settings):
    """Two programs, one state: the FID network of clean-fid agrees with that of torch-fidelity."""
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    path = Path(settings.weights) / INCEPTION_STATE.name
    images = some_images()
    size = (STAND_IN_INPUT_SIZE, STAND_IN_INPUT_SIZE)
    resized = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=size, align_corners=False)
    ours = adm_network(path, "cpu", STAND_IN_INPUT_SIZE)(images)["pool"]
    theirs = _pytorch_fid(path)(resized / 256)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def _pytorch_fid(path: Path):
    from dmqbench.eval.inception import _pytorch_inception

    network = _pytorch_inception(path).eval()
    return lambda images: network(images)[0].flatten(1)


def test_real_sizes(settings):
    """At 299×299: 17×17 places, and pytorch-fid's protocol agrees with ADM's where no resizing is needed."""
    path = Path(settings.weights) / INCEPTION_STATE.name
    images = some_images(2, size=(INPUT_SIZE, INPUT_SIZE))
    adm = adm_network(path, "cpu")(images)
    assert {name: tuple(value.shape[1:]) for name, value in adm.items()} == {
        "pool": (2048,),
        "spatial": (2023,),
        "logits": (1008,),
    }
    legacy = clean_fid("legacy_pytorch", path, "cpu")(images)["pool"]
    # One scales 0..255 to [-1, 1], the other by 1/128: the same to a part in 128.
    assert (legacy - adm["pool"]).norm() / adm["pool"].norm() < 0.03


def test_legacy_pytorch_resizes_and_scales_as_clean_fid_does(settings, tmp_path, monkeypatch):
    import cleanfid.inception_pytorch
    from cleanfid.fid import get_folder_features

    class Small(torch.nn.Module):
        def __init__(self, output_blocks, resize_input):
            super().__init__()
            assert (output_blocks, resize_input) == ([3], False)

        def forward(self, images):
            return [torch.nn.functional.avg_pool2d(images[:, :1], 9).flatten(1)[:, :, None, None]]

    monkeypatch.setattr(cleanfid.inception_pytorch, "InceptionV3", Small)
    images = some_images()
    save_png(images, tmp_path)
    expected = get_folder_features(
        str(tmp_path),
        lambda batch: Small([3], False)(batch / 255)[0].squeeze(-1).squeeze(-1),
        num_workers=0,
        device=torch.device("cpu"),
        mode="legacy_pytorch",
        verbose=False,
    )
    found = clean_fid("legacy_pytorch", Path(settings.weights) / INCEPTION_STATE.name, "cpu")(images)
    np.testing.assert_array_equal(found["pool"], expected)


@pytest.mark.parametrize("protocol", ["clean", "adm"])
def test_grey_images_are_repeated_and_batches_do_not_matter(settings, protocol):
    extractor = inception_extractor(settings, "cpu", protocol)
    grey = some_images(channels=1)
    features = extract(extractor, grey)["pool"]
    torch.testing.assert_close(features, extract(extractor, grey.repeat(1, 3, 1, 1))["pool"], rtol=0, atol=0)
    torch.testing.assert_close(features, extract(extractor, grey, images_at_once=1)["pool"], rtol=1e-4, atol=1e-6)
    assert as_rgb(grey).shape == (3, 3, 20, 24)


@pytest.mark.parametrize(
    ("metric", "inception", "name", "tool"),
    [
        ("fid", "clean", "stand-in-inception-clean", "clean-fid/clean"),
        ("fid2fp32", "legacy_tensorflow", "stand-in-inception-legacy_tensorflow", "clean-fid/legacy_tensorflow"),
        ("kid", "adm", "stand-in-inception-adm", "torch-fidelity/adm"),
        *((metric, "clean", "stand-in-inception-adm", "torch-fidelity/adm") for metric in ("sfid", "is", "precision")),
        ("fd_digits", "clean", "digits", "dmqbench"),
        ("fd2fp32_digits", "clean", "digits", "dmqbench"),
    ],
)
def test_each_metric_has_its_network(settings, metric, inception, name, tool):
    extractor = extractor_for(metric, replace(settings, inception=inception), "cpu")
    assert (extractor.name, extractor.tool) == (name, tool)
    for word in (extractor.name, extractor.tool, extractor.resize):
        assert not set(word) & set(" =#")
    assert extractor_for(metric, replace(settings, inception=inception), "cpu") is extractor


def test_digits_features_are_those_of_the_shipped_classifier():
    from dmqbench.data.digits import load_digits
    from dmqbench.eval.digit_classifier import digit_classifier

    images = load_digits()[0][:5]
    pixels = ((images + 1) / 2 * 255).round().to(torch.uint8)
    extractor = extractor_for("fd_digits", MetricsConfig(names=("fd_digits",), pairs=1, samples=1), "cpu")
    torch.testing.assert_close(
        extract(extractor, pixels)["pool"], digit_classifier().features(pixels / 255 * 2 - 1), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("inception", INCEPTIONS)
def test_missing_weights_are_one_line(tmp_path, monkeypatch, inception):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    settings = MetricsConfig(names=("fid",), pairs=1, samples=1, download=False, inception=inception)
    with pytest.raises(MetricUnavailable, match=r"needs \S+inception-2015-12-05\S* \(96 MB\)|needs inception") as error:
        extractor_for("fid", settings, "cpu")
    assert "\n" not in str(error.value)


def test_the_process_keeps_its_warnings(settings):
    before = list(warnings.filters)
    for mode in ("clean", "legacy_pytorch"):
        from dmqbench.eval.inception import _clean_fid_resizer

        _clean_fid_resizer(mode)
    assert warnings.filters == before


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_code_in_a_state_is_run(tmp_path):
    path = tmp_path / INCEPTION_STATE.name
    torch.save({"fc.weight": _Trap(tmp_path / "ran")}, path)
    with pytest.raises(Exception, match="weights_only"):
        adm_network(path, "cpu")
    assert not (tmp_path / "ran").exists()
