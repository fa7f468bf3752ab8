"""Noise levels of states, and grids of them, from the standard library alone."""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Level:
    """Where a state x = √size (√ᾱ x_0 + √(1-ᾱ) ε) lies between data and noise.

    Attributes:
        alpha: ᾱ, the share of data, in [0, 1].
        size: variance of x for data of unit variance; 1 wherever a process preserves it.
    """

    alpha: float
    size: float = 1.0

    @classmethod
    def of(cls, signal: float, noise: float) -> "Level":
        """Return the level of x = ``signal`` x_0 + ``noise`` ε."""
        size = signal**2 + noise**2
        return cls(signal**2 / size, size)

    @property
    def signal(self) -> float:
        return math.sqrt(self.size * self.alpha)

    @property
    def noise(self) -> float:
        return math.sqrt(self.size * (1 - self.alpha))


Rounding = Callable[[float], float]


def single(value: float) -> float:
    """Return the nearest number of float32, in which timesteps are kept and told to networks."""
    return struct.unpack("f", struct.pack("f", value))[0]


def linspace(first: float, last: float, count: int) -> list[float]:
    """Return ``count`` evenly spaced numbers, rounded as numpy.linspace is; one alone is ``first``."""
    step = (last - first) / max(1, count - 1)
    return [*(index * step + first for index in range(count - 1)), last if count > 1 else first]


def karras(ramp: float, largest: float, smallest: float, rho: float) -> float:
    """Return σ at ``ramp`` in [0, 1] of the way from largest to smallest (Karras et al. 2022, eq. 5)."""
    top, bottom = largest ** (1 / rho), smallest ** (1 / rho)
    return (top + ramp * (bottom - top)) ** rho
