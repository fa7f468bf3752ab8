"""What the allocation of bits to rows of weights found: bits of every layer's rows, and errors of what was tried."""

from dataclasses import dataclass
from functools import cached_property
from statistics import geometric_mean
from typing import Any

from dmqbench.results.figure import Axis, Bars, Figure, HeatMap, Line, Panel, joined
from dmqbench.results.studies.colours import BIT_COLOURS, INK
from dmqbench.results.studies.findings import Figures, StageFindings, number, numbers, whole, words
from dmqbench.results.studies.study import of_stage

TENTH_NAMES = ("none", "10 %", "20 %", "30 %", "40 %", "50 %")
"""How many of a layer's rows are promoted, by their tenths."""


@dataclass(frozen=True)
class AllocatedLayer:
    """Bits and kurtosis of its rows, its output error for every number of ``tenths`` that was tried, the chosen one."""

    name: str
    bits: tuple[int, ...]
    kurtosis: tuple[float, ...]
    errors: tuple[float, ...]
    tenths: int
    moved: int

    def share(self, bits: int) -> float:
        """Return the share of the rows that have ``bits``."""
        return self.bits.count(bits) / len(self.bits)

    @property
    def ratios(self) -> list[float | None]:
        """The output error at each allocation over that without any promoted row; None for 0 over 0."""
        alike = self.errors[0]
        return [error / alike if alike else None for error in self.errors]


@dataclass(frozen=True)
class OutlierAllocation(StageFindings):
    """By which ``rule`` rows were chosen, and whether ``only_more`` bits were given; ``limit`` is a sentence."""

    stage = "outlier_allocation"
    rule: str
    only_more: bool
    mean_bits: float
    limit: str | None
    layers: tuple[AllocatedLayer, ...]

    @classmethod
    def from_json(cls, record: Any) -> "OutlierAllocation":
        settings, limit = record["settings"], record.get("limit")
        layers = tuple(map(_layer, record["layers"]))
        if not layers:
            raise ValueError("there are no layers")
        return cls(
            words("rows", settings["rows"]),
            bool(settings.get("plus")),
            number("mean_bits", record["mean_bits"]),
            None if limit is None else words("limit", limit),
            layers,
        )

    @property
    def widths(self) -> list[int]:
        """The bits that any row has, the fewest first."""
        return sorted({bits for layer in self.layers for bits in layer.bits})

    @property
    def tried(self) -> int:
        return max(len(layer.errors) for layer in self.layers)

    @property
    def note(self) -> str:
        """What mixing rows of other bits does to the layers' errors."""
        left = [ratio for layer in self.layers if (ratio := layer.ratios[layer.tenths])]
        mixed = sum(layer.moved > 0 for layer in self.layers)
        parts = [f"rows by {self.rule}, {self.mean_bits:.4g} bits in the mean"]
        parts += [f"{mixed} of {len(self.layers)} layers mixed", *filter(None, [self.limit])]
        parts += [f"error over that of equal bits, geometric mean {geometric_mean(left):.3f}"] if left else []
        return "; ".join(parts)

    @cached_property
    def names(self) -> Axis:
        return Axis("", names=tuple(layer.name for layer in self.layers))

    @property
    def figures(self) -> Figures:
        return {"bits": row_bits(self)} | ({"candidates": candidate_errors(self)} if self.tried > 1 else {})

    @property
    def pictures(self) -> Figures:
        return {"bits": joined(self.figures.values(), columns=len(self.figures))}


def _layer(record: Any) -> AllocatedLayer:
    name, rows = str(record["name"]), record["rows"]
    errors = numbers(f"errors of {name}", record["errors"])
    numbers(f"bits of {name}", record["bits"], rows)
    bits = tuple(whole(f"bits of {name}", width, 1, len(BIT_COLOURS)) for width in record["bits"])
    if not bits or len(errors) > len(TENTH_NAMES):
        raise ValueError(f"{name} has no rows, or errors of more than half of them")
    return AllocatedLayer(
        name,
        bits,
        numbers(f"kurtosis of {name}", record["kurtosis"], rows),
        errors,
        whole(f"tenths of {name}", record["tenths"], 0, len(errors) - 1),
        whole(f"moved rows of {name}", record["moved"]),
    )


def width_name(bits: int) -> str:
    return f"{bits} bit{'s' if bits > 1 else ''}"


def row_bits(allocation: OutlierAllocation) -> Figure:
    """For each layer, which share of its rows has which bits, in the network's order."""
    bars = tuple(
        Bars(width_name(bits), [layer.share(bits) for layer in allocation.layers], (BIT_COLOURS[bits - 1],))
        for bits in allocation.widths
    )
    x = Axis("share of the rows", share=True, ends=(0.0, 1.0))
    return Figure(
        "Bits of the rows of every layer",
        (Panel(bars, x, allocation.names),),
        (allocation.note,),
        description="Share of the rows of every layer by their bits",
    )


def candidate_errors(allocation: OutlierAllocation) -> Figure:
    """The output error of every layer for every share of promoted rows, over that of equal bits."""
    layers, tried = allocation.layers, allocation.tried
    ratios = [[*layer.ratios, *[None] * tried][:tried] for layer in layers]
    reach = max((abs(ratio - 1) for row in ratios for ratio in row if ratio is not None), default=1.0)
    texts = [[*(f"error {error:.3g}" for error in layer.errors), *[""] * tried][:tried] for layer in layers]
    heat = HeatMap(ratios, "output error over that of equal bits", "over equal bits", min(0.5, reach) or 1.0, texts)
    chosen = Line("", [layer.tenths for layer in layers], range(len(layers)), INK, joined=False)
    title = "rows with a bit more" + ("" if allocation.only_more else ", and as many with a bit less")
    return Figure(
        "Output error of every layer by how many rows have other bits",
        (Panel((heat, chosen), Axis(title, names=TENTH_NAMES[:tried]), allocation.names),),
        ("dots: what was chosen",),
        description="Output error of every layer for every share of promoted rows, over that of equal bits",
    )


STUDY = of_stage(OutlierAllocation)
