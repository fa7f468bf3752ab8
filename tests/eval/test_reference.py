from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from standins import save_statistics

from dmqbench.eval.features import Extractor
from dmqbench.eval.frechet import Gaussian
from dmqbench.eval.protocol import MetricUnavailable
from dmqbench.eval.reference import content_hash, load_reference


def network(name: str, dimension: int = 2048) -> Extractor:
    """Features that tell the images apart by their mean."""

    def features(images: torch.Tensor) -> dict[str, torch.Tensor]:
        mean = images.float().flatten(1).mean(dim=1, keepdim=True)
        return {"pool": mean.expand(-1, dimension), "logits": mean}

    return Extractor(name, "0" * 64, "test", features, ("pool", "logits"))


CLEAN, ADM, DIGITS = network("inception-clean"), network("stand-in-inception-adm"), network("digits", 64)


class Computed:
    """A source of features that counts what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def __call__(self, id: str, images: torch.Tensor, extractor: Extractor):
        self.asked.append((id, len(images)))
        return extractor.network(images)


def never(*_):
    raise AssertionError("no features are needed here")


def some_images(n: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 12, 10, 3), dtype=np.uint8)


def save_folder(images: np.ndarray, folder: Path) -> Path:
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


def refused(path: Path | None, extractor: Extractor, dataset: str = "none") -> str:
    with pytest.raises(MetricUnavailable) as error:
        load_reference(dataset, None if path is None else str(path), extractor, Computed())
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_images_are_read_hashed_and_seen_by_the_network(tmp_path, kind):
    pixels = some_images()
    if kind == "npz":
        np.savez(tmp_path / "images.npz", arr_0=pixels)
    path = tmp_path / "images.npz" if kind == "npz" else save_folder(pixels, tmp_path / "images")
    computed = Computed()
    reference = load_reference("mine", str(path), CLEAN, computed)
    assert computed.asked == []
    side = reference.side("pool", needs_features=True)
    expected = torch.from_numpy(pixels.reshape(5, -1).mean(axis=1)).float()
    torch.testing.assert_close(side[:, 0], expected)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    assert (reference.name, reference.hash) == ("mine:file", content_hash(images))
    assert computed.asked == [(reference.hash, 5)]


def test_digits_are_shipped():
    from dmqbench.data.digits import load_digits

    reference = load_reference("digits", None, DIGITS, Computed())
    side = reference.side("pool", needs_features=False)
    assert side.shape == (1797, 64)
    torch.testing.assert_close(side[:, 0] / 255 * 2 - 1, load_digits()[0].flatten(1).mean(1), atol=2e-3, rtol=0)


def test_an_unknown_dataset_says_what_to_give():
    assert "give them, or their statistics, with dataset.reference" in refused(None, CLEAN)


def test_statistics_of_clean_fid(tmp_path):
    path = save_statistics(tmp_path / "clean.npz", spatial=None)
    reference = load_reference("mine", str(path), CLEAN, never)
    found = reference.side("pool", needs_features=False)
    with np.load(path) as saved:
        assert isinstance(found, Gaussian)
        np.testing.assert_array_equal(found.mean, saved["mu"])
        np.testing.assert_array_equal(found.covariance, saved["sigma"])
    assert len(reference.hash) == 64
    with pytest.raises(MetricUnavailable, match="statistics of pool features only, and this metric needs the pool"):
        reference.side("pool", needs_features=True)
    with pytest.raises(MetricUnavailable, match="needs those of the logits features: give images"):
        reference.side("logits", needs_features=False)


def test_statistics_of_the_adm_suite_with_and_without_images(tmp_path):
    path = save_statistics(tmp_path / "adm.npz")
    reference = load_reference("mine", str(path), ADM, never)
    assert [len(reference.side(output, False).mean) for output in ("pool", "spatial")] == [2048, 63]
    with pytest.raises(MetricUnavailable, match="pool, spatial features only"):
        reference.side("pool", needs_features=True)
    with np.load(path) as saved:
        np.savez(tmp_path / "both.npz", arr_0=some_images(), **saved)
    computed = Computed()
    both = load_reference("mine", str(tmp_path / "both.npz"), ADM, computed)
    assert isinstance(both.side("pool", needs_features=False), Gaussian)
    assert computed.asked == []
    assert both.side("pool", needs_features=True).shape == (5, 2048)
    assert both.hash != reference.hash


def test_features_of_clean_fid(tmp_path):
    feats = np.random.default_rng(0).normal(size=(7, 2048)).astype(np.float32)
    np.savez(tmp_path / "kid.npz", feats=feats)
    reference = load_reference("mine", str(tmp_path / "kid.npz"), CLEAN, never)
    np.testing.assert_array_equal(reference.side("pool", needs_features=True), feats)
    np.testing.assert_array_equal(reference.side("pool", needs_features=False), feats)
    with pytest.raises(MetricUnavailable, match="holds pool features, and this metric needs logits"):
        reference.side("logits", needs_features=False)


@pytest.mark.parametrize(
    ("spatial", "extractor", "said"),
    [
        (63, CLEAN, "of the ADM suite"),
        (None, ADM, "not of the ADM suite"),
        (None, DIGITS, "of Inception features, and these are those of digits: give images"),
    ],
    ids=["adm for clean", "clean for adm", "inception for digits"],
)
def test_statistics_of_another_network_are_refused(tmp_path, spatial, extractor, said):
    assert said in refused(save_statistics(tmp_path / "statistics.npz", spatial=spatial), extractor)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"mu": np.zeros(64), "sigma": np.eye(64)}, r"of shape (64,) (mu): 2048 features needed"),
        ({"feats": np.zeros((9, 512), np.float32)}, r"of shape (9, 512) (feats): 2048 features needed"),
        ({"mu": np.zeros(2048)}, "holds no sigma"),
        ({"mu": np.zeros(2048), "sigma": np.eye(3)}, "must be [d] and [d, d], got (2048,) and (3, 3)"),
        ({"mu": np.full(2048, np.nan), "sigma": np.eye(2048)}, "mu must hold finite floats"),
        ({"mu": np.zeros(2048, object), "sigma": np.eye(2048)}, "Object arrays cannot be loaded"),
    ],
    ids=["64", "512", "half", "shape", "nan", "pickle"],
)
def test_broken_statistics_are_one_line(tmp_path, arrays, said):
    np.savez_compressed(tmp_path / "broken.npz", **arrays)
    message = refused(tmp_path / "broken.npz", CLEAN)
    assert said in message
    assert "dataset.reference=" in message


@pytest.mark.parametrize("kind", ["missing", "empty folder", "no archive"])
def test_what_holds_no_images_is_one_line(tmp_path, kind):
    path = tmp_path / "reference.npz"
    if kind == "no archive":
        path.write_bytes(b"text")
    elif kind == "empty folder":
        path.mkdir()
    message = refused(path, CLEAN)
    assert message.startswith(f"dataset.reference={path}")
