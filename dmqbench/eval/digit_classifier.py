"""The small digit classifier that recognises samples, and whose features give ``fd_digits``."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from dmqbench.data.digits import CLASSES
from dmqbench.models.folders import EMBEDDED

FEATURES = 64
CLASSIFIER = EMBEDDED / "digits_classifier.safetensors"


class DigitClassifier(nn.Module):
    """Three convolutions and two linear layers over 16×16 grey images.

    ``features`` maps images [N, 1, 16, 16] in [-1, 1] to [N, 64]; ``forward`` maps them to logits [N, 10].
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv3 = nn.Conv2d(64, 64, 3, padding=1)
        self.hidden = nn.Linear(64 * 4 * 4, FEATURES)
        self.out = nn.Linear(FEATURES, CLASSES)

    def features(self, images: Tensor) -> Tensor:
        hidden = F.silu(self.conv1(images))
        hidden = F.silu(self.conv2(F.avg_pool2d(hidden, 2)))
        hidden = F.silu(self.conv3(F.avg_pool2d(hidden, 2)))
        return self.hidden(hidden.flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.out(F.silu(self.features(images)))


def load_classifier(weights: Mapping[str, Tensor]) -> DigitClassifier:
    """Return the classifier with ``weights``, in evaluation mode and frozen."""
    classifier = DigitClassifier()
    classifier.load_state_dict(dict(weights))
    return classifier.eval().requires_grad_(False)


@torch.no_grad()
def recognised(classifier: DigitClassifier, images: Tensor, labels: Tensor) -> Tensor:
    """Return [N] booleans: whether the image is recognised as the digit that it was asked to be."""
    return classifier(images).argmax(1) == labels


def digit_classifier() -> DigitClassifier:
    """Return the shipped classifier."""
    return load_classifier(load_file(CLASSIFIER))
