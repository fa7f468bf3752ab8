"""A finished result: what one job says of itself and of its samples."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from dmqbench.config.checked_job import plan_name
from dmqbench.config.names import STAND_IN, UNKNOWN
from dmqbench.config.schema import model_label
from dmqbench.eval.measurement import Measurement
from dmqbench.models.planted import Planted
from dmqbench.models.precision import FLOAT32
from dmqbench.results.record import (
    CalibrationPart,
    Cost,
    Quantization,
    Run,
    Samples,
    Timing,
    known_entries,
)
from dmqbench.store.files import load_json


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one job found, as ``result.json`` has it (design, section 5), and the folder in which that lies.

    model_name: of its YAML; ``model`` is how it is called. measured: the latest value of every metric; records: all
    that were ever measured of these samples, by metric and protocol id. missing_weights: those of the unavailable
    metrics that may become available. run: None where the samples were made elsewhere; notes: what was seen in their
    files. further: entries that only other versions know.
    """

    job_id: str
    method: str
    model_name: str
    quantization: Quantization
    dataset: str | None = None
    seed: int = 0
    embedded: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    samples: Samples = field(default_factory=Samples, metadata={"read": Samples.from_json})
    measured: Mapping[str, Measurement] = field(default_factory=dict)
    records: Mapping[tuple[str, str], Measurement] = field(
        default_factory=dict, metadata={"read": lambda listed: _records(listed)}
    )
    unavailable: Mapping[str, str] = field(default_factory=dict)
    missing_weights: tuple[str, ...] = field(default=(), metadata={"read": tuple})
    cost: Cost = field(default_factory=Cost, metadata={"read": Cost.from_json})
    timing: Timing = field(default_factory=Timing, metadata={"read": Timing.from_json})
    environment: Mapping[str, Any] = field(default_factory=dict)
    run: Run | None = None
    notes: tuple[str, ...] | None = field(default=None, metadata={"read": tuple})
    further: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = field(default=Path(), compare=False)

    @classmethod
    def load(cls, folder: Path) -> "Result":
        """Read a result folder; ``ValueError`` or ``OSError`` say in one line why it cannot be read."""
        path = folder / "result.json"
        record = load_json(path)
        try:
            return cls.from_json(record, folder)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no result ({type(error).__name__}: {error})") from None

    @classmethod
    def from_json(cls, record: Mapping[str, Any], folder: Path = Path()) -> "Result":
        """Return what ``to_json`` wrote, or another version of it: the only place that forgives what is absent."""
        absent = [key for key in ("method", "model", "bits", "metrics") if key not in record]
        if absent:
            raise ValueError(f"it lacks {', '.join(absent)}")
        measured = {name: Measurement.from_json(entry) for name, entry in record["metrics"].items()}
        known = {
            "job_id": folder.name,
            "missing_weights": tuple(record.get("unavailable") or ()),
            "records": records_of(measured),
            **known_entries(cls, record),
            "model_name": record["model"],
            "quantization": Quantization.among(record),
            "measured": measured,
            "run": Run.among(record),
            "further": {key: value for key, value in record.items() if key not in _KEYS},
            "folder": folder,
        }
        return cls(**known)

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``result.json``."""
        return {
            "job_id": self.job_id,
            "method": self.method,
            "model": self.model_name,
            **self.quantization.to_json(),
            "dataset": self.dataset,
            "seed": self.seed,
            "embedded": self.embedded,
            "config": dict(self.config),
            "samples": self.samples.to_json(),
            "metrics": {name: measurement.to_json() for name, measurement in self.measured.items()},
            "records": [{"metric": metric, **value.to_json()} for (metric, _), value in self.records.items()],
            "unavailable": dict(self.unavailable),
            "missing_weights": list(self.missing_weights),
            "cost": self.cost.to_json(),
            "timing": self.timing.to_json(),
            "environment": dict(self.environment),
            **({} if self.run is None else self.run.to_json()),
            **({} if self.notes is None else {"notes": list(self.notes)}),
            **self.further,
        }

    @property
    def label(self) -> str:
        """How the row is called: what the author of foreign samples said, otherwise the method and its variant, the
        precision plan that it was given, and what it was calibrated on, if that is not what it is sampled with."""
        plan = f"({plan_name(self.given_plan)})" if self.given_plan else None
        words = self.method, self.variant, plan, calibration_text(self.settings("calibration"))
        return self.quantization.name or " ".join(filter(None, words))

    @property
    def variant(self) -> str | None:
        return self._run.variant

    @property
    def given_plan(self) -> str | None:
        """Hash of the precision plan that the job was given; None where it had none, or found its own."""
        plan = self._run.plan
        return plan.hash if plan is not None and self.settings("bits").get("plan") else None

    def settings(self, group: str) -> Mapping[str, Any]:
        """Return a group of the job's configuration; empty where it is not known."""
        return self.config.get(group) or {}

    def stage_settings(self, stage: str) -> Mapping[str, Any]:
        """Return the settings of one stage of its method; empty where they are not known."""
        return self.settings("method").get(stage) or {}

    @property
    def budget_sizes(self) -> dict[str, Any]:
        """Name and sizes of its budget. Iterations stand in the method's settings: a key that a later method needed is
        no difference between results that do not use it."""
        budget = self.settings("budget")
        return {key: budget.get(key) for key in ("name", "trajectories", "validation", "samples", "batch")}

    @property
    def model(self) -> str:
        """How the model is called: of folders and repositories of one's own, each by its own name."""
        model = self.settings("model")
        planted = Planted.stated(model.get("planted")).text
        return model_label(self.model_name, model.get("path"), model.get("dtype", FLOAT32), model.get("size"), planted)

    @property
    def task(self) -> str | None:
        """What was done to given images, such as "edit strength 0.5"; None where samples come from noise alone."""
        kind, strength = self._run.task_kind, self._run.strength
        if kind == "generate":
            return None
        return kind if strength is None else f"{kind} strength {strength:g}"

    @property
    def input_images(self) -> int | None:
        """How many images the samples start from, in turn; None where they start from noise, or it is not known."""
        return self._run.input_images

    @property
    def undiagnosed(self) -> str | None:
        """Why there is no diagnosis, if one was asked for."""
        return self._run.undiagnosed

    @property
    def stages(self) -> tuple[tuple[str, str], ...] | None:
        """Name and id of every stage, in order; None where their list is damaged."""
        return self._run.artifacts.stages

    @property
    def calibration(self) -> tuple[CalibrationPart, ...]:
        """What each part of the calibration took."""
        return self._run.calibration

    @property
    def _run(self) -> Run:
        return Run() if self.run is None else self.run

    @property
    def bits(self) -> str:
        return self.quantization.bits

    @property
    def declared_bits(self) -> bool:
        """Whether the author of the samples said the bits, and nothing here has seen them."""
        return "bits" in self.quantization.declared and self.bits != UNKNOWN

    @property
    def full_precision(self) -> bool:
        return self.method == "fp"

    @property
    def foreign(self) -> bool:
        """Whether samples or model were made elsewhere, so that not all of the protocol is known."""
        return self.quantization.scope == UNKNOWN

    @property
    def scope(self) -> str | None:
        """``None`` for the full-precision model, in which nothing is quantized."""
        return None if self.full_precision else self.quantization.scope

    @property
    def ranges(self) -> str | None:
        return None if self.full_precision else self.quantization.ranges

    @cached_property
    def measurements(self) -> Mapping[str, Measurement]:
        """Values by metric, without those that a stand-in for a feature network gave."""
        return {name: measurement for name, measurement in self.measured.items() if not name.startswith(STAND_IN)}

    def value(self, metric: str) -> float | None:
        """Return the value of a metric; None where it has none or was not measured."""
        measurement = self.measurements.get(metric)
        return None if measurement is None else measurement.value

    @property
    def size_mib(self) -> float | None:
        """Every weight at its bits, in MiB: one rule for all rows; ``None`` where the bits are not known."""
        return self.cost.size_mib.all_layers

    @property
    def calibration_seconds(self) -> float | None:
        return None if self.full_precision or self.foreign else self.timing.calibrate_s

    @property
    def calibration_calls(self) -> int:
        """What calibration and its trajectories took, in network calls of batch 1; 0 where nothing was calibrated."""
        return self.timing.unet_forwards_calibration or 0

    @property
    def rank(self) -> tuple[Any, ...]:
        """Sorting key: full precision, then by falling bits, those unknown last, then by name, ranges and seed."""
        widths = [int(digits) for digits in re.findall(r"\d+", self.bits)]
        falling = tuple(-width for width in widths)
        return (not self.full_precision, not widths, falling, self.label, _natural(self.ranges or ""), self.seed)

    @cached_property
    def per_image(self) -> Mapping[str, list[float | None]]:
        """Values of the paired metrics, one per pair in index order; empty where none were kept."""
        path = self.folder / "per_image.json"
        return load_json(path) if path.exists() else {}


