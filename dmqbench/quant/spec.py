"""What is quantized how: frozen, torch-free descriptions."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

FULL_PRECISION = 32
ENGINE_NAMES = ("simulate", "int_reference")
"""How a frozen layer can be computed; ``engines.ENGINES`` has a function for each."""

GRANULARITIES = ("tensor", "token")
"""What of an activation shares a range: all of it, calibrated; or in linear layers each token, taken as it comes."""

SMALLEST_WEIGHT_BITS, LARGEST_WEIGHT_BITS = 1, 8

_GROUP = re.compile(r"group([1-9][0-9]{0,8})")


@dataclass(frozen=True)
class BitWidth:
    """Bits of weights and activations; 32 means left in full precision."""

    weight: int
    activation: int

    def __post_init__(self) -> None:
        if not (SMALLEST_WEIGHT_BITS <= self.weight <= LARGEST_WEIGHT_BITS or self.weight == FULL_PRECISION):
            raise ValueError(f"weight bits {self.weight}: allowed are 1 to 8, or 32 for full precision")
        if not (2 <= self.activation <= 8 or self.activation in (16, FULL_PRECISION)):
            raise ValueError(f"activation bits {self.activation}: allowed are 2 to 8, 16, or 32 for full precision")

    @property
    def name(self) -> str:
        return f"w{self.weight}a{self.activation}"

    @property
    def activation_levels(self) -> int | None:
        return None if self.activation == FULL_PRECISION else 2**self.activation


@dataclass(frozen=True)
class Scope:
    """Which parts of a network are quantized besides its ordinary convolutions and linear layers.

    Methods differ in what they leave in full precision, and rankings can be won by that alone: the scope is part
    of the protocol of every number.
    """

    first_last: bool = False
    embedding: bool = False
    attention: bool = False
    split: bool = True
    """Cut the input of a layer that reads a skip concatenation: each part has its own ranges (Q-Diffusion)."""
    shortcuts: bool = True
    """Convolutions beside a residual branch."""
    downsampling: bool = True
    """Convolutions between blocks that lower the resolution."""
    bare_attention: bool = True
    """Projections of attentions that are blocks of their own; one-dimensional convolutions in LDM's code."""
    ends_at_8: bool = False
    """First and last layer and the time embedding outside blocks, where quantized, have 8/8 bits (EfficientDM)."""


COMMON_SCOPE = Scope()


@dataclass(frozen=True)
class InputGroups:
    """Contiguous groups of input channels, each with its own scale: split skips and group-wise quantization.

    ``boundaries`` are the cut points strictly inside ``channels``: (64,) of 96 gives the groups 0..63 and 64..95.
    """

    channels: int
    boundaries: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        cuts = (0, *self.boundaries, self.channels)
        if any(left >= right for left, right in itertools.pairwise(cuts)):
            raise ValueError(f"boundaries {self.boundaries} do not cut {self.channels} channels into non-empty groups")

    @property
    def count(self) -> int:
        return len(self.boundaries) + 1

    @property
    def slices(self) -> tuple[slice, ...]:
        cuts = (0, *self.boundaries, self.channels)
        return tuple(slice(left, right) for left, right in itertools.pairwise(cuts))


@dataclass(frozen=True)
class StepGroups:
    """Which row of an activation-parameter table each network call uses."""

    row_of_call: tuple[int, ...]

    @classmethod
    def shared(cls) -> "StepGroups":
        """One row for every call; the step is then never asked for."""
        return cls(())

    @classmethod
    def per_step(cls, calls: int) -> "StepGroups":
        return cls(tuple(range(calls)))

    @classmethod
    def of_size(cls, calls: int, size: int) -> "StepGroups":
        """Contiguous groups of ``size`` calls; the last may be smaller (AccuQuant)."""
        return cls(tuple(call // size for call in range(calls)))

    @property
    def rows(self) -> int:
        return max(self.row_of_call, default=0) + 1

    def divided(self, timesteps: Sequence[float]) -> float | None:
        """The first timestep of which calls use different rows, so that it alone does not tell which; None if none."""
        row_of: dict[float, int] = {}
        for timestep, row in zip(timesteps, self.row_of_call, strict=bool(self.row_of_call)):
            if row_of.setdefault(timestep, row) != row:
                return timestep
        return None


def group_size(ranges: str) -> int | None:
    """How many consecutive network calls share activation parameters; None for all of them, whatever the sampler.

    Args:
        ranges: ``shared``, ``step``, or ``groupN`` with N from 1 without leading zeros.

    Raises:
        ValueError: it is another word.

    >>> group_size("step"), group_size("group5"), group_size("shared")
    (1, 5, None)
    """
    if ranges in ("shared", "step"):
        return None if ranges == "shared" else 1
    match = _GROUP.fullmatch(ranges)
    if match is None:
        raise ValueError(f"ranges {ranges}: allowed are shared, step, groupN")
    return int(match[1])


def step_groups(ranges: str, calls: int) -> StepGroups:
    """Return which row each of ``calls`` network calls uses under ``ranges`` (see ``group_size``)."""
    size = group_size(ranges)
    return StepGroups.shared() if size is None else StepGroups.of_size(calls, size)


def nearest_calls(calibrated: Sequence[float], sampled: Sequence[float]) -> tuple[int, ...]:
    """For the timestep of every sampled network call, the index of the calibrated call at the nearest timestep.

    Of several that are equally near it is the earliest, which is the noisiest.

    >>> nearest_calls((750, 500, 250, 0), (800, 625, 10))
    (0, 0, 3)
    """
    calls = range(len(calibrated))
    return tuple(min(calls, key=lambda call: abs(calibrated[call] - timestep)) for timestep in sampled)


@dataclass(frozen=True)
class Neighbours:
    """Between which calibrated network calls a timestep lies: ``share`` (0 to ½) of the way from ``near`` to ``far``.

    ``near`` is the nearest call. At a calibrated timestep, and beyond the outermost ones, both are that call.
    """

    near: int
    far: int
    share: float


def neighbouring_calls(calibrated: Sequence[float], sampled: Sequence[float]) -> tuple[Neighbours, ...]:
    """For the timestep of every sampled network call, the calibrated calls around it.

    >>> neighbouring_calls((750, 500, 250, 0), (800, 625, 10))[1:]
    (Neighbours(near=0, far=1, share=0.5), Neighbours(near=3, far=2, share=0.04))
    """
    return tuple(
        _neighbours(calibrated, near, timestep)
        for near, timestep in zip(nearest_calls(calibrated, sampled), sampled, strict=True)
    )


def _neighbours(calibrated: Sequence[float], near: int, timestep: float) -> Neighbours:
    distance = timestep - calibrated[near]
    beyond = [call for call, other in enumerate(calibrated) if (other - timestep) * distance > 0]
    if not beyond:
        return Neighbours(near, near, 0.0)
    far = min(beyond, key=lambda call: abs(calibrated[call] - timestep))
    return Neighbours(near, far, distance / (calibrated[far] - calibrated[near]))
