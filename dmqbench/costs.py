"""What a job's denoiser costs: size, MACs, BOPs, by counting; needs no weights (``task=cost``)."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dmqbench.models.foreign import foreign_facts
from dmqbench.pipeline import scope_of
from dmqbench.quant.cost import Cost, CountedLayer, count_cost
from dmqbench.quant.plan import LayerPlan, PrecisionPlan, uniform_plan
from dmqbench.quant.spec import BitWidth, Scope
from dmqbench.schema import UNCALIBRATED, UNKNOWN, Job
from dmqbench.store import Artifact


def describe_cost(job: Job) -> dict[str, Any]:
    """Cost of the job's denoiser in the keys of the contract; needs no weights."""
    from dmqbench.models.sources import meta_topology

    topology, parameters = meta_topology(job.model.checkpoint)
    bits = BitWidth(job.bits.weight, job.bits.activation)
    quantized = job.method.name not in UNCALIBRATED

    def plan(scope: Scope) -> PrecisionPlan:
        return uniform_plan(topology.layers, bits, scope) if quantized else PrecisionPlan(())

    paper = Scope(**job.method.paper_scope)
    scope = scope_of(job)
    layers = [CountedLayer(layer.name, layer.weight_shape, layer.macs) for layer in topology.layers]
    nominal = LayerPlan("all", bits.weight, bits.activation) if quantized else None
    cost: Cost = count_cost(layers, plan(scope), plan(paper), parameters, topology.attention_macs, nominal)
    said = said_of_quantization(job)
    named = {"model": job.model.name, "method": job.method.name, "bits": said["bits"], "scope": said["scope"]}
    counted = {**asdict(cost), "full_precision_names": list(plan(scope).full_precision)}
    return {**named, **counted, **(_cost_of_files(job) if job.foreign else {})}


def _cost_of_files(job: Job) -> dict[str, Any]:
    """What the files of a network quantized elsewhere say of its cost, and ``None`` for what they do not."""
    unknown = ("quantized_layers", "skip_layers", "full_precision_layers", "bops", "full_precision_names")
    packed = round(foreign_facts(str(job.method.path)).packed_mib, 4)
    return {**dict.fromkeys(unknown), "size_mib": {"all_layers": None, "paper_code": None, "packed": packed}}


def show_cost(job: Job) -> None:
    """Print the cost as a table and, as the last line, one JSON object."""
    from rich.console import Console
    from rich.table import Table

    cost = describe_cost(job)
    table = Table(title=f"Cost of {job.title} (denoiser alone, one call, batch 1)")
    table.add_column("")
    table.add_column("", justify="right")
    for key, value in cost.items():
        if key not in ("size_mib", "full_precision_names"):
            table.add_row(key, f"{value:,}" if isinstance(value, int) else str(value))
    for rule, size in cost["size_mib"].items():
        table.add_row(f"size_mib: {rule}", "not written yet" if size is None else f"{size:.2f}")
    Console().print(table)
    print(json.dumps(cost))


def calibration_costs(parts: Iterable[tuple[str, Artifact]]) -> list[dict[str, Any]]:
    """Seconds, network calls of batch 1 and peaks of memory of every part of a calibration, by name and artifact.

    A peak is None in artifacts that were made before it was measured, and on a device that the part did not use.
    """
    return [
        {
            "stage": name,
            "seconds": round(artifact.facts["seconds"], 3),
            "network_forwards": round(artifact.facts["network_forwards"]),
            **{peak: artifact.facts.get(peak) for peak in ("peak_memory_mib", "peak_device_memory_mib")},
        }
        for name, artifact in parts
    ]


def largest(peaks: Iterable[float | None]) -> float | None:
    """The largest, or None where one is not known, or there is none."""
    listed = list(peaks)
    known = [peak for peak in listed if peak is not None]
    return max(known) if known and len(known) == len(listed) else None


def said_of_quantization(job: Job) -> dict[str, Any]:
    """Bits, scope and ranges of the result; of a network quantized elsewhere, what its files say."""
    if not job.foreign:
        return {"bits": job.bits.name, "scope": job.bits.scope, "ranges": job.bits.ranges}
    facts, folder = foreign_facts(str(job.method.path)), Path(str(job.method.path))
    return {"name": folder.name, "bits": facts.bits or UNKNOWN, "scope": UNKNOWN, "ranges": None, "declared": []}
