"""From samples to measurements: every asked metric is measured, or listed as unavailable with the reason."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from dmqbench.config.names import STAND_IN
from dmqbench.config.plugins import metrics
from dmqbench.config.schema import MetricsConfig
from dmqbench.eval.extractors import NETWORKS, extractor_for
from dmqbench.eval.features import Extractor, Features
from dmqbench.eval.measurement import Estimate, Floor, Measurement
from dmqbench.eval.paired import PairedMetric, PerImage, summarise
from dmqbench.eval.protocol import FeatureNetwork, MetricUnavailable, Protocol, WeightsMissing
from dmqbench.eval.reference import Reference, load_reference
from dmqbench.eval.registry import Estimates, SetMetric, Side, metric_of
from dmqbench.eval.weights import is_stand_in


@dataclass(frozen=True)
class SampleSet:
    """Samples of consecutive indices from 0: images uint8 [N, C, H, W], final sampler states float32 [N, C, H, W].

    ``id`` names their artifact in the store; ``state`` is ``None`` where the samples were made elsewhere.
    """

    id: str
    images: Tensor
    state: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def first(self, count: int) -> "SampleSet":
        return SampleSet(self.id, self.images[:count], None if self.state is None else self.state[:count])


FeatureSource = Callable[[SampleSet, Extractor], Features]
"""Gives the features of samples, from a cache or computed."""


FloorSource = Callable[[Mapping[str, Any], Callable[[], Mapping[str, Floor]]], Mapping[str, Floor]]
"""Gives floors by metric, from a cache under what they are about, or measured by the function."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found."""

    measurements: dict[str, Measurement] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    missing_weights: list[str] = field(default_factory=list)
    """Those of the unavailable ones that may become available."""
    per_image: dict[str, PerImage] = field(default_factory=dict)


@dataclass(frozen=True)
class Floors:
    """Full-precision samples that differ by nothing but rounding, and by nothing but the seed."""

    perturbed: SampleSet
    other_seed: SampleSet


@dataclass(frozen=True)
class Evaluator:
    """Measures samples against full precision and against the dataset.

    protocol: what all metrics share: sampler, seed, chunk, scope, engine.
    full_precision: ``None`` where there is nothing to pair with; full_precision_id: which samples these are, the
        reference in the protocol of what compares with them.
    dataset, reference: name of the dataset, and the file or folder that stands for it.
    pairs: number of pairs of paired metrics; 0 where no two samples are known to share their noise.
    features, floor_of: where features, and floors in them, come from; device: where they are computed.
    captions: the prompt of every sample, if there are any.
    truth: the image that every sample should be, where there is one; ``no_truth`` says why there is none.
    """

    protocol: Protocol
    full_precision: SampleSet | None
    full_precision_id: str
    dataset: str
    pairs: int
    settings: MetricsConfig
    features: FeatureSource
    floor_of: FloorSource
    floors: Floors | None = None
    reference: str | None = None
    captions: tuple[str, ...] | None = None
    truth: SampleSet | None = None
    no_truth: str = "these samples have no ground truth: only task_kind=restore has one"
    device: str = "cpu"

    def evaluate(self, samples: SampleSet, names: Sequence[str]) -> Evaluation:
        """Measure ``names``; one that cannot be had here is listed with the reason."""
        return _Run(self, samples).measure(names)


