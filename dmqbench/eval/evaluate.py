"""From samples to measurements: every asked metric is measured, or listed as unavailable with the reason."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from dmqbench.eval.distribution import Extractor, extract, frechet_with_interval, metric_name
from dmqbench.eval.extractors import EXTRACTORS, REFERENCE_IMAGES
from dmqbench.eval.paired import PAIRED_METRICS, PairedMetric, PerImage, summarise
from dmqbench.eval.protocol import Floor, Measurement, MetricUnavailable, Protocol
from dmqbench.schema import METRICS


def content_hash(images: Tensor) -> str:
    """Return the sha256 of the pixels of uint8 images."""
    return hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class SampleSet:
    """Samples of consecutive indices from 0: images uint8 [N, C, H, W], final states float32 [N, C, H, W]."""

    images: Tensor
    state: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def first(self, count: int) -> "SampleSet":
        return SampleSet(self.images[:count], self.state[:count])


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found."""

    measurements: dict[str, Measurement]
    unavailable: dict[str, str]
    per_image: dict[str, PerImage]


@dataclass(frozen=True)
class Floors:
    """Full-precision samples that differ by nothing but rounding, and by nothing but the seed."""

    perturbed: SampleSet
    other_seed: SampleSet


@dataclass(frozen=True)
class Evaluator:
    """Measures samples against full precision and against the dataset.

    ``protocol`` carries what all metrics share: sampler, seed, chunk, scope, engine.
    """

    protocol: Protocol
    full_precision: SampleSet
    full_precision_id: str
    """Which samples these are: the reference in the protocol of what compares with them."""
    dataset: str
    pairs: int
    floors: Floors

    def evaluate(self, samples: SampleSet, names: Sequence[str]) -> Evaluation:
        """Measure ``names``; one that cannot be had here is listed with the reason."""
        found = Evaluation({}, {}, {})
        for name in names:
            try:
                if name in PAIRED_METRICS:
                    self._paired(PAIRED_METRICS[name], samples, found)
                else:
                    found.measurements[name] = self._distribution(name, samples)
            except MetricUnavailable as reason:
                found.unavailable[name] = str(reason)
        return found

    def _paired(self, metric: PairedMetric, samples: SampleSet, found: Evaluation) -> None:
        def measure(ours: SampleSet, scope: str | None) -> tuple[Measurement, PerImage]:
            ours, theirs = ours.first(self.pairs), self.full_precision.first(self.pairs)
            operand = metric.operand
            values = metric.per_image(getattr(ours, operand), getattr(theirs, operand))
            protocol = replace(
                self.protocol,
                metric=metric.name,
                version=metric.version,
                tool=metric.tool,
                rounding=metric.rounding,
                n=len(values),
                reference="fp",
                reference_hash=self.full_precision_id,
                scope=scope,
            )
            return summarise(metric, values, protocol), values

        measurement, values = measure(samples, self.protocol.scope)
        floor, _ = measure(self.floors.perturbed, None)
        found.measurements[metric.name] = replace(
            measurement, floor=Floor("numerical", floor.value, floor.n, floor.ci95)
        )
        found.per_image[metric.name] = values

    def _distribution(self, name: str, samples: SampleSet) -> Measurement:
        extractor, against_dataset = self._extractor_of(name)
        dataset = REFERENCE_IMAGES[self.dataset]() if against_dataset else None

        def measure(ours: SampleSet) -> Measurement:
            features = extract(extractor, ours.images)
            theirs = extract(extractor, self.full_precision.images) if dataset is None else extract(extractor, dataset)
            protocol = replace(
                self.protocol,
                metric=name,
                version=METRICS[name],
                tool="dmqbench",
                rounding="uint8",
                n=len(features),
                extractor=extractor.name,
                extractor_hash=extractor.hash,
                resize=extractor.resize,
                reference=self.dataset if against_dataset else "fp",
                reference_hash=self.full_precision_id if dataset is None else content_hash(dataset),
            )
            return frechet_with_interval(features, theirs, paired=dataset is None).measurement(protocol)

        full_precision = extract(extractor, self.full_precision.images)
        other = extract(extractor, self.floors.other_seed.images)
        # Groups are deleted from both sets, as both are draws.
        floor = frechet_with_interval(other, full_precision, paired=True)
        return replace(measure(samples), floor=Floor("other_seed", floor.value, floor.n, floor.ci95))

    def _extractor_of(self, name: str) -> tuple[Extractor, bool]:
        for extractor, load in EXTRACTORS.items():
            if name == metric_name(extractor, "dataset"):
                if self.dataset not in REFERENCE_IMAGES:
                    raise MetricUnavailable(f"no reference images of dataset {self.dataset} for {name}")
                return load(), True
            if name == metric_name(extractor, "fp"):
                return load(), False
        raise MetricUnavailable("this metric is not built yet")
