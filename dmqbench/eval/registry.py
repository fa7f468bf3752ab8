"""Every metric by name: a file with its arithmetic, a line here, and its facts in ``config.metric_facts``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Literal

from torch import Tensor

from dmqbench.config.plugin_code import metric_origin
from dmqbench.config.plugins import metrics, plugin_with
from dmqbench.config.schema import MetricsConfig
from dmqbench.eval.clip import clip_metric
from dmqbench.eval.effnet import EFFNET_DIMENSION
from dmqbench.eval.features import Output
from dmqbench.eval.frechet import Gaussian, frechet_estimate
from dmqbench.eval.inception import POOL_DIMENSION, SPATIAL_DIMENSION
from dmqbench.eval.inception_score import LEAST, inception_score_estimate
from dmqbench.eval.kid import kid_estimate
from dmqbench.eval.lpips import lpips_metric
from dmqbench.eval.measurement import Estimate
from dmqbench.eval.paired import MSE, PSNR, PSNR_TRUTH, SSIM, PairedMetric
from dmqbench.eval.precision_recall import precision_recall_estimates
from dmqbench.eval.protocol import MetricUnavailable

Side = Tensor | Gaussian
"""One side of a comparison: features [N, d], or, of a dataset, their mean and covariance alone."""

PAIRED_METRICS: dict[str, Callable[[MetricsConfig, str], PairedMetric]] = {
    "psnr": lambda settings, device: PSNR,
    "ssim": lambda settings, device: SSIM,
    "mse": lambda settings, device: MSE,
    "lpips": lpips_metric,
    "psnr_truth": lambda settings, device: PSNR_TRUTH,
    "clip": clip_metric,
}
"""Name → the metric for these settings, on this device."""


Estimates = Mapping[str, Estimate]


@dataclass(frozen=True)
class SetMetric:
    """A statistic of a set of samples.

    output: what it looks at; against: what it compares with. ``estimates(features, reference, paired)`` gives every
    metric of its ``statistic`` by name; ``reference`` is features where ``needs_features``, and ``None`` against
    nothing.
    """

    name: str
    higher_is_better: bool
    output: Output
    against: Literal["dataset", "fp", "nothing"]
    statistic: str
    estimates: Callable[[Tensor, Any, bool], Estimates]
    needs_features: bool = True
    least: int = 0
    """Samples below which it is known beforehand that there is no value: twice the dimensions of a covariance."""
    tool: str | None = None
    """What stands in the protocol; None: the tool that has its features."""

    @property
    def version(self) -> int:
        return metrics()[self.name].version


def _alone(name: str, estimate: Callable[[Tensor, Any, bool], Estimate]) -> Callable[[Tensor, Any, bool], Estimates]:
    """Of a statistic that gives one metric."""
    return lambda features, reference, paired: {name: estimate(features, reference, paired)}


def _frechet(name: str, output: Output, against: Literal["dataset", "fp"], least: int = 0) -> SetMetric:
    estimates = _alone(name, frechet_estimate)
    return SetMetric(name, False, output, against, name, estimates, needs_features=False, least=least)


def _inception_score(logits: Tensor, reference: None, paired: bool) -> Estimates:
    return {"is": inception_score_estimate(logits)}


def _precision_recall(features: Tensor, reference: Tensor, paired: bool) -> Estimates:
    return precision_recall_estimates(features, reference, paired)._asdict()


SET_METRICS: dict[str, SetMetric] = {
    metric.name: metric
    for metric in (
        _frechet("fid", "pool", "dataset", 2 * POOL_DIMENSION),
        _frechet("fid2fp32", "pool", "fp", 2 * POOL_DIMENSION),
        _frechet("sfid", "spatial", "dataset", 2 * SPATIAL_DIMENSION),
        _frechet("fd_digits", "pool", "dataset"),
        _frechet("fd2fp32_digits", "pool", "fp"),
        _frechet("fd_effnet", "pool", "dataset", 2 * EFFNET_DIMENSION),
        _frechet("fd2fp32_effnet", "pool", "fp", 2 * EFFNET_DIMENSION),
        SetMetric("kid", False, "pool", "dataset", "kid", _alone("kid", kid_estimate)),
        SetMetric("is", True, "logits", "nothing", "is", _inception_score, least=LEAST),
        SetMetric("precision", True, "pool", "dataset", "precision_recall", _precision_recall),
        SetMetric("recall", True, "pool", "dataset", "precision_recall", _precision_recall),
    )
}


def metric_of(name: str, settings: MetricsConfig, device: str) -> PairedMetric | SetMetric:
    """Return a metric of pairs or of a set, of this project or of a plug-in.

    Raises:
        MetricUnavailable: its weights are not to be had, or the module of a plug-in is not right; one line.
    """
    if name in PAIRED_METRICS:
        return PAIRED_METRICS[name](settings, device)
    return SET_METRICS[name] if name in SET_METRICS else _plugged(name)


def _plugged(name: str) -> PairedMetric | SetMetric:
    """The ``METRIC`` of a plug-in's module; its protocol says whose code it is."""
    plugin, origin = plugin_with("metric", name), metric_origin(name)
    assert plugin is not None
    module = f"{plugin.package}.metrics.{name}"
    try:
        metric = import_module(module).METRIC
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise MetricUnavailable(f"plug-in {plugin.name}: {module} fails ({reason})") from None
    kind = {"pairs": PairedMetric, "samples": SetMetric}[metrics()[name].over]
    if not isinstance(metric, kind) or metric.name != name:
        raise MetricUnavailable(f"plug-in {plugin.name}: METRIC of {module} is no {kind.__name__} of the name {name}")
    if isinstance(metric, SetMetric):
        metric = replace(metric, statistic=f"{metric.statistic} {origin}")
    return replace(metric, tool=origin)