@dataclass
class _Run:
    """One evaluation; statistics that give several metrics are computed once."""

    of: Evaluator
    samples: SampleSet
    evaluation: Evaluation = field(default_factory=Evaluation)
    estimates: dict[str, Estimates] = field(default_factory=dict)

    def measure(self, names: Sequence[str]) -> Evaluation:
        for name in names:
            try:
                if metrics()[name].over == "captions" and self.of.captions is None:
                    raise MetricUnavailable("these samples have no prompts")
                metric = metric_of(name, self.of.settings, self.of.device)
                if isinstance(metric, PairedMetric):
                    self._paired(metric)
                else:
                    self._of_set(metric)
            except MetricUnavailable as reason:
                self.evaluation.unavailable[name] = str(reason)
                if isinstance(reason, WeightsMissing):
                    self.evaluation.missing_weights.append(name)
        return self.evaluation

    def _protocol(
        self, metric: PairedMetric | SetMetric, n: int, network: FeatureNetwork | None, **entries: str
    ) -> Protocol:
        """Return what all metrics share, and what holds of this one over ``n`` images or pairs."""
        measured_in = {} if network is None else asdict(network)
        return replace(self.of.protocol, metric=metric.name, version=metric.version, n=n, **{**measured_in, **entries})

    def _keep(
        self, name: str, protocol: Protocol, measurement: Measurement, values: Sequence[float | None] | None = None
    ) -> None:
        if (protocol.extractor or "").startswith(STAND_IN):
            name = f"{STAND_IN}{name}"
        self.evaluation.measurements[name] = measurement
        if values is not None:
            self.evaluation.per_image[name] = list(values)

    # ---- paired with full precision, with the ground truth, or with the prompts

    @property
    def _full_precision(self) -> SampleSet:
        if self.of.full_precision is None:
            raise MetricUnavailable("no full-precision samples to compare with; give evaluate.fp_samples")
        return self.of.full_precision

    def _paired(self, metric: PairedMetric) -> None:
        values = self._pair_values(metric, self.samples)
        protocol = self._protocol(
            metric,
            len(values),
            metric.network,
            tool=metric.tool,
            rounding=metric.rounding,
            reference=metric.against,
            reference_hash=self._reference_hash(metric),
        )
        measurement = summarise(metric, values, protocol)
        if self.of.floors is not None and metric.against == "fp":
            floor = summarise(metric, self._pair_values(metric, self.of.floors.perturbed), protocol)
            measurement = replace(measurement, floor=Floor("numerical", floor.value, floor.n, floor.ci95))
        self._keep(metric.name, protocol, measurement, values)

    @property
    def _prompts(self) -> tuple[str, ...]:
        return (self.of.captions or ())[: len(self.samples)]

    def _reference_hash(self, metric: PairedMetric) -> str:
        if metric.against == "fp":
            return self.of.full_precision_id
        if metric.against == "truth":
            return self._counterpart(metric).id
        return hashlib.sha256("\n".join(self._prompts).encode()).hexdigest()

    def _counterpart(self, metric: PairedMetric) -> SampleSet:
        """What each sample is compared with."""
        if metric.against == "fp":
            return self._full_precision
        if self.of.truth is None:
            raise MetricUnavailable(self.of.no_truth)
        return self.of.truth

    def _pair_values(self, metric: PairedMetric, samples: SampleSet) -> PerImage:
        if metric.against == "prompts":
            return metric.per_image(samples.images, self._prompts)
        counterpart = self._counterpart(metric)
        if not self.of.pairs:
            raise MetricUnavailable(
                "nobody says that these samples share the noise of full precision: give evaluate.fp_samples"
            )
        count = min(self.of.pairs, len(counterpart), len(self.samples))
        pair = [getattr(side.first(count), metric.operand) for side in (samples, counterpart)]
        if any(operand is None for operand in pair):
            raise MetricUnavailable("samples made elsewhere have images, but no final sampler state")
        return metric.per_image(*pair)

    # ---- statistics of the whole set

    def _of_set(self, metric: SetMetric) -> None:
        made_up = is_stand_in(self.of.settings) and metrics()[metric.name].features not in NETWORKS
        if len(self.samples) < metric.least and not made_up:
            # Said before anything is fetched or computed for it.
            raise MetricUnavailable(f"needs at least {metric.least} samples, got {len(self.samples)}")
        extractor = extractor_for(metric.name, self.of.settings, self.of.device)
        estimate = self._estimate(metric, extractor)
        protocol = self._protocol(
            metric,
            estimate.n,
            extractor.facts,
            tool=metric.tool or extractor.tool,
            rounding="uint8",
            **self._reference_entries(metric, extractor),
        )
        measurement = estimate.measurement(protocol, metric.higher_is_better)
        if self.of.floors is not None and metric.against != "nothing":
            floor = self._floor(metric, extractor, self.of.floors.other_seed)
            measurement = replace(measurement, floor=floor)
        self._keep(metric.name, protocol, measurement)

    def _estimate(self, metric: SetMetric, extractor: Extractor) -> Estimate:
        if metric.statistic not in self.estimates:
            sides = self._sides(metric, extractor)
            self.estimates[metric.statistic] = metric.estimates(*sides, metric.against == "fp")
        return self.estimates[metric.statistic][metric.name]

    def _sides(self, metric: SetMetric, extractor: Extractor) -> tuple[Tensor, Side | None]:
        """The features of the samples and what they are compared with; its absence is found out first."""
        if metric.against == "fp":
            # Sets made elsewhere may differ in size.
            count = min(len(self._full_precision), len(self.samples))
            pair = [self.of.features(side, extractor) for side in (self.samples, self._full_precision)]
            return pair[0][metric.output][:count], pair[1][metric.output][:count]
        reference = None
        if metric.against == "dataset":
            reference = self._dataset(extractor).side(metric.output, metric.needs_features)
        return self.of.features(self.samples, extractor)[metric.output], reference

    def _floor(self, metric: SetMetric, extractor: Extractor, other_seed: SampleSet) -> Floor:
        """Full precision against full precision of another seed; groups are deleted from both, as both are draws."""
        sets = (other_seed, self._full_precision)

        def measure() -> dict[str, Floor]:
            other, own = (self.of.features(side, extractor)[metric.output] for side in sets)
            estimates = metric.estimates(other, own, True)
            return {
                name: Floor("other_seed", estimate.value, estimate.n, estimate.ci95)
                for name, estimate in estimates.items()
            }

        about = {
            "statistic": metric.statistic,
            "version": metric.version,
            "sets": [[side.id, len(side)] for side in sets],
            "network": [extractor.name, extractor.hash, extractor.tool, extractor.resize],
        }
        return self.of.floor_of(about, measure)[metric.name]

    def _reference_entries(self, metric: SetMetric, extractor: Extractor) -> dict[str, str]:
        if metric.against == "nothing":
            return {}
        if metric.against == "fp":
            return {"reference": "fp", "reference_hash": self.of.full_precision_id}
        reference = self._dataset(extractor)
        return {"reference": reference.name, "reference_hash": reference.hash}

    def _dataset(self, extractor: Extractor) -> Reference:
        return load_reference(self.of.dataset, self.of.reference, extractor, self._features_of_images)

    def _features_of_images(self, id: str, images: Tensor, extractor: Extractor) -> Features:
        return self.of.features(SampleSet(id, images), extractor)
