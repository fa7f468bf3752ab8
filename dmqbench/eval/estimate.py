"""A statistic of a whole set of samples, with its interval."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dmqbench.eval.protocol import Measurement, Protocol
from dmqbench.eval.statistics import Interval


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
