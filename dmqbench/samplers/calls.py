"""One row of a sampler's table, and the algebra that its coefficients are made with."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from dmqbench.samplers.spec import Prediction


@dataclass(frozen=True)
class Mix:
    """The linear form ``x * (current state) + output * (network output)``."""

    x: float
    output: float

    def __add__(self, other: "Mix") -> "Mix":
        return Mix(self.x + other.x, self.output + other.output)

    def __rmul__(self, factor: float) -> "Mix":
        return Mix(factor * self.x, factor * self.output)

    def of(self, x: Tensor, output: Tensor) -> Tensor:
        """Evaluate the form; ``x`` and ``output`` have the same shape."""
        scaled = self.output * output
        return scaled if self.x == 0 else self.x * x + scaled


STATE = Mix(1.0, 0.0)
OUTPUT = Mix(0.0, 1.0)


@dataclass(frozen=True)
class Clip:
    """The term ``weight * clamp(clean, -limit, limit)``, where ``clean`` is the predicted clean sample."""

    limit: float
    weight: float
    clean: Mix


@dataclass(frozen=True)
class Call:
    """One network call and the update that follows it.

    With o_0 = ``output`` of (x, network output) and o_1, o_2, … the outputs kept from earlier calls,

        x_next = a * base + Σ_j b_j o_j [+ clip term] + sigma * z.

    Attributes:
        timestep: what the network is told; a whole number over a schedule of betas.
        a: coefficient of ``base``.
        b: coefficients of the outputs, newest first; their number is one more than the history that arrives.
        output: how an output is expressed before it is used and kept.
        sigma: standard deviation of the noise that is added.
        base: "current" is the state that the network saw, "anchor" the base of the call before.
        keep: positions in (o_0, o_1, …) that make up the next history, newest first.
        clip: the clipped prediction of the clean sample, where the sampler clips; ``a`` and ``b`` hold the
            rest.
        input_scale: the network is called on this times the state.
    """

    timestep: float
    a: float
    b: tuple[float, ...]
    output: Mix = OUTPUT
    sigma: float = 0.0
    base: Literal["current", "anchor"] = "current"
    keep: tuple[int, ...] = ()
    clip: Clip | None = None
    input_scale: float = 1.0

    @property
    def gain(self) -> float:
        """∂x_next/∂(network output) of this call; with clipping, where nothing is clipped."""
        clipped = self.clip.weight * self.clip.clean.output if self.clip else 0.0
        return self.b[0] * self.output.output + clipped

    @property
    def carry(self) -> float:
        """∂x_next/∂x at a fixed network output; with clipping, where nothing is clipped."""
        clipped = self.clip.weight * self.clip.clean.x if self.clip else 0.0
        return (self.a if self.base == "current" else 0.0) + self.b[0] * self.output.x + clipped


def predictions(prediction: Prediction, alpha: float) -> tuple[Mix, Mix]:
    """Return the predicted clean sample and the predicted noise at ᾱ = ``alpha``, in (0, 1).

    Both follow from x = √ᾱ x0 + √(1-ᾱ) ε and what the network predicts (v: Salimans and Ho 2022, section 4).
    """
    signal, noise = math.sqrt(alpha), math.sqrt(1 - alpha)
    if prediction == "epsilon":
        return Mix(1 / signal, -noise / signal), OUTPUT
    if prediction == "sample":
        return OUTPUT, Mix(1 / noise, -signal / noise)
    return Mix(signal, -noise), Mix(noise, signal)


def alpha_at(alphas: Sequence[float], timestep: int, final_alpha_one: bool) -> float:
    """Return ᾱ at a timestep that may lie past the last one (negative): there it is 1, or ᾱ of timestep 0."""
    if timestep >= 0:
        return alphas[timestep]
    return 1.0 if final_alpha_one else alphas[0]


def single_step(timestep: float, clean: Mix, weight: float, rest: Mix, sigma: float, limit: float | None) -> Call:
    """Return the call for ``weight * clean + rest + sigma * z``, with ``clean`` clipped to ±``limit``."""
    if limit is not None:
        return Call(timestep, rest.x, (rest.output,), sigma=sigma, clip=Clip(limit, weight, clean))
    update = weight * clean + rest
    return Call(timestep, update.x, (update.output,), sigma=sigma)
