"""What is known of every metric without computing it: its version, what it is over, and in whose features.

Imports no torch: the store answers, and a configuration is refused, by these facts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

FEATURES = ("inception", "adm", "digits", "effnet")


@dataclass(frozen=True)
class MetricFacts:
    """``version`` is raised when the metric's numbers change.

    over: ``metrics.pairs`` pairs of images; or all ``metrics.samples`` images, with their captions or as a set.
    features: the network that a set is compared in: ``inception`` as ``metrics.inception`` says, that of the ``adm``
        suite whatever it says, the classifier of ``digits``, which is shipped, or ``effnet``, from a package.
    """

    version: int
    over: str
    features: str | None = None


OWN_METRICS: Mapping[str, MetricFacts] = {
    "psnr": MetricFacts(2, "pairs"),
    "ssim": MetricFacts(2, "pairs"),
    "mse": MetricFacts(2, "pairs"),
    "lpips": MetricFacts(1, "pairs"),
    "psnr_truth": MetricFacts(1, "pairs"),
    "fid": MetricFacts(1, "samples", "inception"),
    "sfid": MetricFacts(1, "samples", "adm"),
    "kid": MetricFacts(1, "samples", "inception"),
    "is": MetricFacts(1, "samples", "adm"),
    "precision": MetricFacts(1, "samples", "adm"),
    "recall": MetricFacts(1, "samples", "adm"),
    "fid2fp32": MetricFacts(1, "samples", "inception"),
    "clip": MetricFacts(1, "captions"),
    "fd_digits": MetricFacts(2, "samples", "digits"),
    "fd2fp32_digits": MetricFacts(2, "samples", "digits"),
    "fd_effnet": MetricFacts(1, "samples", "effnet"),
    "fd2fp32_effnet": MetricFacts(1, "samples", "effnet"),
}
"""Metrics of this project, in the order of a table's columns."""


def read_metric(path: Path) -> MetricFacts:
    """Return what the YAML of a plug-in's metric says; ValueError, one line, if it is not right."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    allowed = {"over": ("pairs", "samples"), "features": (None, *FEATURES)}
    known = [field.name for field in fields(MetricFacts)]
    for key, value in content.items():
        if key not in known or value not in allowed.get(key, (value,)):
            raise ValueError(f"{key}={value} is not known (keys: {', '.join(known)})")
    facts = MetricFacts(content.get("version", 0), content.get("over", ""), content.get("features"))
    if not isinstance(facts.version, int) or facts.version < 1:
        raise ValueError(f"version={facts.version} is no whole number from 1")
    if (facts.over, facts.features is None) not in (("pairs", True), ("samples", False)):
        raise ValueError(f"over={facts.over} and features={facts.features} do not fit: a set is compared in features")
    return facts
