"""The precision plan: which layers are quantized, with how many levels, in which input groups."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from dmqbench.quant.spec import FULL_PRECISION, GRANULARITIES, BitWidth, InputGroups, Scope


class TracedLayer(Protocol):
    """What a plan needs to know of a layer; the topology of a model provides it."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def boundaries(self) -> tuple[int, ...]: ...
    @property
    def embedding(self) -> bool: ...
    @property
    def shortcut(self) -> bool: ...
    @property
    def in_block(self) -> bool: ...
    @property
    def bare_attention(self) -> bool: ...
    @property
    def downsampling(self) -> bool: ...


@dataclass(frozen=True)
class LayerPlan:
    """How one layer is quantized. ``weight_bits`` is one number, or one per output row (mixed precision).

    With ``per_token`` the range of an activation is taken from each token as it comes, and nothing is calibrated.
    """

    name: str
    weight_bits: int | tuple[int, ...]
    activation_bits: int
    boundaries: tuple[int, ...] = ()
    per_token: bool = False

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

    def with_weight_bits(self, bits: int | tuple[int, ...], rows: int) -> "LayerPlan":
        """The same with other weight bits for a weight of ``rows`` rows; one number stands for equal ones.

        Raises:
            ValueError: a number of bits is not allowed, or there is not one for every row.
        """
        plan = replace(self, weight_bits=bits)
        plan.check_rows(rows)
        return replace(self, weight_bits=bits[0]) if isinstance(bits, tuple) and len(set(bits)) == 1 else plan

    def check_rows(self, rows: int) -> None:
        """Raise ValueError unless there is one number of bits, or one for each of ``rows`` rows."""
        if isinstance(self.weight_bits, tuple) and len(self.weight_bits) != rows:
            raise ValueError(
                f"the precision plan has {len(self.weight_bits)} rows for layer {self.name}, the model has {rows}"
            )

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError when a weight [R, C, …] of an ungrouped layer does not fit this plan."""
        self.check_rows(shape[0])
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

    @property
    def mixed_rows(self) -> bool:
        """Whether a layer has rows of different weight bits."""
        return any(not isinstance(bits, int) for bits in self.weight_bits.values())

    @property
    def weight_bits(self) -> dict[str, int | list[int]]:
        """Weight bits by layer, one number where rows have the same: what a plan says to another job."""
        return {
            layer.name: list(bits) if len(set(bits)) > 1 else bits[0]
            for layer in self.layers
            for bits in (layer.bits_of_rows(1),)
        }

    def check_layers(self, rows: Mapping[str, int]) -> None:
        """Raise ValueError, which names the first difference, unless the plan is for these layers.

        Args:
            rows: number of output rows of every layer that is quantized, by name.
        """
        plans = self.by_name
        for name, count in rows.items():
            if name not in plans:
                raise ValueError(f"the precision plan lacks layer {name}, which is quantized here")
            plans[name].check_rows(count)
        for name in plans:
            if name not in rows:
                raise ValueError(f"the precision plan has layer {name}, which is not quantized here")

    def with_activation_bits(self, bits: int) -> "PrecisionPlan":
        """The same with other activation bits in every layer."""
        return replace(self, layers=tuple(replace(layer, activation_bits=bits) for layer in self.layers))

    def to_json(self) -> dict[str, Any]:
        rows = [{key: _listed(value) for key, value in vars(layer).items()} for layer in self.layers]
        for row in rows:
            if not row["per_token"]:  # nor had plans from before there was such a thing
                del row["per_token"]
        return {"layers": rows, "full_precision": list(self.full_precision)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "PrecisionPlan":
        layers = tuple(LayerPlan(**{key: _tupled(value) for key, value in row.items()}) for row in data["layers"])
        return cls(layers, tuple(data["full_precision"]))


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


END_BITS = 8
"""Of weights and activations of the ends of a network in some methods' code, whatever the other layers have."""


def uniform_plan(
    layers: Iterable[TracedLayer], bits: BitWidth, scope: Scope, granularity: str = GRANULARITIES[0]
) -> PrecisionPlan:
    """Give every layer in ``scope`` the same bit-widths, but for ends that the scope has at ``END_BITS``.

    The first and the last layer are those executed first and last outside embeddings. ``granularity``, one of
    ``GRANULARITIES``, is that of the activations of linear layers; convolutions read no tokens.
    """
    layers = tuple(layers)
    ends, kept = _ends(layers), reasons_left_out(layers, scope)
    end_bits = BitWidth(max(bits.weight, END_BITS), max(bits.activation, END_BITS))
    if scope.ends_at_8:
        ends |= {layer.name for layer in layers if layer.embedding and not layer.in_block}

    def plan(layer: TracedLayer) -> LayerPlan:
        own = end_bits if scope.ends_at_8 and layer.name in ends else bits
        per_token = granularity == "token" and layer.kind == "linear"
        return LayerPlan(layer.name, own.weight, own.activation, layer.boundaries if scope.split else (), per_token)

    plans = tuple(plan(layer) for layer in layers if layer.name not in kept)
    return PrecisionPlan(plans, tuple(layer.name for layer in layers if layer.name in kept))


def reasons_left_out(layers: Iterable[TracedLayer], scope: Scope) -> dict[str, str]:
    """Return the layers that the scope leaves in full precision, and what each of them is that it does."""
    layers = tuple(layers)
    ends = _ends(layers)
    return {
        layer.name: reason for layer in layers if (reason := _reason(layer, scope, end=layer.name in ends)) is not None
    }


def _ends(layers: Sequence[TracedLayer]) -> set[str]:
    """The layers executed first and last outside embeddings."""
    on_sample = [layer.name for layer in layers if not layer.embedding]
    return {*on_sample[:1], *on_sample[-1:]}


def _reason(layer: TracedLayer, scope: Scope, end: bool) -> str | None:
    if end:
        return None if scope.first_last else "first or last layer"
    kinds = {
        "embedding of time, label or text": layer.embedding and not scope.embedding,
        "convolution beside a residual branch": layer.shortcut and not scope.shortcuts,
        "convolution that lowers the resolution": layer.downsampling and not scope.downsampling,
        "projection of an attention that is a block of its own": layer.bare_attention and not scope.bare_attention,
    }
    return next((kind for kind, left_out in kinds.items() if left_out), None)
