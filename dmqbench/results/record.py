"""The parts of a result as ``result.json`` has them.

Files of other versions are forgiven here and in ``Result.from_json``, and nowhere else: an entry that is absent is None
or empty; one that this version does not know is kept in ``further`` and written again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

P = TypeVar("P", bound="Part")
S = TypeVar("S", bound="Seconds")


@dataclass(frozen=True, kw_only=True)
class Part:
    """An object of ``result.json``, whose entries are the fields."""

    further: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of the entries that this version knows."""
        return [entry.name for entry in fields(cls) if entry.name != "further"]

    @classmethod
    def from_json(cls: type[P], record: Mapping[str, Any]) -> P:
        """Return what ``to_json`` wrote, or another version of it."""
        further = {name: value for name, value in record.items() if name not in cls.names()}
        return cls(**known_entries(cls, record), further=further)

    @classmethod
    def among(cls: type[P], record: Mapping[str, Any]) -> P | None:
        """Return the part whose entries stand among others in ``record``; None if there is none of them."""
        own = {name: record[name] for name in cls.names() if name in record}
        return cls.from_json(own) if own else None

    def to_json(self) -> dict[str, Any]:
        """Return the entries as they stand in the file."""
        return {**{name: _written(getattr(self, name)) for name in self.names()}, **self.further}

    def keeping(self: P, old: P) -> P:
        """Return this part with what only another version wrote of the old one."""
        return replace(self, further={**old.further, **self.further})


