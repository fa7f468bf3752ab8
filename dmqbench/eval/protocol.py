"""A metric value and the protocol without which it cannot exist. Imports no torch: reports read it.

``Protocol`` lists everything that determines how a value was measured; its ``id`` is one readable line.
Values with different ids are different quantities and refuse to share a column.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from dmqbench.config.names import UNKNOWN

_ALWAYS_SAID = ("seed", "sampler", "timesteps", "eta", "guidance", "chunk", "engine")
"""Entries that every value has, unless they are listed as unknown."""

_SHOWN_AS = {"timesteps": "steps"}


class MetricUnavailable(ValueError):
    """The metric cannot be computed from what is here; the message is the reason that a result lists."""


class WeightsMissing(MetricUnavailable):
    """The weights of its feature network are not here; they may come, and then it can."""


@dataclass(frozen=True)
class FeatureNetwork:
    """A feature network as it stands in a protocol: its name, the hash of its weights, what it does to images first."""

    extractor: str
    extractor_hash: str
    resize: str


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
    timesteps: tuple[float, ...]
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
    first, second = entries_of(a), entries_of(b)
    free = {*ignoring, *(key for entries in (first, second) for key, value in entries.items() if value == UNKNOWN)}
    if not free:
        return False
    return all(first.get(key) == second.get(key) for key in {*first, *second} - free)


def unknown_entries(protocol: str) -> tuple[str, ...]:
    """Return the names of the entries that this id calls unknown."""
    return tuple(key for key, value in entries_of(protocol).items() if value == UNKNOWN)


def _with_hash(word: str | None, digest: str | None) -> str | None:
    return word if word is None or digest is None else f"{word}@{digest[:8]}"


def _short_hash(value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.6g}"
