"""Settings of learned equivalent scaling."""

from dataclasses import dataclass

from dmqbench.calibration.stage import MIB
from dmqbench.quant.weighting import TimestepWeighting

LARGEST_RATE = 0.1
"""Learning rate beyond which τ, which starts at 1, would be thrown about rather than learned."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How τ is learned, and under which error."""

    iterations: int
    """Adam steps of every layer, with a cosine schedule to 0."""
    batch: int
    """Bank points in one step."""
    samples: int
    """Bank points in all."""
    travel: float
    """Learning rate × iterations: 6 is the paper's 1e-3 × 6,000, and fewer iterations then reach as far (at a rate of
    at most ``LARGEST_RATE``)."""
    ranges: str
    """The activation range under which τ learns: ``batch``, that of each mini-batch, which mixes steps (the published
    form); ``deployed``, that of all calibration points in each row of steps."""
    zero_in_range: bool
    """Whether weight ranges are widened to hold zero while τ is learned, as they are afterwards."""
    clipping: str = "before_rounding"
    """Which values count as inside the grid when gradients are taken: see ``functional.CLIPPINGS``."""
    weighting: str
    """``uniform``, ``linear``, ``quadratic`` or ``adaptive``: see ``TimestepWeighting``, as for the next two."""
    strength: float
    momentum: float
    bins: int
    """Bins of the weighting, equal runs of network calls; 0: every call has its own."""
    bin_error: str
    """``mean``, or ``sum`` as in the published code: see ``TimestepWeighting``."""
    patience: int
    """A layer stops when its held-out error has not improved for so many slices of 25 iterations, and the best τ is
    kept, be it 1; with 0 the last one is, as published."""
    schedule: str
    """``joint``: all layers learn from one pass per step; ``cached``: one after another from kept inputs; ``auto``: the
    one with fewer passes of the network."""
    memory_mib: int
    """Bound in MiB on the inputs and outputs that are kept together (a single layer may need more where ``schedule`` is
    ``cached``), and on what one layer's step keeps for its backward pass."""

    absorb: bool = False
    """Whether τ goes into what writes a layer's input, where that is exact: see ``models.absorption``."""

    @property
    def learning_rate(self) -> float:
        return min(self.travel / self.iterations, LARGEST_RATE)

    @property
    def deployed(self) -> bool:
        return self.ranges == "deployed"

    @property
    def memory(self) -> int:
        """``memory_mib`` in bytes."""
        return self.memory_mib * MIB

    @property
    def timestep_weighting(self) -> TimestepWeighting:
        return TimestepWeighting(self.weighting, self.strength, self.momentum, self.bin_error)
