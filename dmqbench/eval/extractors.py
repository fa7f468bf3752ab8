"""Feature extractors of the embedded models, by name: what ``fd_<name>`` and ``fd2fp32_<name>`` measure in."""

from collections.abc import Callable

from torch import Tensor

from dmqbench.eval.distribution import Extractor
from dmqbench.files import sha256_file
from dmqbench.images import to_uint8


def _digits() -> Extractor:
    from dmqbench.zoo.digits import CLASSIFIER, digit_classifier

    return Extractor("digits", sha256_file(CLASSIFIER), digit_classifier().features)


def _digits_images() -> Tensor:
    from dmqbench.zoo.digits_data import load_digits

    return to_uint8(load_digits()[0])


EXTRACTORS: dict[str, Callable[[], Extractor]] = {"digits": _digits}
"""Name → loader of the extractor."""

REFERENCE_IMAGES: dict[str, Callable[[], Tensor]] = {"digits": _digits_images}
"""Dataset → its images, uint8 [N, C, H, W], after the same rounding as samples."""
