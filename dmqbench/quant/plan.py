"""The precision plan: which layers are quantized, with how many levels, in which input groups."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from dmqbench.quant.spec import FULL_PRECISION, BitWidth, InputGroups, Scope


class TracedLayer(Protocol):
    """What a plan needs to know of a layer; the topology of a model provides it."""

    @property
    def name(self) -> str: ...
    @property
    def boundaries(self) -> tuple[int, ...]: ...
    @property
    def embedding(self) -> bool: ...


@dataclass(frozen=True)
class LayerPlan:
    """How one layer is quantized. ``weight_bits`` is one number, or one per output row (mixed precision)."""

    name: str
    weight_bits: int | tuple[int, ...]
    activation_bits: int
    boundaries: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        bits = self.weight_bits if isinstance(self.weight_bits, tuple) else (self.weight_bits,)
        for width in set(bits):
            BitWidth(width, self.activation_bits)
        if FULL_PRECISION in bits and len(set(bits)) > 1:
            raise ValueError(f"layer {self.name}: rows of one layer are all quantized or all in full precision")

    @property
    def quantizes_weight(self) -> bool:
        return FULL_PRECISION not in self.bits_of_rows(1)

    @property
    def activation_levels(self) -> int | None:
        return None if self.activation_bits == FULL_PRECISION else 2**self.activation_bits

    def bits_of_rows(self, rows: int) -> tuple[int, ...]:
        return self.weight_bits if isinstance(self.weight_bits, tuple) else (self.weight_bits,) * rows

    def weight_levels_of_rows(self, rows: int) -> list[int]:
        return [2**bits for bits in self.bits_of_rows(rows)]

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError when a weight [R, C, …] of an ungrouped layer does not fit this plan."""
        if isinstance(self.weight_bits, tuple) and len(self.weight_bits) != shape[0]:
            raise ValueError(
                f"the precision plan has {len(self.weight_bits)} rows for layer {self.name}, the model has {shape[0]}"
            )
        try:
            InputGroups(shape[1], self.boundaries)
        except ValueError as error:
            raise ValueError(f"layer {self.name}: {error}") from None


@dataclass(frozen=True)
class PrecisionPlan:
    """The quantized layers of a network in execution order, and the names of those left in full precision."""

    layers: tuple[LayerPlan, ...]
    full_precision: tuple[str, ...] = ()

    @property
    def by_name(self) -> dict[str, LayerPlan]:
        return {layer.name: layer for layer in self.layers}

    def to_json(self) -> dict[str, Any]:
        return {
            "layers": [
                {
                    "name": layer.name,
                    "weight_bits": layer.weight_bits if isinstance(layer.weight_bits, int) else list(layer.weight_bits),
                    "activation_bits": layer.activation_bits,
                    "boundaries": list(layer.boundaries),
                }
                for layer in self.layers
            ],
            "full_precision": list(self.full_precision),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "PrecisionPlan":
        def bits(value: int | list[int]) -> int | tuple[int, ...]:
            return value if isinstance(value, int) else tuple(value)

        layers = tuple(
            LayerPlan(row["name"], bits(row["weight_bits"]), row["activation_bits"], tuple(row["boundaries"]))
            for row in data["layers"]
        )
        return cls(layers, tuple(data["full_precision"]))


def uniform_plan(layers: Iterable[TracedLayer], bits: BitWidth, scope: Scope) -> PrecisionPlan:
    """Give every layer in ``scope`` the same bit-widths.

    The first and the last layer are those executed first and last outside the time and label embedding.
    """
    layers = tuple(layers)
    on_sample = [layer.name for layer in layers if not layer.embedding]
    kept: set[str] = set()
    if not scope.first_last and on_sample:
        kept |= {on_sample[0], on_sample[-1]}
    if not scope.embedding:
        kept |= {layer.name for layer in layers if layer.embedding}
    plans = tuple(
        LayerPlan(layer.name, bits.weight, bits.activation, layer.boundaries if scope.split else ())
        for layer in layers
        if layer.name not in kept
    )
    return PrecisionPlan(plans, tuple(layer.name for layer in layers if layer.name in kept))