def known_entries(kind: type, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a dataclass that ``record`` has, by the ``read`` of their metadata where there is one."""
    known = {}
    for entry in fields(kind):
        if entry.name != "further" and (value := record.get(entry.name)) is not None:
            known[entry.name] = entry.metadata["read"](value) if "read" in entry.metadata else value
    return known


def _written(value: Any) -> Any:
    if isinstance(value, Part):
        return value.to_json()
    return [_written(inner) for inner in value] if isinstance(value, tuple) else value


@dataclass(frozen=True, kw_only=True)
class Samples(Part):
    """Ids of the samples, of those of full precision, and of what they were made from, where that is images."""

    quantized: str | None = None
    fp: str | None = None
    input: str | None = None

    def to_json(self) -> dict[str, Any]:
        record = super().to_json()
        return record if self.input is not None else {key: value for key, value in record.items() if key != "input"}

    @property
    def ids(self) -> dict[str, str | None]:
        """Id by kind."""
        return {name: getattr(self, name) for name in ("fp", "quantized", "input")}


@dataclass(frozen=True, kw_only=True)
class Sizes(Part):
    """MiB by counting rule; None where it cannot be counted."""

    all_layers: float | None = None
    paper_code: float | None = None
    packed: float | None = None


@dataclass(frozen=True, kw_only=True)
class Cost(Part):
    """What ``task=cost`` counts; all is unknown of what was made elsewhere.

    ``further`` names the job as ``task=cost`` does: model, method, bits, scope.
    """

    parameters: int | None = None
    quantized_layers: int | None = None
    skip_layers: int | None = None
    full_precision_layers: int | None = None
    size_mib: Sizes = field(default_factory=Sizes, metadata={"read": Sizes.from_json})
    macs: int | None = None
    attention_macs: int | None = None
    bops: int | None = None
    full_precision_names: list[str] | None = None
    simulated: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Seconds(Part):
    """Seconds of every step; None where nobody measured it."""

    trajectories_s: float | None = None
    calibrate_s: float | None = None
    sample_s: float | None = None
    evaluate_s: float | None = None
    diagnose_s: float | None = None

    def after(self: S, old: S) -> S:
        """Return these for a result that replaces ``old``: what was only looked up now has its time from there."""
        kept = self.keeping(old)
        return replace(kept, sample_s=self.sample_s or old.sample_s, diagnose_s=self.diagnose_s or old.diagnose_s)

    @property
    def calibration(self) -> float | None:
        """What calibration and its trajectories took."""
        return None if self.calibrate_s is None else (self.trajectories_s or 0.0) + self.calibrate_s


class ProcessorTiming(Seconds):
    """The processor's seconds, which other programs on the machine do not lengthen; earlier versions have none."""

    @property
    def calibration(self) -> float | None:
        """Unknown where that of the trajectories is, as they may be of an earlier version."""
        return None if self.trajectories_s is None else super().calibration

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in super().to_json().items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Timing(Seconds):
    """Seconds by the clock and by the processor, network calls of calibration, peaks of memory."""

    processor: ProcessorTiming = field(default_factory=ProcessorTiming, metadata={"read": ProcessorTiming.from_json})
    unet_forwards_calibration: int | None = None
    peak_memory_mib: int | None = None
    calibration_peak_memory_mib: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Of images made elsewhere, which nobody calibrated here, the file says nothing of a diagnosis."""
        absent = {"diagnose_s", "calibration_peak_memory_mib"} if self.calibrate_s is None else set()
        entries = super().to_json()
        if not entries["processor"]:
            del entries["processor"]
        return {key: value for key, value in entries.items() if value is not None or key not in absent}


@dataclass(frozen=True, kw_only=True)
class CalibrationPart(Part):
    """What one stage, or its trajectories, took; a peak is None where it was not measured."""

    stage: str = ""
    seconds: float | None = None
    processor_seconds: float | None = None
    network_forwards: int | None = None
    peak_memory_mib: int | None = None
    peak_device_memory_mib: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Parts that earlier versions made have no time of the processor."""
        entries = super().to_json()
        return {key: value for key, value in entries.items() if value is not None or key != "processor_seconds"}


def largest(peaks: Iterable[int | None]) -> int | None:
    """Return the largest of all peaks; None where one is not known, or there is none."""
    listed = list(peaks)
    known = [peak for peak in listed if peak is not None]
    return max(known, default=None) if len(known) == len(listed) else None


@dataclass(frozen=True, kw_only=True)
class PlanFacts(Part):
    """Hash and mean bits of a precision plan."""

    hash: str | None = None
    mean_weight_bits: float | None = None


@dataclass(frozen=True, kw_only=True)
class Artifacts(Part):
    """Ids of the trajectories, and of the stages: pairs of name and id, in order; None where their list is damaged."""

    trajectories: str | None = None
    stages: tuple[tuple[str, str], ...] | None = ()

    @classmethod
    def from_json(cls: type[P], record: Mapping[str, Any]) -> P:
        return replace(super().from_json(record), stages=_pairs(record.get("stages", ())))


def _pairs(listed: Any) -> tuple[tuple[str, str], ...] | None:
    try:
        return tuple((str(name), str(id)) for name, id in listed)
    except (TypeError, ValueError):
        return None


@dataclass(frozen=True, kw_only=True)
class Quantization(Part):
    """Bits, scope and ranges; of what was made elsewhere also its ``name``, and what only its author has ``declared``.

    Its entries stand among those of the result, the last two only where there is a name.
    """

    bits: str
    scope: str | None = None
    ranges: str | None = None
    name: str | None = None
    declared: tuple[str, ...] = field(default=(), metadata={"read": tuple})

    def to_json(self) -> dict[str, Any]:
        absent = {"name", "declared"} if self.name is None else set()
        return {name: value for name, value in super().to_json().items() if name not in absent}


@dataclass(frozen=True, kw_only=True)
class Run(Part):
    """What is known of samples that this program drew; its entries stand among those of the result.

    input_images: how many images the samples start from, in turn; undiagnosed: why there is no diagnosis, if one was
    asked for; plan: the precision plan that was given or found, None where all rows have the job's bits.
    """

    variant: str | None = None
    task_kind: str = "generate"
    strength: float | None = None
    input_images: int | None = None
    artifacts: Artifacts = field(default_factory=Artifacts, metadata={"read": Artifacts.from_json})
    undiagnosed: str | None = None
    plan: PlanFacts | None = field(default=None, metadata={"read": PlanFacts.from_json})
    calibration: tuple[CalibrationPart, ...] = field(
        default=(), metadata={"read": lambda listed: tuple(map(CalibrationPart.from_json, listed))}
    )
