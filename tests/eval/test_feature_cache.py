"""Features are computed once per image, whoever asks, and computed again where a file was damaged."""

import torch

from dmqbench.eval import feature_cache
from dmqbench.eval.evaluate import SampleSet
from dmqbench.eval.feature_cache import feature_source
from dmqbench.eval.features import Extractor, extract
from dmqbench.store.artifacts import Store


class Counted:
    """A network that counts the images it was shown."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, images):
        self.images += len(images)
        return {"pool": images.float().flatten(1)[:, :3], "spatial": images.float().flatten(1)[:, 3:5]}


def extractor(network, **changes) -> Extractor:
    facts = {"name": "counted", "hash": "abc", "tool": "fake", "outputs": ("pool", "spatial")}
    return Extractor(network=network, **(facts | changes))


def images(count: int) -> SampleSet:
    generator = torch.Generator().manual_seed(0)
    return SampleSet("some", torch.randint(0, 256, (count, 1, 4, 4), generator=generator, dtype=torch.uint8))


def test_features_are_those_of_the_network_whatever_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "IMAGES_PER_FILE", 8)
    network = Counted()
    found = feature_source(Store(tmp_path), "cpu")(images(30), extractor(network))
    expected = extract(extractor(Counted()), images(30).images)
    assert all(torch.equal(found[name], expected[name]) for name in ("pool", "spatial"))
    assert network.images == 30


def test_the_second_one_to_ask_computes_nothing_and_more_images_only_what_is_new(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "IMAGES_PER_FILE", 8)
    network = Counted()
    feature_source(Store(tmp_path), "cpu")(images(16), extractor(network))
    again = feature_source(Store(tmp_path), "cpu")(images(16), extractor(network))
    assert network.images == 16
    feature_source(Store(tmp_path), "cpu")(images(20), extractor(network))
    assert network.images == 20
    assert len(again["pool"]) == 16


def test_another_network_or_another_set_is_not_mistaken_for_it(tmp_path):
    source = feature_source(Store(tmp_path), "cpu")
    network = Counted()
    source(images(4), extractor(network))
    for other in ({"hash": "abd"}, {"resize": "bilinear299"}, {"tool": "other"}, {"name": "other"}):
        source(images(4), extractor(network, **other))
    source(SampleSet("others", images(4).images), extractor(network))
    assert network.images == 24


def test_a_damaged_file_is_made_again(tmp_path):
    network = Counted()
    feature_source(Store(tmp_path), "cpu")(images(4), extractor(network))
    [path] = tmp_path.glob("features/*/images_*")
    path.write_bytes(b"\0" * path.stat().st_size)
    found = feature_source(Store(tmp_path), "cpu")(images(4), extractor(network))
    assert network.images == 8
    assert found["pool"].abs().sum() > 0
