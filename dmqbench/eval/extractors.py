"""Which feature network a metric measures in."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from dmqbench.config.plugins import metrics
from dmqbench.config.schema import MetricsConfig
from dmqbench.data.images import to_signed
from dmqbench.eval.digit_classifier import CLASSIFIER, digit_classifier
from dmqbench.eval.effnet import effnet_extractor
from dmqbench.eval.features import Extractor, Features
from dmqbench.eval.inception import ADM, inception_extractor
from dmqbench.eval.protocol import MetricUnavailable
from dmqbench.store.files import sha256_file


@cache
def _digits(device: str) -> Extractor:
    classifier = digit_classifier().to(device)

    def network(images: Tensor) -> Features:
        if images.shape[1:] != DIGIT_SHAPE:
            expected, got = ("×".join(map(str, shape)) for shape in (DIGIT_SHAPE, images.shape[1:]))
            raise MetricUnavailable(f"the digit classifier takes images of {expected}, got {got}")
        return {"pool": classifier.features(to_signed(images).to(device))}

    return Extractor("digits", sha256_file(CLASSIFIER), "dmqbench", network)


DIGIT_SHAPE = (1, 16, 16)

NETWORKS: dict[str, Callable[[str], Extractor]] = {"digits": _digits, "effnet": effnet_extractor}
"""Name of a network that no setting changes → its loader, given a device."""


def extractor_for(metric: str, settings: MetricsConfig, device: str | torch.device) -> Extractor:
    """Return the network in which ``metric``, a statistic of a set of samples, measures under these settings.

    Raises:
        MetricUnavailable: its weights are not to be had; one line.
        KeyError: no network of this name is shipped.
    """
    features = metrics()[metric].features
    if features in NETWORKS:
        return NETWORKS[features](str(device))
    return inception_extractor(settings, str(device), ADM if features == "adm" else settings.inception)
