"""Finished results as a store keeps them, and which of them share a table. Imports no torch."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from dmqbench.config.compose import calibration_text
from dmqbench.config.schema import METRICS, STAND_IN, UNKNOWN, plan_name
from dmqbench.eval.protocol import agree, differing_entries
from dmqbench.store.artifacts import Store
from dmqbench.store.files import load_json
from dmqbench.store.manifest import Manifest, Verifier

_FULL_PRECISION_FREE = ("scope", "engine")
"""Entries that say nothing of a model in which nothing is quantized."""


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


@dataclass(frozen=True)
class Table:
    """Results whose columns each have one protocol, in the order of ``Result.rank``."""

    rows: tuple[Result, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that any row has, in the order of ``schema.METRICS``."""
        known = list(METRICS)
        found = dict.fromkeys(chain.from_iterable(row.metrics for row in self.rows))
        return tuple(sorted(found, key=lambda name: known.index(name) if name in known else len(known)))

    @property
    def scope(self) -> str | None:
        known = [row.scope for row in self.rows if not row.full_precision]
        return next((scope for scope in known if scope != UNKNOWN), known[0] if known else None)

    def accepts(self, result: Result) -> bool:
        """Whether ``result`` has the rows' model, task, dataset and scope, and their protocol in every metric."""
        return all(_comparable(row, result) for row in self.rows)

    def protocols(self, metric: str) -> tuple[str, ...]:
        """Distinct protocol ids of one column; those that leave something open come last."""
        rows = sorted(self.rows, key=_leaves_open)
        return tuple(dict.fromkeys(row.metrics[metric]["protocol"] for row in rows if metric in row.metrics))


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


def comparable_tables(results: Iterable[Result]) -> list[Table]:
    """Return tables in which no column mixes protocols and no table scopes; first come, first served.

    A full-precision row, or one made elsewhere, stands in every table that it can be compared with.
    """
    ordered = sorted(results, key=_home)
    tables: list[Table] = []
    for result in (result for result in ordered if not _leaves_open(result)):
        _place(result, tables)
    for result in (result for result in ordered if _leaves_open(result)):
        homes = [index for index, table in enumerate(tables) if table.accepts(result)]
        for index in homes:
            tables[index] = Table((*tables[index].rows, result))
        if not homes:
            tables.append(Table((result,)))
    return [Table(tuple(sorted(table.rows, key=lambda row: row.rank))) for table in tables]


def _home(result: Result) -> tuple[Any, ...]:
    """A sorting key that puts results together that may share a table."""
    return result.model, str(result.dataset), result.task or "", str(result.scope), result.rank


def why_apart(tables: Sequence[Table]) -> str | None:
    """Say in one line what keeps the results of one model in several tables; ``None`` if nothing does."""
    if len(tables) < 2:
        return None
    differences: dict[str, tuple[str, ...]] = {}
    for metric in dict.fromkeys(chain.from_iterable(table.metrics for table in tables)):
        first = [table.protocols(metric)[0] for table in tables if metric in table.metrics]
        differences |= differing_entries(first)
    tasks = tuple(dict.fromkeys(table.rows[0].task or "generate" for table in tables))
    if len(tasks) > 1:
        differences["task"] = tasks
    scopes = tuple(dict.fromkeys(str(table.scope) for table in tables if table.scope))
    if len(scopes) > 1:
        differences["scope"] = scopes
    datasets = tuple(dict.fromkeys(str(table.rows[0].dataset) for table in tables))
    if len(datasets) > 1:
        differences["dataset"] = datasets
    shown = "; ".join(f"{key} {' | '.join(values)}" for key, values in differences.items())
    return f"in separate tables, because the protocols differ: {shown or 'in a part that only the hash shows'}"


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


def _leaves_open(result: Result) -> bool:
    """Whether its protocol fits more than one other: nothing is quantized, or not all is known."""
    return result.full_precision or result.foreign


def _place(result: Result, tables: list[Table]) -> None:
    for index, table in enumerate(tables):
        if table.accepts(result):
            tables[index] = Table((*table.rows, result))
            return
    tables.append(Table((result,)))


def _comparable(a: Result, b: Result) -> bool:
    if (a.model, a.dataset, a.task) != (b.model, b.dataset, b.task):
        return False
    scope_free = a.full_precision or b.full_precision
    if not scope_free and a.scope != b.scope and UNKNOWN not in (a.scope, b.scope):
        return False
    shared = a.metrics.keys() & b.metrics.keys()
    pairs = ((a.metrics[name]["protocol"], b.metrics[name]["protocol"]) for name in shared)
    return all(agree(ours, theirs, _FULL_PRECISION_FREE if scope_free else ()) for ours, theirs in pairs)
