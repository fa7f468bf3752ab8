from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from standins import backbone_state, stand_in_folder

from dmqbench.config.names import LPIPS_BACKBONES
from dmqbench.config.schema import MetricsConfig
from dmqbench.data.images import ImageError
from dmqbench.eval.lpips import LEAST_SIDE, enlarged, load_network, lpips_metric
from dmqbench.eval.protocol import MetricUnavailable
from dmqbench.eval.weights import LPIPS_BACKBONE_FILES


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> MetricsConfig:
    folder = stand_in_folder(tmp_path_factory.mktemp("weights"), clip=False, backbones=LPIPS_BACKBONES)
    return MetricsConfig(names=("lpips",), pairs=1, samples=1, weights=str(folder))


def noisy_pair(n: int = 3, channels: int = 3, size: tuple[int, int] = (40, 36)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    reference = torch.randint(0, 256, (n, channels, *size), generator=generator)
    noise = torch.linspace(10, 80, n)[:, None, None, None] * torch.randn(reference.shape, generator=generator)
    return (reference + noise).clamp(0, 255).to(torch.uint8), reference.to(torch.uint8)


@pytest.mark.parametrize("backbone", LPIPS_BACKBONES)
def test_values_are_those_of_the_authors_package(settings, backbone):
    package = pytest.importorskip("lpips")
    network = package.LPIPS(net=backbone, pnet_rand=True, verbose=False).eval()
    state = backbone_state(backbone)
    names = {name: f"features.{name.split('.', 1)[1]}" for name in network.net.state_dict()}
    network.net.load_state_dict({name: state[theirs] for name, theirs in names.items()})
    images, reference = noisy_pair()
    with torch.no_grad():
        expected = network(images / 255 * 2 - 1, reference / 255 * 2 - 1).flatten().tolist()
    found = lpips_metric(replace(settings, lpips=backbone), "cpu").per_image(images, reference)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert min(expected) > 1e-3
    assert sorted(expected) == expected  # more noise, more distance


@pytest.mark.parametrize(("backbone", "least"), LEAST_SIDE.items())
def test_the_least_side_is_the_least(settings, backbone, least):
    network = load_network(backbone, Path(settings.weights) / LPIPS_BACKBONE_FILES[backbone].name)
    pair = torch.zeros(2, 3, least, least)
    assert network(pair, pair).shape == (2, 1, 1, 1)
    with pytest.raises(RuntimeError, match="too small"):
        network(pair[..., 1:], pair[..., 1:])


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from(sorted(LEAST_SIDE.values())))
def test_enlarging_keeps_the_shape_of_an_image(height, width, least):
    images = torch.rand(1, 1, height, width)
    found = enlarged(images, least)
    if min(height, width) >= least:
        assert found is images
    else:
        assert min(found.shape[-2:]) == least
        factor = least / min(height, width)
        assert all(-1e-9 < new - old * factor < 1 for new, old in zip(found.shape[-2:], (height, width), strict=True))


@pytest.mark.parametrize("backbone", LPIPS_BACKBONES)
def test_small_grey_images_are_enlarged_and_repeated(settings, backbone):
    metric = lpips_metric(replace(settings, lpips=backbone), "cpu")
    least = LEAST_SIDE[backbone]
    images, reference = noisy_pair(channels=1, size=(8, 12))
    network = load_network(backbone, Path(settings.weights) / LPIPS_BACKBONE_FILES[backbone].name)
    size = (least, -(-12 * least // 8))
    by_hand = [
        torch.nn.functional.interpolate((x / 255 * 2 - 1).repeat(1, 3, 1, 1), size=size, mode="bilinear")
        for x in (images, reference)
    ]
    with torch.no_grad():
        expected = network(*by_hand).flatten().tolist()
    assert metric.per_image(images, reference) == pytest.approx(expected, rel=1e-5)
    assert metric.network.resize == f"bilinear-to-at-least-{least}+grey-to-rgb"


def test_identical_images_symmetry_and_batching(settings):
    metric = lpips_metric(settings, "cpu")
    images, reference = noisy_pair(n=18)
    images[1] = reference[1]
    values = metric.per_image(images, reference)
    assert values[1] == 0
    assert min(value for place, value in enumerate(values) if place != 1) > 0
    assert values == pytest.approx(metric.per_image(reference, images), rel=1e-5)
    alone = [metric.per_image(images[i : i + 1], reference[i : i + 1])[0] for i in (0, 16, 17)]
    assert [values[i] for i in (0, 16, 17)] == pytest.approx(alone, rel=1e-5)


def test_what_it_is_stands_in_its_names(settings):
    alex, squeeze = (lpips_metric(replace(settings, lpips=name), "cpu") for name in ("alex", "squeeze"))
    assert (alex.name, alex.version, alex.higher_is_better, alex.operand) == ("lpips", 1, False, "images")
    assert (alex.network.extractor, squeeze.network.extractor) == ("stand-in-lpips-alex", "stand-in-lpips-squeeze")
    assert alex.network.extractor_hash != squeeze.network.extractor_hash
    assert lpips_metric(settings, "cpu") is alex


def test_floats_and_unpaired_images_are_refused(settings):
    metric = lpips_metric(settings, "cpu")
    images, reference = noisy_pair()
    with pytest.raises(ImageError, match="expected uint8"):
        metric.per_image(images / 255, reference)
    with pytest.raises(ImageError, match="do not pair"):
        metric.per_image(images[:2], reference)


def test_a_missing_backbone_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    settings = MetricsConfig(names=("lpips",), pairs=1, samples=1, download=False)
    with pytest.raises(MetricUnavailable, match=r"needs alexnet-owt-7be5be79.pth \(244 MB\)") as error:
        lpips_metric(settings, "cpu")
    assert "\n" not in str(error.value)
