"""A metric value with its interval, floor and protocol id. Imports no torch: reports read it."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from dmqbench.eval.protocol import Protocol, metric_of
from dmqbench.eval.statistics import Interval, Replicated

_ID = re.compile(r"\S+/\d+( \S+=\S+)* #[0-9a-f]{8}")


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
        record = {"value": self.value, "ci95": _as_list(self.ci95), "n": self.n, "protocol": self.protocol}
        optional = {
            "exact": self.exact or None,
            "higher_is_better": self.higher_is_better,
            "floor": None if self.floor is None else self.floor.to_json(),
            "extra": dict(self.extra) or None,
        }
        return {**record, **{key: entry for key, entry in optional.items() if entry is not None}, **self.further}

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

    @classmethod
    def of(cls, statistic: Replicated, ci95: Interval, **extra: Any) -> "Estimate":
        """Return the estimate of a statistic; its pairs serve the interval of a difference."""
        pairs = {"pairs": list(statistic.pairs)} if statistic.pairs else {}
        return cls(statistic.value, ci95, statistic.n, statistic.replicates, {**extra, **pairs})

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
