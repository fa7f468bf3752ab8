"""What of a pipeline is quantized, what is not, and why."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import nn

from dmqbench.models.exchange import Description, network_name
from dmqbench.models.folders import ModelError
from dmqbench.models.own import Denoiser
from dmqbench.models.precision import FLOAT32
from dmqbench.quant.plan import LayerPlan, PrecisionPlan

_NAMES_SHOWN = 4


@dataclass(frozen=True)
class Report:
    """Of a quantized network. ``str`` is a few lines for people.

    quantized: bits of every quantized layer, such as ``w4a6``; ``w1-8a4`` where rows have different ones.
    full_precision: why every other layer is not.
    attentions: those whose matrix products are quantized.
    other_parts: of the pipeline, in full precision.
    """

    title: str
    quantized: Mapping[str, str]
    full_precision: Mapping[str, str]
    attentions: tuple[str, ...]
    other_parts: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield self.title
        yield f"quantized: {len(self.quantized)} layers"
        for bits, names in _grouped(self.quantized):
            yield f"  {bits}: {_some(names)}"
        yield f"in full precision: {len(self.full_precision)} layers"
        for why, names in _grouped(self.full_precision):
            yield f"  {why}: {_some(names)}"
        if self.attentions:
            yield f"matrix products quantized in {len(self.attentions)} attentions: {_some(self.attentions)}"
        else:
            yield "matrix products of attentions: in full precision"
        yield "norms, activation functions and softmax: in full precision, as in every method here"
        if self.other_parts:
            yield f"other parts, in full precision: {', '.join(self.other_parts)}"


def report(model: Any) -> Report:
    """Return what of a model is quantized, what is not, and why.

    Args:
        model: a pipeline that ``quantize_`` quantized or ``load`` loaded, or a ``Denoiser``.

    Raises:
        ModelError: it is not quantized.
    """
    network: Any = model.network if isinstance(model, Denoiser) else getattr(model, network_name(model), None)
    facts = getattr(network, "dmqbench", None)
    if not isinstance(facts, Description):
        raise ModelError(f"a {type(model).__name__} that quantize_ has not quantized has nothing to report")
    plan = PrecisionPlan.from_json(facts.plan)
    scope = f"scope {facts.bits['scope']}, ranges {facts.bits['ranges']}"
    precision = "" if facts.dtype == FLOAT32 else f", in {facts.dtype}"
    calls = f"calibrated on {len(facts.timesteps)} calls of {facts.sampler['name']}, seed {facts.seed}"
    parts = getattr(model, "components", {})
    return Report(
        title=f"{facts.method} w{facts.bits['weight']}a{facts.bits['activation']}, {scope}{precision}; {calls}",
        quantized={layer.name: _bits(layer) for layer in plan.layers},
        full_precision={each: facts.reasons.get(each, _UNSAID) for each in plan.full_precision},
        attentions=facts.attentions,
        other_parts=tuple(key for key, part in parts.items() if isinstance(part, nn.Module) and part is not network),
    )


_UNSAID = "not said by the version that quantized it"


def _bits(layer: LayerPlan) -> str:
    rows = sorted({*layer.bits_of_rows(1)})
    weight = f"{rows[0]}" if len(rows) == 1 else f"{rows[0]}-{rows[-1]}"
    return f"w{weight}a{layer.activation_bits}"


def _grouped(values: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Names by their value, in the order in which values first come."""
    order = list(dict.fromkeys(values.values()))
    ranked = sorted(values, key=lambda name: order.index(values[name]))
    for value, names in groupby(ranked, key=values.__getitem__):
        yield value, list(names)


def _some(names: Any) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"
