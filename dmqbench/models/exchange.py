"""A network's layers and attentions exchanged for quantized ones: before calibration, and once it is done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from dmqbench.engines import ENGINES
from dmqbench.models.absorption import load_state_into_
from dmqbench.models.attention import set_explicit_attention_
from dmqbench.models.families import kind_of
from dmqbench.models.folders import NETWORK_FOLDERS, ModelError
from dmqbench.models.precision import FLOAT32
from dmqbench.models.topology import Topology
from dmqbench.quant.attention import AttentionQuantizers
from dmqbench.quant.context import StepContext
from dmqbench.quant.layers import quantize_layers_
from dmqbench.quant.plan import PrecisionPlan
from dmqbench.quant.serving import Place, serve_
from dmqbench.quant.spec import BitWidth, Scope, StepGroups


def network_name(pipe: Any) -> str:
    """Return what a pipeline calls its denoiser; ``unet`` where it has none."""
    return next((name for name in NETWORK_FOLDERS if getattr(pipe, name, None) is not None), NETWORK_FOLDERS[0])


@dataclass(frozen=True)
class Description:
    """How a network was quantized: all that is needed beside its tensors to build it again, and where it is from."""

    method: str
    bits: dict[str, Any]
    plan: dict[str, Any]
    attentions: tuple[str, ...]
    """Attentions whose matrix products are quantized."""
    timesteps: tuple[float, ...]
    """Of the calibrated network calls, in their order."""
    engine: str
    sampler: dict[str, Any]
    budget: dict[str, Any]
    seed: int
    ids: dict[str, Any]
    """Of the artifacts in the run store that it was made from."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why layers are in full precision."""
    match: str = "refuse"
    """What a call at a timestep that was not calibrated does: see ``CalibrationConfig``."""
    dtype: str = FLOAT32
    """Of the network's weights and activations."""


def quantized_attentions(topology: Topology, scope: Scope, bits: BitWidth) -> tuple[str, ...]:
    """Return the names of the attentions whose products are quantized."""
    if not scope.attention or bits.activation_levels is None:
        return ()
    return tuple(attention.name for attention in topology.attentions)


def quantize_network_(
    network: nn.Module,
    plan: PrecisionPlan,
    context: StepContext,
    steps: StepGroups | None = None,
    *,
    attentions: Sequence[str],
    bits: BitWidth,
) -> None:
    """Make the layers of ``plan`` quantizable, and then the products of the named ``attentions``, all switched off.

    Raises:
        ValueError: the plan or ``attentions`` name what the network lacks or what cannot be quantized, or ``bits``
            leaves the operands of attentions in full precision.
    """
    quantize_layers_(network, plan, context, steps)
    if not attentions:
        return
    levels = bits.activation_levels
    if levels is None:
        raise ValueError(f"bits {bits.name}: attention in full precision needs no quantizers")
    set_explicit_attention_(network, {name: AttentionQuantizers(context, levels, steps) for name in attentions})


def exchange_(
    network: Any,
    description: Description,
    state: Mapping[str, Tensor],
    places: tuple[Place, Place] | None = None,
) -> None:
    """Give a full-precision network the layers of ``description``, calibrated to ``state``, and let it go.

    ``places`` are those of the sample and the timestep among its arguments; None: of a known family.
    """
    context = StepContext()
    plan = PrecisionPlan.from_json(description.plan)
    bits = BitWidth(description.bits["weight"], description.bits["activation"])
    quantize_network_(network, plan, context, attentions=description.attentions, bits=bits)
    load_state_into_(network, state)
    serve_(
        network,
        ENGINES[description.engine],
        context,
        description.timesteps,
        description.match,
        places or _places(network),
        getattr(torch, description.dtype),
    )
    network.dmqbench = description
    network.save_pretrained = _refuse_to_save


def _places(network: Any) -> tuple[Place, Place]:
    """Where a network of diffusers has the sample and the timestep."""
    names = list(signature(type(network).forward).parameters)[1:]
    family = kind_of({**network.config, "_class_name": type(network).__name__})
    return Place(0, names[0]), Place(names.index(family.timestep), family.timestep, family.time_unit)


def _refuse_to_save(*_: Any, **__: Any) -> NoReturn:
    raise ModelError("a quantized network has no weights that diffusers could read: use dmqbench.api.save")
