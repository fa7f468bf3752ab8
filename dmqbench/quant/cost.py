"""Size and arithmetic of a quantized denoiser, under named counting rules. Works on the meta device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from dmqbench.quant.plan import LayerPlan, PrecisionPlan
from dmqbench.quant.spec import FULL_PRECISION

MIB = 2**20


@dataclass(frozen=True)
class CountedLayer:
    """What counting needs to know of a Conv or Linear layer that the network executes."""

    name: str
    weight_shape: tuple[int, ...]
    macs: int
    """Multiply-accumulates of one network call, batch 1."""


@dataclass(frozen=True)
class Cost:
    """Cost of the denoiser alone. BOPs = Σ macs · weight bits · activation bits over Conv and Linear layers."""

    parameters: int
    quantized_layers: int
    skip_layers: int
    full_precision_layers: int
    size_mib: dict[str, float | None]
    macs: int
    attention_macs: int
    bops: int


def mean_weight_bits(plan: LayerPlan | None, rows: int, full: int = FULL_PRECISION) -> float:
    """Average weight bits over the output rows of a layer; ``full`` when the plan leaves it out."""
    return full if plan is None else min(full, sum(plan.bits_of_rows(rows)) / rows)


def weight_bits_total(
    layers: Sequence[CountedLayer], plans: Mapping[str, LayerPlan], full: int = FULL_PRECISION
) -> float:
    """Bits of all Conv and Linear weights, each at the width that the plan gives it."""
    return sum(
        prod(layer.weight_shape) * mean_weight_bits(plans.get(layer.name), layer.weight_shape[0], full)
        for layer in layers
    )


def count_cost(
    layers: Sequence[CountedLayer],
    plan: PrecisionPlan,
    paper_plan: PrecisionPlan,
    parameters: int,
    attention_macs: int,
    everywhere: PrecisionPlan,
    packed_bytes: int | None = None,
    full: int = FULL_PRECISION,
) -> Cost:
    """Count a plan.

    Args:
        layers: every executed Conv and Linear.
        plan: what is quantized here.
        paper_plan: what the method's official code quantizes, for the rule ``paper_code``.
        parameters: all parameters of the denoiser; those outside Conv and Linear weights count ``full`` bits.
        attention_macs: of the two products of every attention, batch 1; they are not in ``macs``.
        everywhere: the plan that the rule ``all_layers`` counts: every Conv and Linear, or none in full precision.
        packed_bytes: length of the file that this project writes, where it exists.
        full: bits of what is not quantized.
    """
    rest = parameters - sum(prod(layer.weight_shape) for layer in layers)
    plans = plan.by_name

    def size(by_name: Mapping[str, LayerPlan]) -> float:
        return round((weight_bits_total(layers, by_name, full) + rest * full) / 8 / MIB, 4)

    return Cost(
        parameters=parameters,
        quantized_layers=len(plan.layers),
        skip_layers=sum(bool(layer.boundaries) for layer in plan.layers),
        full_precision_layers=len(layers) - len(plan.layers),
        size_mib={
            "all_layers": size(everywhere.by_name),
            "paper_code": size(paper_plan.by_name),
            "packed": None if packed_bytes is None else round(packed_bytes / MIB, 4),
        },
        macs=sum(layer.macs for layer in layers),
        attention_macs=attention_macs,
        bops=round(
            sum(layer.macs * _bit_product(plans.get(layer.name), layer.weight_shape[0], full) for layer in layers)
        ),
    )


def _bit_product(plan: LayerPlan | None, rows: int, full: int) -> float:
    activation = full if plan is None else min(full, plan.activation_bits)
    return mean_weight_bits(plan, rows, full) * activation
