"""How long the file is that ``api.save`` writes of a job's network: from what calibration left, or before it ran."""

from pathlib import Path
from typing import NamedTuple

from torch import nn

from dmqbench.config.checked_job import Job
from dmqbench.config.model_facts import timesteps
from dmqbench.methods import stages_of
from dmqbench.models.exchange import quantize_network_, quantized_attentions
from dmqbench.models.quantized_file import file_length, frozen_state, packed, shapes_in
from dmqbench.models.sources import meta_network
from dmqbench.models.topology import Topology
from dmqbench.quant.context import StepContext
from dmqbench.quant.plan import PrecisionPlan
from dmqbench.quant.spec import BitWidth, Scope, step_groups
from dmqbench.quant.state import calibration_state


class PackedSize(NamedTuple):
    """Length of the file, or why it is not known."""

    bytes: int | None
    unknown: str = ""


def packed_size(
    job: Job, topology: Topology, plan: PrecisionPlan, scope: Scope, state: Path | None = None
) -> PackedSize:
    """Return the length of the file of the job's network, its header included; no weights are read.

    Args:
        topology: of the network, unquantized.
        plan, scope: of the job.
        state: the calibration state that the last stage left; without it the shapes are those that the stages declare.
    """
    if not any(layer.quantizes_weight or layer.activation_levels for layer in plan.layers):
        return PackedSize(None, "nothing is quantized")
    network = meta_network(job.model.checkpoint)
    full = dict(network.state_dict())
    if state is None:
        unknown = _outline_(network, job, topology, plan, scope)
        if unknown is not None:
            return PackedSize(None, unknown)
        calibration = calibration_state(network)
    else:
        calibration = shapes_in(state)
    return PackedSize(file_length(packed(frozen_state(full, calibration, plan), plan)))


def _outline_(network: nn.Module, job: Job, topology: Topology, plan: PrecisionPlan, scope: Scope) -> str | None:
    """Give a network on the meta device all that calibration will; return why that cannot be known, or None."""
    steps = step_groups(job.bits.ranges, len(timesteps(job.calibration_sampler, job.model, job.strength)))
    bits = BitWidth(job.bits.weight, job.bits.activation)
    attentions = quantized_attentions(topology, scope, bits)
    quantize_network_(network, plan, StepContext(), steps, attentions=attentions, bits=bits)
    for config in job.method.stages:
        stage = stages_of(job.method.name)[config.name]
        unknown = stage.outline_(network, stage.settings_of(config.settings))
        if unknown is not None:
            return unknown
    return None
