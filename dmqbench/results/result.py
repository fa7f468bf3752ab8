"""Finished results as a store keeps them, and which of them share a table. Imports no torch."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from dmqbench.config.schema import STAND_IN, UNKNOWN, plan_name
from dmqbench.store.artifacts import Store
from dmqbench.store.files import load_json
from dmqbench.store.manifest import Manifest, Verifier


@dataclass(frozen=True)
class Result:
    """One job's ``result.json`` and the folder in which it lies."""

    folder: Path
    record: Mapping[str, Any]

    @classmethod
    def load(cls, folder: Path) -> "Result":
        """Read a result folder; ``ValueError`` or ``OSError`` say in one line why it cannot be read."""
        record = load_json(folder / "result.json")
        absent = [key for key in ("method", "model", "bits", "metrics") if key not in record]
        if absent:
            raise ValueError(f"{folder / 'result.json'} lacks {', '.join(absent)}")
        return cls(folder, record)

    @property
    def method(self) -> str:
        return self.record["method"]

    @property
    def label(self) -> str:
        """How the row is called: what the author of foreign samples said, otherwise the method and its variant, the
        precision plan that it was given, and what it was calibrated on, if that is not what it is sampled with."""
        plan = f"({plan_name(self.given_plan)})" if self.given_plan else None
        words = self.method, self.record.get("variant"), plan, calibration_text(self.calibration)
        return self.record.get("name") or " ".join(filter(None, words))

    @property
    def given_plan(self) -> str | None:
        """Hash of the precision plan that the job was given; None where it had none, or found its own."""
        asked = ((self.record.get("config") or {}).get("bits") or {}).get("plan")
        return (self.record.get("plan") or {}).get("hash") if asked else None

    @property
    def calibration(self) -> Mapping[str, Any]:
        """How the calibrated plan differs from that of sampling, as it was configured."""
        return (self.record.get("config") or {}).get("calibration") or {}

    @property
    def budget_sizes(self) -> dict[str, Any]:
        """Name and sizes of its budget. Iterations stand in the method's settings: a key that a later method needed is
        no difference between results that do not use it."""
        budget = (self.record.get("config") or {}).get("budget") or {}
        return {key: budget.get(key) for key in ("name", "trajectories", "validation", "samples", "batch")}

    @property
    def model(self) -> str:
        return self.record["model"]

    @property
    def dataset(self) -> str | None:
        return self.record.get("dataset")

    @property
    def task(self) -> str | None:
        """What was done to given images, such as "edit strength 0.5"; None where samples come from noise alone."""
        kind, strength = self.record.get("task_kind") or "generate", self.record.get("strength")
        if kind == "generate":
            return None
        return kind if strength is None else f"{kind} strength {strength:g}"

    @property
    def bits(self) -> str:
        return self.record["bits"]

    @property
    def seed(self) -> int:
        return self.record.get("seed", 0)

    @property
    def embedded(self) -> bool:
        """Whether this project trained the model: its numbers then say nothing about a paper's."""
        return self.record.get("embedded", False)

    @property
    def full_precision(self) -> bool:
        return self.method == "fp"

    @property
    def foreign(self) -> bool:
        """Whether samples or model were made elsewhere, so that not all of the protocol is known."""
        return self.record.get("scope") == UNKNOWN

    @property
    def scope(self) -> str | None:
        """``None`` for the full-precision model, in which nothing is quantized."""
        return None if self.full_precision else self.record.get("scope")

    @property
    def ranges(self) -> str | None:
        return None if self.full_precision else self.record.get("ranges")

    @cached_property
    def metrics(self) -> Mapping[str, Mapping[str, Any]]:
        """Records by metric, without those that a stand-in for a feature network gave."""
        return {name: record for name, record in self.record["metrics"].items() if not name.startswith(STAND_IN)}

    @property
    def size_mib(self) -> float | None:
        """Every weight at its bits, in MiB: one rule for all rows; ``None`` where the bits are not known."""
        sizes = self.record.get("cost", {}).get("size_mib") or {}
        return sizes.get("all_layers")

    @property
    def calibration_seconds(self) -> float | None:
        nothing = self.full_precision or self.foreign
        return None if nothing else self.record.get("timing", {}).get("calibrate_s")

    @property
    def calibration_calls(self) -> int:
        """What calibration and its trajectories took, in network calls of batch 1; 0 where nothing was calibrated."""
        return (self.record.get("timing") or {}).get("unet_forwards_calibration") or 0

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


def load_store(root: Path, on_damage: Callable[[str], None]) -> list[Result]:
    """Return the finished results of the run store ``root``, sorted by ``Result.rank``.

    Only what a manifest vouches for is read; ``on_damage`` gets one line for each result that is left out.
    Nothing is moved or written, so a read-only store will do.
    """
    store, verifier = Store(root), Verifier()
    results = []
    for id in store.ids("result"):
        folder = store.path("result", id)
        try:
            manifest = Manifest.load(folder, "result", id)
            problems = [f"{name} {problem}" for name, entry in manifest.files.items()
                        if (problem := verifier.problem(folder, name, entry))]  # fmt: skip
            if problems:
                raise ValueError(problems[0])
            results.append(Result.load(folder))
        except (OSError, ValueError) as error:
            on_damage(f"result {id} is left out: {error}")
    return sorted(results, key=lambda result: result.rank)


def score(record: Mapping[str, Any]) -> float | None:
    """Return the value so that more is better; ``None`` where it is absent or its direction unknown.

    Identical images, which have no value, count as perfect.
    """
    if record.get("exact"):
        return math.inf
    higher, value = record.get("higher_is_better"), record.get("value")
    if higher is None or value is None:
        return None
    return value if higher else -value


def _natural(text: str) -> list[str | int]:
    """A sorting key by which group5 comes before group10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


def calibration_text(calibration: Mapping[str, Any]) -> str:
    """How the calibrated plan differs from that of sampling, in a few words; "" if it does not.

    Of calls at other timesteps than the calibrated ones it is said how they are matched, unless by the nearest.
    """
    said = {key: value for key, value in calibration.items() if key != "match" and value is not None}
    if "steps" in said and calibration.get("match") == "interpolate":
        said["match"] = "interpolate"
    return ", ".join(f"calibration.{key}={value}" for key, value in said.items())


Pixels = NDArray[np.uint8]


def first_images(store: Store, id: str, count: int) -> Pixels:
    """Read the first ``count`` images of a samples artifact, and no more chunks than that takes."""
    parts: list[Pixels] = []
    for chunk in sorted(store.path("samples", id).glob("chunk_*.safetensors")):
        if sum(len(part) for part in parts) >= count:
            break
        with safe_open(chunk, framework="numpy") as tensors:
            parts.append(tensors.get_tensor("images"))
    if not parts:
        raise ValueError(f"the store holds no samples {id}")
    return np.concatenate(parts)[:count]


def printable(text: str) -> str:
    """Return a name from a store as one line without control characters, which could command a terminal."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(text))
