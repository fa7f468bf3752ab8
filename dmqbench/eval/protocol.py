"""A metric value and the protocol without which it cannot exist. Imports no torch: reports read it.

``Protocol`` lists everything that determines how a value was measured; its ``id`` is one readable line.
Values with different ids are different quantities and refuse to share a column.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from dmqbench.config.schema import UNKNOWN
from dmqbench.eval.statistics import Interval

_ALWAYS_SAID = ("seed", "sampler", "timesteps", "eta", "guidance", "chunk", "engine")
"""Entries that every value has, unless they are listed as unknown."""

_SHOWN_AS = {"timesteps": "steps"}

_ID = re.compile(r"\S+/\d+( \S+=\S+)* #[0-9a-f]{8}")


class MetricUnavailable(ValueError):
    """The metric cannot be computed from what is here; the message is the reason that a result lists."""


class WeightsMissing(MetricUnavailable):
    """The weights of its feature network are not here; they may come, and then it can."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a value was measured. ``None`` means that the entry does not apply to this metric.

    metric, version: name of the metric and the integer raised when its numbers change.
    tool: the implementation ("dmqbench", "torchmetrics").
    extractor, extractor_hash: feature network and the hash of its weights; resize: what was done before it.
    rounding: "uint8" images or "float32" states; n: images (or pairs) that entered the value.
    reference, reference_hash: what was compared with ("fp" samples, a dataset) and its content.
    seed: ``metrics.seed``; sampler, timesteps, eta, guidance, clip: how the samples were drawn.
    unknown: names of entries that nobody told this program, for samples or models made elsewhere.
    saved: the lossy format in which images came, if any.
    task, strength: of samples that were restored or edited, and the share of the sampler's steps that they took.
    base: id of the full-precision samples of the same model, sampler, seed and device: it stands for their details.
    scope: what stays in full precision (``None`` for the full-precision model: nothing is quantized).
    chunk, engine: what the samples' bits depend on besides.
    """

    metric: str
    version: int
    tool: str
    rounding: str
    n: int
    seed: int | None
    sampler: str | None
    timesteps: tuple[int, ...]
    eta: float | None
    guidance: float | None
    chunk: int | None
    engine: str | None
    base: str | None = None
    scope: str | None = None
    clip: float | None = None
    extractor: str | None = None
    extractor_hash: str | None = None
    resize: str | None = None
    reference: str | None = None
    reference_hash: str | None = None
    unknown: tuple[str, ...] = ()
    saved: str | None = None
    task: str | None = None
    strength: float | None = None

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"{self.metric}: a protocol needs at least one image, got n={self.n}")
        for name in (*_ALWAYS_SAID, *self.unknown):
            if (getattr(self, name) in (None, ())) != (name in self.unknown):
                raise ValueError(f"protocol: {name} must be given, or be listed as unknown and absent")
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, str) and (not value or re.search(r"[\s=#]", value)):
                raise ValueError(f"protocol: {entry.name}={value!r} must be one word without '=' and '#'")

    @property
    def id(self) -> str:
        """One line: metric/version, the entries that apply, and a hash over all of them, exact."""
        entries = {
            "tool": self.tool,
            "n": self.n,
            "rounding": self.rounding,
            "extractor": _with_hash(self.extractor, self.extractor_hash),
            "resize": self.resize,
            "reference": _with_hash(self.reference, self.reference_hash),
            "seed": self.seed,
            "sampler": self.sampler,
            "steps": _with_hash(str(len(self.timesteps)), _short_hash(list(self.timesteps))),
            "eta": _number(self.eta),
            "guidance": _number(self.guidance),
            "clip": _number(self.clip),
            "base": None if self.base is None else self.base[:8],
            "scope": self.scope,
            "chunk": self.chunk,
            "engine": self.engine,
            "saved": self.saved,
            "task": self.task,
            "strength": _number(self.strength),
        }
        entries |= {_SHOWN_AS.get(name, name): UNKNOWN for name in self.unknown}
        facts = asdict(self)
        for name in ("unknown", "saved", "task", "strength"):
            if not facts[name]:
                del facts[name]  # ids from before there were such samples stay what they are
        shown = " ".join(f"{key}={value}" for key, value in entries.items() if value is not None)
        return f"{self.metric}/{self.version} {shown} #{_short_hash(facts)}"


@dataclass(frozen=True)
class Floor:
    """What the metric reads when nothing was quantized, so that a value can be judged against it.

    "numerical": full precision against itself perturbed by 1e-7; "other_seed": its samples against its own samples of
    another seed, which is what chance alone makes of two sets of this size.
    """

    kind: Literal["numerical", "other_seed"]
    value: float | None
    n: int
    ci95: tuple[float, float] | None = None

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Floor":
        return cls(record["kind"], record["value"], record["n"], _as_interval(record.get("ci95")))

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"ci95": _as_list(self.ci95)}


@dataclass(frozen=True)
class Measurement:
    """One metric value with its 95 % interval, the number of images, and its protocol id.

    ``exact`` means that all pairs are identical; ``value`` is then ``None`` where the metric is infinite.
    ``extra`` holds further JSON numbers ("identical", "debiased"); ``further`` entries that only other versions know.
    """

    value: float | None
    ci95: tuple[float, float] | None
    n: int
    protocol: str
    exact: bool = False
    higher_is_better: bool | None = None
    floor: Floor | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    further: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.protocol):
            raise ValueError(f"a value needs its protocol id (Protocol.id), got {self.protocol!r}")
        if self.value is None and not self.exact:
            raise ValueError(f"{metric_of(self.protocol)}: only an exact result has no value")
        numbers = [number for number in (self.value, *(self.ci95 or ())) if number is not None]
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"{metric_of(self.protocol)}: value and interval must be finite, got {numbers}")

    def to_json(self) -> dict[str, Any]:
        """Return the record as it stands in ``result.json``; entries that say nothing are left out."""
        record: dict[str, Any] = {
            "value": self.value,
            "ci95": _as_list(self.ci95),
            "n": self.n,
            "protocol": self.protocol,
        }
        if self.exact:
            record["exact"] = True
        if self.higher_is_better is not None:
            record["higher_is_better"] = self.higher_is_better
        if self.floor is not None:
            record["floor"] = self.floor.to_json()
        return {**record, **({"extra": dict(self.extra)} if self.extra else {}), **self.further}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Measurement":
        """Return the measurement that ``to_json`` wrote, or an older version of it."""
        floor = record.get("floor")
        known = {entry.name for entry in fields(cls)}
        return cls(
            value=record["value"],
            ci95=_as_interval(record.get("ci95")),
            n=record["n"],
            protocol=record["protocol"],
            exact=record.get("exact", False),
            higher_is_better=record.get("higher_is_better"),
            floor=None if floor is None else Floor.from_json(floor),
            extra=record.get("extra", {}),
            further={key: value for key, value in record.items() if key not in known},
        )

    @property
    def score(self) -> float | None:
        """The value so that more is better, infinite for identical images; None where the direction is unknown."""
        if self.exact:
            return math.inf
        if self.higher_is_better is None or self.value is None:
            return None
        return self.value if self.higher_is_better else -self.value


def metric_of(protocol: str) -> str:
    """Return the metric's name from a protocol id."""
    return protocol.partition("/")[0]


