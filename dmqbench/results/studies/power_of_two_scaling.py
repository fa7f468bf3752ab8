"""What power-of-two scaling found: the exponents of every layer's channels, and how many samples agreed on them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dmqbench.results.figure import Axis, Bars, Figure, Line, Panel, calls_axis, joined
from dmqbench.results.studies.colours import PALETTE, power_colour
from dmqbench.results.studies.findings import Figures, StageFindings, number, numbers, whole, words
from dmqbench.results.studies.study import of_stage

SHOWN_LINES = 12
"""Layers whose agreement is drawn over each other."""

_FINEST = -16
"""No exponent of a sound file is lower."""


@dataclass(frozen=True)
class VotedLayer:
    """How many (row, channel) pairs have each exponent, the share of samples that agree on it by row, and errors.

    ``scaled`` is the share of pairs whose exponent is not 0; errors are held-out output errors.
    """

    exponents: Mapping[int, float]
    agreement: tuple[float, ...]
    scaled: float
    error_before: float
    error: float

    def share(self, exponent: int) -> float:
        """Return the share of the pairs that have ``exponent``."""
        total = sum(self.exponents.values())
        return self.exponents.get(exponent, 0) / total if total else 0.0

    @property
    def mean_agreement(self) -> float:
        return sum(self.agreement) / len(self.agreement)


@dataclass(frozen=True)
class PowerOfTwoScaling(StageFindings):
    """By layer, and how exponents were chosen, from how many calibration samples."""

    stage = "power_of_two_scaling"
    layers: Mapping[str, VotedLayer]
    selection: str
    samples: int

    @classmethod
    def from_json(cls, record: Any) -> "PowerOfTwoScaling":
        rows = max((len(layer["agreement"]) for layer in record["layers"].values()), default=0)
        layers = {name: _layer(name, layer, rows) for name, layer in record["layers"].items()}
        return cls(layers, words("selection", record["selection"]), whole("samples", record["samples"], 1))

    @property
    def rows(self) -> int:
        """How many sets of exponents each layer has: one per step, or one for all."""
        return max((len(layer.agreement) for layer in self.layers.values()), default=0)

    @property
    def exponents(self) -> list[int]:
        """The exponents that any layer lists, 0 first."""
        return sorted({exponent for layer in self.layers.values() for exponent in layer.exponents}, reverse=True)

    @property
    def least_agreed(self) -> list[str]:
        """The layers by rising mean agreement."""
        return sorted(self.layers, key=lambda name: self.layers[name].mean_agreement)

    @property
    def note(self) -> str:
        return f"chosen by {self.selection} from {self.samples} calibration samples"

    @property
    def figures(self) -> Figures:
        if not self.layers:
            return {}
        return {"exponents": exponent_shares(self)} | ({"agreement": agreement(self)} if self.rows > 1 else {})

    @property
    def pictures(self) -> Figures:
        return {"votes": joined(self.figures.values())} if self.layers else {}


def _layer(name: str, record: Any, rows: int) -> VotedLayer:
    counts = numbers(f"exponents of {name}", list(record["exponents"].values()))
    exponents = [whole(f"an exponent of {name}", int(key), _FINEST, 0) for key in record["exponents"]]
    return VotedLayer(
        dict(zip(exponents, counts, strict=True)),
        numbers(f"agreement of {name}", record["agreement"], rows),
        *(number(f"{key} of {name}", record[key]) for key in ("scaled", "held_out_error_before", "held_out_error")),
    )


def power_name(exponent: int) -> str:
    """Return how an exponent is called: the scale, or a fraction of it."""
    return "the whole scale" if exponent == 0 else f"1/{2**-exponent}"


def exponent_shares(powers: PowerOfTwoScaling) -> Figure:
    """For each layer, which share of its (step, channel) pairs has which exponent."""
    bars = tuple(
        Bars(
            power_name(exponent), [layer.share(exponent) for layer in powers.layers.values()], (power_colour(exponent),)
        )
        for exponent in powers.exponents
    )
    x = Axis("share of steps and channels", share=True, ends=(0.0, 1.0))
    return Figure(
        "Powers of two, by layer",
        (Panel(bars, x, Axis("", names=tuple(powers.layers))),),
        (powers.note,),
        description="Share of each exponent in every layer",
    )


def agreement(powers: PowerOfTwoScaling) -> Figure:
    """The mean share of samples behind the winning exponent over the steps, of the layers that agree least."""
    names = powers.least_agreed[:SHOWN_LINES]
    lines = tuple(
        Line(
            name,
            range(powers.rows),
            powers.layers[name].agreement,
            PALETTE[number % len(PALETTE)],
            points=False,
            dash=number // len(PALETTE),
            texts=[f"{name}, step {step}" for step in range(powers.rows)],
        )
        for number, name in enumerate(names)
    )
    count = len(powers.layers)
    return Figure(
        "How many samples agree on their power of two",
        (Panel(lines, calls_axis(), Axis("samples that agree", share=True)),),
        (f"the {len(names)} of {count} layers that agree least",) if count > len(names) else (),
        description="Mean share of agreeing samples of every layer over the steps",
    )


STUDY = of_stage(PowerOfTwoScaling)
