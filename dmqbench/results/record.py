"""The parts of a result as ``result.json`` has them. Imports no torch.

Files of other versions are forgiven here and in ``Result.from_json``, and nowhere else: an entry that is absent is None
or empty; one that this version does not know is kept in ``further`` and written again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

P = TypeVar("P", bound="Part")


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
        known = {name: value for name, value in record.items() if name in cls.names()}
        return cls(**known, further={name: value for name, value in record.items() if name not in known})

    def to_json(self) -> dict[str, Any]:
        """Return the entries as they stand in the file."""
        return {**{name: getattr(self, name) for name in self.names()}, **self.further}

    def keeping(self: P, old: P) -> P:
        """Return this part with what only another version wrote of the old one."""
        return replace(self, further={**old.further, **self.further})


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
    size_mib: Sizes = field(default_factory=Sizes)
    macs: int | None = None
    attention_macs: int | None = None
    bops: int | None = None
    full_precision_names: list[str] | None = None
    simulated: bool | None = None

    @classmethod
    def from_json(cls: type[P], record: Mapping[str, Any]) -> P:
        return super().from_json({**record, "size_mib": Sizes.from_json(record.get("size_mib") or {})})

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "size_mib": self.size_mib.to_json()}


@dataclass(frozen=True, kw_only=True)
class Timing(Part):
    """Seconds of every step, network calls of calibration, peaks of memory; None where nobody measured it."""

    trajectories_s: float | None = None
    calibrate_s: float | None = None
    sample_s: float | None = None
    evaluate_s: float | None = None
    diagnose_s: float | None = None
    unet_forwards_calibration: int | None = None
    peak_memory_mib: int | None = None
    calibration_peak_memory_mib: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Of images made elsewhere, which nobody calibrated here, the file says nothing of a diagnosis."""
        absent = {"diagnose_s", "calibration_peak_memory_mib"} if self.calibrate_s is None else set()
        return {key: value for key, value in super().to_json().items() if value is not None or key not in absent}


@dataclass(frozen=True, kw_only=True)
class CalibrationPart(Part):
    """What one stage, or its trajectories, took; a peak is None where it was not measured."""

    stage: str = ""
    seconds: float | None = None
    network_forwards: int | None = None
    peak_memory_mib: int | None = None
    peak_device_memory_mib: int | None = None


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
        return super().from_json({**record, "stages": _pairs(record.get("stages", ()))})

    def to_json(self) -> dict[str, Any]:
        stages = None if self.stages is None else [list(stage) for stage in self.stages]
        return {**super().to_json(), "stages": stages}


def _pairs(listed: Any) -> tuple[tuple[str, str], ...] | None:
    try:
        return tuple((str(name), str(id)) for name, id in listed)
    except (TypeError, ValueError):
        return None


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Bits, scope and ranges; of what was made elsewhere also its ``name``, and what only its author has ``declared``.

    Its entries stand among those of the result, the last two only where there is a name.
    """

    bits: str
    scope: str | None = None
    ranges: str | None = None
    name: str | None = None
    declared: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Quantization":
        known = {key: record[key] for key in QUANTIZATION_KEYS if key in record}
        return cls(**{**known, "declared": tuple(record.get("declared") or ())})

    def to_json(self) -> dict[str, Any]:
        record: dict[str, Any] = {"bits": self.bits, "scope": self.scope, "ranges": self.ranges}
        return record if self.name is None else {**record, "name": self.name, "declared": list(self.declared)}


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is known of samples that this program drew; its entries stand among those of the result.

    input_images: how many images the samples start from, in turn; undiagnosed: why there is no diagnosis, if one was
    asked for; plan: the precision plan that was given or found, None where all rows have the job's bits.
    """

    variant: str | None = None
    task_kind: str = "generate"
    strength: float | None = None
    input_images: int | None = None
    artifacts: Artifacts = field(default_factory=Artifacts)
    undiagnosed: str | None = None
    plan: PlanFacts | None = None
    calibration: tuple[CalibrationPart, ...] = ()

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Run":
        """Return what ``to_json`` wrote; files from before there was an entry lack it."""
        known = {key: record[key] for key in RUN_KEYS if key in record}
        plan = record.get("plan")
        parsed = {
            "task_kind": record.get("task_kind") or "generate",
            "artifacts": Artifacts.from_json(record.get("artifacts") or {}),
            "plan": None if plan is None else PlanFacts.from_json(plan),
            "calibration": tuple(CalibrationPart.from_json(part) for part in record.get("calibration") or ()),
        }
        return cls(**known | parsed)

    def to_json(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in RUN_KEYS},
            "artifacts": self.artifacts.to_json(),
            "plan": None if self.plan is None else self.plan.to_json(),
            "calibration": [part.to_json() for part in self.calibration],
        }


QUANTIZATION_KEYS = tuple(entry.name for entry in fields(Quantization))
RUN_KEYS = tuple(entry.name for entry in fields(Run))