def entries_of(protocol: str) -> dict[str, str]:
    """Return the readable entries of a protocol id; "version" is its first word, the hash is left out."""
    head, *words = protocol.split(" ")
    entries = dict(word.split("=", 1) for word in words if "=" in word)
    return {"version": head, **entries}


def differing_entries(protocols: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the entries in which the ids differ, each with its distinct values ("-" where absent)."""
    parsed = [entries_of(protocol) for protocol in protocols]
    keys = dict.fromkeys(key for entries in parsed for key in entries)
    values = {key: tuple(dict.fromkeys(entries.get(key, "-") for entries in parsed)) for key in keys}
    return {key: seen for key, seen in values.items() if len(seen) > 1}


def agree(a: str, b: str, ignoring: Iterable[str] = ()) -> bool:
    """Whether two ids are of one protocol: equal, or equal in all that both know and that is not to be ignored."""
    if a == b:
        return True
    ours, theirs = entries_of(a), entries_of(b)
    free = {*ignoring, *(key for entries in (ours, theirs) for key, value in entries.items() if value == UNKNOWN)}
    if not free:
        return False
    return all(ours.get(key) == theirs.get(key) for key in {*ours, *theirs} - free)


def unknown_entries(protocol: str) -> tuple[str, ...]:
    """Return the names of the entries that this id calls unknown."""
    return tuple(key for key, value in entries_of(protocol).items() if value == UNKNOWN)


def same_protocol(values: Iterable[Measurement]) -> str:
    """Return the one protocol id that all ``values`` share; ``ValueError`` names the entries that differ."""
    protocols = list(dict.fromkeys(value.protocol for value in values))
    if not protocols:
        raise ValueError("no values: there is no protocol to share")
    if len(protocols) > 1:
        differences = differing_entries(protocols)
        shown = "; ".join(f"{key}: {' | '.join(seen)}" for key, seen in differences.items())
        raise ValueError(f"{metric_of(protocols[0])}: values of different protocols do not compare ({shown})")
    return protocols[0]


def _with_hash(word: str | None, digest: str | None) -> str | None:
    return word if word is None or digest is None else f"{word}@{digest[:8]}"


def _short_hash(value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.6g}"


def _as_list(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)


def _as_interval(pair: list[float] | None) -> tuple[float, float] | None:
    return None if pair is None else (pair[0], pair[1])


@dataclass(frozen=True)
class Estimate:
    """The plug-in ``value`` at this ``n`` and the interval of its expectation at this n.

    ``replicates`` are its values without each of the groups of consecutive samples (``statistics.group_edges``): with
    those of another method on the same seeds they give the interval of the difference. ``extra`` holds further
    numbers, such as "debiased".
    """

    value: float
    ci95: Interval | None
    n: int
    replicates: tuple[float, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def measurement(self, protocol: Protocol, higher_is_better: bool) -> Measurement:
        """Return the record of this estimate under ``protocol``, which must speak of as many samples."""
        if protocol.n != self.n:
            raise ValueError(f"{protocol.metric}: {self.n} samples cannot carry a protocol of n={protocol.n}")
        return Measurement(
            value=self.value,
            ci95=self.ci95,
            n=self.n,
            protocol=protocol.id,
            higher_is_better=higher_is_better,
            extra={**self.extra, **({"replicates": list(self.replicates)} if self.replicates else {})},
        )