_OTHERWISE = {"model_name", "quantization", "measured", "run", "further", "folder"}
"""Fields that have no entry of their own name."""

_KEYS = {entry.name for entry in fields(Result)} - _OTHERWISE | {
    "model",
    "metrics",
    *Quantization.names(),
    *Run.names(),
}
"""Entries of ``result.json`` that this version knows."""


def records_of(measured: Mapping[str, Measurement]) -> dict[tuple[str, str], Measurement]:
    """Return the values by metric and protocol id."""
    return {(name, measurement.protocol): measurement for name, measurement in measured.items()}


def _records(listed: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Measurement]:
    records = {}
    for record in listed:
        measurement = Measurement.from_json({key: value for key, value in record.items() if key != "metric"})
        records[record["metric"], measurement.protocol] = measurement
    return records


def _natural(text: str) -> list[str | int]:
    """A sorting key by which group5 comes before group10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


def calibration_text(calibration: Mapping[str, Any]) -> str:
    """How the calibrated plan differs from that of sampling, in a few words; "" if it does not.

    Of calls at other timesteps than the calibrated ones it is said how they are matched, unless by the nearest.
    """
    apart = ("match", "bias_correction")  # one is said below, the other by the variant of the method
    changes = {key: value for key, value in calibration.items() if key not in apart and value is not None}
    if "steps" in changes and calibration.get("match") == "interpolate":
        changes["match"] = "interpolate"
    return ", ".join(f"calibration.{key}={value}" for key, value in changes.items())


def printable(text: str) -> str:
    """Return a name from a store as one line without control characters, which could command a terminal."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(text))
