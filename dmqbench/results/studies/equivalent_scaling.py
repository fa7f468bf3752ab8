"""What equivalent scaling found: scales and ranges of channels, and how it weighted the network calls."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dmqbench.results.figure import Axis, Figure, Line, Panel, calls_axis, tail
from dmqbench.results.studies.colours import MAIN, SECOND, WHEN
from dmqbench.results.studies.findings import Figures, StageFindings, number, numbers, whole, words
from dmqbench.results.studies.study import of_stage


@dataclass(frozen=True)
class ScaledLayer:
    """Held-out output error before and after scaling; ``disparity`` of its input channels, None for an infinite one."""

    error_before: float
    error: float
    disparity: float | None


@dataclass(frozen=True)
class Channels:
    """Of one layer's input channels, the scale, and the largest magnitudes that input and weight had and have."""

    scale: tuple[float, ...]
    input_before: tuple[float, ...]
    input_after: tuple[float, ...]
    weight_before: tuple[float, ...]
    weight_after: tuple[float, ...]


@dataclass(frozen=True)
class Weighting:
    """How the network calls were weighted: by bins of them, the weight λ and the share of the running error."""

    name: str
    weights: tuple[float, ...]
    errors: tuple[float, ...]
    bin_of_call: tuple[int, ...]


@dataclass(frozen=True)
class EquivalentScaling(StageFindings):
    """By layer: errors of all, channels of some."""

    stage = "equivalent_scaling"
    weighting: Weighting
    layers: Mapping[str, ScaledLayer]
    channels: Mapping[str, Channels]

    @classmethod
    def from_json(cls, record: Any) -> "EquivalentScaling":
        layers = {name: _layer(name, layer) for name, layer in record["layers"].items()}
        channels = {name: _channels(name, layer) for name, layer in record["channels"].items()}
        return cls(_weighting(record["weighting"]), layers, channels)

    @property
    def figures(self) -> Figures:
        return {"weights": step_weights(self.weighting)} if self.weighting.bin_of_call else {}

    @property
    def layer_figures(self) -> Figures:
        return {name: channel_ranges(name, channels) for name, channels in self.channels.items()}

    @property
    def pictures(self) -> Figures:
        if not self.channels:
            return {}
        *others, last = self.layer_figures.values()
        untitled = (replace(panel, x=replace(panel.x, title="")) for figure in others for panel in figure.panels)
        return {"ranges": Figure(last.title, (*untitled, *last.panels), columns=2), **self.figures}


def _weighting(record: Any) -> Weighting:
    weights = numbers("lambda", record["lambda"])
    bins = tuple(whole("bin_of_call", place, 0, len(weights) - 1) for place in record["bin_of_call"])
    return Weighting(words("weighting", record["name"]), weights, numbers("error", record["error"], len(weights)), bins)


def _layer(name: str, record: Any) -> ScaledLayer:
    disparity = record["disparity"]
    return ScaledLayer(
        number(name, record["held_out_error_before"]),
        number(name, record["held_out_error"]),
        None if disparity is None else number(f"disparity of {name}", disparity),
    )


def _channels(name: str, record: Any) -> Channels:
    keys = ("scale", "input_before", "input_after", "weight_before", "weight_after")
    return Channels(*(numbers(f"{key} of {name}", record[key], len(record["scale"])) for key in keys))


def falling(values: tuple[float, ...]) -> list[int]:
    """Return the places of ``values``, the largest first."""
    return sorted(range(len(values)), key=lambda place: -values[place])


def channel_ranges(name: str, channels: Channels) -> Figure:
    """The largest magnitude of each input channel of a layer before and after scaling: of the input, of the weight.

    Channels are in falling order of the unscaled input.
    """
    order = falling(channels.input_before)
    texts = [f"channel {channel}, scale {channels.scale[channel]:.3g}" for channel in order]
    x = Axis("input channels, by falling range of the unscaled input")
    parts = (
        ("input", "largest |x|", channels.input_before, channels.input_after),
        ("weight", "largest |w|", channels.weight_before, channels.weight_after),
    )
    panels = [
        Panel(
            tuple(
                Line(when, range(len(order)), [values[channel] for channel in order], colour, texts=texts)
                for (when, colour), values in zip(WHEN.items(), both, strict=True)
            ),
            x,
            Axis(title, part, log=True),
            f"{tail(name)}, {part}",
        )
        for part, title, *both in parts
    ]
    return Figure(
        "Channels before and after equivalent scaling",
        tuple(panels),
        description="Largest magnitude of every input channel of a layer, of input and weight",
    )


def step_weights(weighting: Weighting) -> Figure:
    """The weight λ of each network call at the end of learning, and the share of the running error that set it."""
    lines = (("λ", "λ", weighting.weights, MAIN), ("share of the error", "share of error", weighting.errors, SECOND))
    x, calls = calls_axis(), range(len(weighting.bin_of_call))
    panels = [
        Panel(
            (Line(name, calls, [values[place] for place in weighting.bin_of_call], colour, stepped="mid"),),
            x,
            Axis(name, short, from_zero=True),
        )
        for name, short, values, colour in lines
    ]
    return Figure(
        "How steps were weighted in equivalent scaling",
        tuple(panels),
        (f"weighting: {weighting.name}; means over the layers",),
        description="Weight and error of every network call",
    )


STUDY = of_stage(EquivalentScaling)
