"""What a job's denoiser costs: size, MACs, BOPs, by counting; needs no weights (``task=cost``)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from dmqbench.config.checked_job import Job, scope_of
from dmqbench.config.names import UNCALIBRATED, UNKNOWN
from dmqbench.methods import stages_of
from dmqbench.models.foreign import foreign_facts
from dmqbench.models.sources import dtype_of, meta_topology
from dmqbench.models.topology import LayerInfo
from dmqbench.quant.cost import Cost, CountedLayer, count_cost
from dmqbench.quant.plan import PrecisionPlan, uniform_plan
from dmqbench.quant.spec import BitWidth, Scope
from dmqbench.results.record import Quantization
from dmqbench.tasks.packed_size import packed_size


def describe_cost(job: Job, reached: PrecisionPlan | None = None, state: Path | None = None) -> dict[str, Any]:
    """Return the cost of the job's denoiser in the keys of the contract; needs no weights.

    Args:
        reached: the plan after calibration, whose weight bits are counted; before it those of ``bits.plan`` are, or
            those that the method promises.
        state: the file of the calibration state that was reached.
    """
    return _counted(job, reached, state)[0]


def _counted(job: Job, reached: PrecisionPlan | None, state: Path | None) -> tuple[dict[str, Any], str]:
    """Return the cost, and why the size of the packed file is not known."""
    topology, parameters = meta_topology(job.model.checkpoint)
    plans = _plans(job, topology.layers, reached)
    packed = packed_size(job, topology, plans.own, scope_of(job), state)
    layers = [CountedLayer(layer.name, layer.weight_shape, layer.macs) for layer in topology.layers]
    cost: Cost = count_cost(
        *(layers, plans.own, plans.paper, parameters, topology.attention_macs, plans.everywhere, packed.bytes),
        full=8 * dtype_of(job.model.checkpoint).itemsize,
    )
    quantization = quantization_of(job)
    counted = {
        **{"model": job.model.name, "method": job.method.name},
        **{"bits": quantization.bits, "scope": quantization.scope},
        **asdict(cost),
        "full_precision_names": list(plans.own.full_precision),
    }
    if not job.foreign:
        return counted, packed.unknown
    # What the files of a network quantized elsewhere say of its cost, and None for what they do not.
    unknown = ("quantized_layers", "skip_layers", "full_precision_layers", "bops", "full_precision_names")
    size = round(foreign_facts(str(job.method.path)).packed_mib, 4)
    of_files = {**dict.fromkeys(unknown), "size_mib": {"all_layers": None, "paper_code": None, "packed": size}}
    return {**counted, **of_files}, "its files do not say"


class _Plans(NamedTuple):
    """What a job quantizes; what its method's official code would; and every layer at the job's bits."""

    own: PrecisionPlan
    paper: PrecisionPlan
    everywhere: PrecisionPlan


def _plans(job: Job, layers: Sequence[LayerInfo], reached: PrecisionPlan | None) -> _Plans:
    """Return the plans that are counted, with weight bits of rows where they differ within a layer.

    Layers that a scope has at bits of their own, such as the 8 of ends, keep them there, but for those of a plan that
    was given or reached, which is what the job's own network has.
    """
    if job.method.name in UNCALIBRATED:
        return _Plans(*[PrecisionPlan(())] * 3)
    bits = BitWidth(job.bits.weight, job.bits.activation)
    own = uniform_plan(layers, bits, scope_of(job), job.bits.granularity)
    paper = uniform_plan(layers, bits, Scope(**job.method.paper_scope))
    everywhere = uniform_plan(layers, bits, Scope(first_last=True, embedding=True))
    given = reached or (job.plan.plan if job.plan else None)
    rows = _promised_bits(job, layers)
    if given is not None:
        usual = {layer.name for layer in own.layers if layer.weight_bits == bits.weight}
        of_layers = {layer.name: layer.weight_bits for layer in given.layers}
        rows |= {name: of_layers[name] for name in usual & of_layers.keys()}
        own_layers = [replace(layer, weight_bits=of_layers.get(layer.name, layer.weight_bits)) for layer in own.layers]
        own = replace(own, layers=tuple(own_layers))
    return _Plans(*(_with_bits(plan, rows, bits.weight) for plan in (own, paper, everywhere)))


def _promised_bits(job: Job, layers: Sequence[LayerInfo]) -> dict[str, int | tuple[int, ...]]:
    """Return bits of the rows of every layer where a stage fixes how many have which before it calibrates."""
    promised: dict[str, int | tuple[int, ...]] = {}
    for config in job.method.stages:
        stage = stages_of(job.method.name)[config.name]
        settings = stage.settings_of(config.settings)
        for layer in layers:
            if (bits := stage.promised_bits(layer.weight_shape[0], job.bits.weight, settings)) is not None:
                promised[layer.name] = bits
    return promised


def _with_bits(plan: PrecisionPlan, bits: Mapping[str, int | tuple[int, ...]], usual: int) -> PrecisionPlan:
    """Return ``plan`` with the weight ``bits`` in layers that have the ``usual`` ones."""
    layers = (
        replace(layer, weight_bits=bits.get(layer.name, usual)) if layer.weight_bits == usual else layer
        for layer in plan.layers
    )
    return replace(plan, layers=tuple(layers))


def carry_out(job: Job) -> None:
    """Print the cost as a table and, as the last line, one JSON object."""
    from rich.console import Console
    from rich.table import Column, Table

    cost, unknown = _counted(job, None, None)
    title = f"Cost of {job.title} (denoiser alone, one call, batch 1)"
    table = Table("", Column(justify="right"), title=title)
    for key, value in cost.items():
        if key not in ("size_mib", "full_precision_names"):
            table.add_row(key, f"{value:,}" if isinstance(value, int) else str(value))
    for rule, size in cost["size_mib"].items():
        table.add_row(f"size_mib: {rule}", f"not known: {unknown}" if size is None else f"{size:.2f}")
    Console().print(table)
    print(json.dumps(cost))


def quantization_of(job: Job) -> Quantization:
    """Return bits, scope and ranges of the result; of a network quantized elsewhere, what its files say."""
    if not job.foreign:
        return Quantization(bits=job.bits.name, scope=job.bits.scope, ranges=job.bits.ranges_title)
    facts, folder = foreign_facts(str(job.method.path)), Path(str(job.method.path))
    return Quantization(bits=facts.bits or UNKNOWN, scope=UNKNOWN, name=folder.name)
