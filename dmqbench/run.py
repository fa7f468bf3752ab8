"""One job, as a recipe: what it needs is looked up in the store or made, then measured and written down."""

import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dmqbench.environment import environment, peak_memory_mib, reset_peak_memory
from dmqbench.eval.evaluate import Evaluation, Evaluator, Floors
from dmqbench.eval.generate import chunk_count, chunk_name
from dmqbench.eval.protocol import Protocol
from dmqbench.files import json_text
from dmqbench.ids import job_ids, perturbed_id, weights_hash
from dmqbench.pipeline import Workshop, scope_of
from dmqbench.quant.cost import Cost, CountedLayer, count_cost
from dmqbench.quant.plan import LayerPlan, PrecisionPlan, uniform_plan
from dmqbench.quant.spec import BitWidth, Scope
from dmqbench.schema import Job, full_precision
from dmqbench.store import Artifact, Store
from dmqbench.tracking import Tracker

PERTURBATION = 1e-7
"""Relative change of x_T for the numerical floor: less than one unit in the last place of float32."""


def open_workshop(job: Job) -> Workshop:
    """Return the workshop of ``job`` over its store, which must be writable."""
    reset_peak_memory()
    store = Store(job.store_root)
    store.check_writable()
    return Workshop(job, store)


def run_job(job: Job) -> Path:
    """Make everything that ``job`` needs, measure it, and return its result folder."""
    shop = open_workshop(job)
    with shop.record:
        shop.record.log("job", config=job.config, ids=asdict(shop.ids))
        evaluator = make_evaluator(shop)
        with tracker(shop, "calibration") as mirror:
            tell_location(mirror)
            stages = shop.calibrated()
        samples = draw_samples(shop)
        with tracker(shop, "evaluation") as mirror:
            tell_location(mirror)
            started = time.perf_counter()
            evaluation = evaluator.evaluate(samples, job.metrics.names)
            seconds = time.perf_counter() - started
            result = compose_result(shop, evaluation, stages, seconds)
            folder = write_result(shop, result, evaluation)
            found: dict[str, Any] = {
                name: each.value for name, each in evaluation.measurements.items() if not each.exact
            }
            shop.record.log("metrics", **found)
            mirror.summarize({"metrics": result["metrics"], "cost": result["cost"], "timing": result["timing"]})
    return folder


def evaluate(job: Job) -> Path:
    """Measure samples that are in the store, and return the result folder.

    Raises:
        LookupError: they are not all there.
    """
    names = [chunk_name(number) for number in range(chunk_count(job.metrics.samples, job.sampler.chunk))]
    present = Store(job.store_root).verified_files("samples", job_ids(job, weights_hash(job.model)).samples)
    if not set(names) <= present.keys():
        raise LookupError(f"{len(present)} of {len(names)} chunks of its samples are in the store; use task=run")
    return run_job(job)


def make_trajectories(job: Job) -> Path:
    """Make the trajectory bank of ``job``; return its folder."""
    shop = open_workshop(job)
    shop.bank()
    return shop.store.path("trajectories", shop.ids.trajectories)


def calibrate(job: Job) -> Path:
    """Run the stages of ``job``; return the folder of the last one's artifact."""
    shop = open_workshop(job)
    with shop.record, tracker(shop, "calibration"):
        stages = shop.calibrated()
    return stages[-1].path if stages else shop.store.root


def sample(job: Job) -> Path:
    """Draw the samples of ``job``; return their folder."""
    shop = open_workshop(job)
    with shop.record:
        draw_samples(shop)
    return shop.store.path("samples", shop.ids.samples)


def tracker(shop: Workshop, kind: Any) -> Tracker:
    """The wandb mirror of one half of the job."""
    job = shop.job
    return Tracker(
        shop.record,
        kind,
        mode=job.tracker.mode,
        directory=job.store_root,
        tags=(job.method.name, job.model.name, job.bits.name),
        config=job.config,
    )


def tell_location(mirror: Tracker) -> None:
    """Say where a wandb run lies, if there is one."""
    if mirror.location is not None:
        print(f"wandb {mirror.kind}: {mirror.location}", file=sys.stderr)


def draw_samples(shop: Workshop):
    """The samples of this job's model."""
    job = shop.job
    return shop.samples(shop.ids.samples, job.metrics.samples, job.title, shop.frozen, seed=job.metrics.seed)


def make_evaluator(shop: Workshop) -> Evaluator:
    """Full-precision samples, the floors beside them, and the protocol that all metrics of this job share."""
    job = shop.job
    fp_id = job_ids(full_precision(job), shop.weights).samples

    def drawn(id: str, count: int, title: str, seed: int, perturbation: float = 0.0):
        return shop.samples(id, count, title, shop.full_precision, seed=seed, perturbation=perturbation)

    full = drawn(fp_id, job.metrics.samples, "full precision", job.metrics.seed)
    floors = Floors(
        perturbed=drawn(
            perturbed_id(fp_id, PERTURBATION), job.metrics.pairs, "the numerical floor", job.metrics.seed, PERTURBATION
        ),
        other_seed=drawn(
            other_seed_id(job, shop.weights), job.metrics.samples, "the floor of another seed", job.metrics.seed + 1
        ),
    )
    quantized = job.method.name != "fp"
    protocol = Protocol(
        metric="shared",
        version=1,
        tool="dmqbench",
        rounding="uint8",
        n=job.metrics.samples,
        seed=job.metrics.seed,
        sampler=job.sampler.name,
        timesteps=shop.plan.timesteps,
        eta=job.sampler.eta,
        guidance=job.sampler.guidance,
        chunk=job.sampler.chunk,
        engine=job.engine,
        scope=job.bits.scope if quantized else None,
        clip=job.sampler.clip_sample,
        base=fp_id,
    )
    return Evaluator(protocol, full, fp_id, job.dataset.name, job.metrics.pairs, floors)


def compose_result(
    shop: Workshop, evaluation: Evaluation, stages: list[Artifact], evaluate_seconds: float
) -> dict[str, Any]:
    """The content of ``result.json`` (design section 5)."""
    job, ids = shop.job, shop.ids
    bank = shop.store.verified("trajectories", ids.trajectories) if stages else None
    forwards = [artifact.facts["network_forwards"] for artifact in ([bank] if bank else []) + stages]
    return {
        "job_id": ids.result,
        "method": job.method.name,
        "model": job.model.name,
        "bits": job.bits.name,
        "scope": job.bits.scope,
        "ranges": job.bits.ranges,
        "dataset": job.dataset.name,
        "seed": job.seed,
        "embedded": job.model.source == "embedded",
        "config": job.config,
        "samples": {"quantized": ids.samples, "fp": job_ids(full_precision(job), shop.weights).samples},
        "metrics": {name: found.to_json() for name, found in evaluation.measurements.items()},
        "unavailable": evaluation.unavailable,
        "cost": {**describe_cost(job), "simulated": True},
        "timing": {
            "trajectories_s": round(bank.facts["seconds"], 3) if bank else 0.0,
            "calibrate_s": round(sum(artifact.facts["seconds"] for artifact in stages), 3),
            "sample_s": round(shop.sample_seconds.get(ids.samples, 0.0), 3),
            "evaluate_s": round(evaluate_seconds, 3),
            "unet_forwards_calibration": round(sum(forwards)),
            "peak_memory_mib": peak_memory_mib(),
        },
        "environment": environment(job.device_type),
    }


def write_result(shop: Workshop, result: dict[str, Any], evaluation: Evaluation) -> Path:
    """Write or extend the result: what was measured now replaces older records, metrics not measured now stay."""
    store, id = shop.store, shop.ids.result
    with store.lock("result", id):
        per_image = dict(evaluation.per_image)
        before = store.verified("result", id)
        if before is not None:
            old = json.loads(before.files["result.json"].read_text())
            old_images = json.loads(before.files["per_image.json"].read_text())
            result["metrics"] = old["metrics"] | result["metrics"]
            per_image = old_images | per_image
            # Samples that are looked up take no time; what drawing them took is still the answer.
            result["timing"]["sample_s"] = result["timing"]["sample_s"] or old["timing"]["sample_s"]
        files = {"result.json": json_text(result), "per_image.json": json_text(per_image)}
        return store.replace_files("result", id, files).path


# ---- cost and plan


def describe_cost(job: Job) -> dict[str, Any]:
    """Cost of the job's denoiser in the keys of the contract; needs no weights."""
    from dmqbench.models.sources import meta_topology

    topology, parameters = meta_topology(job.model.checkpoint)
    bits = BitWidth(job.bits.weight, job.bits.activation)
    quantized = job.method.name != "fp"

    def plan(scope: Scope) -> PrecisionPlan:
        return uniform_plan(topology.layers, bits, scope) if quantized else PrecisionPlan(())

    paper = Scope(**job.method.paper_scope)
    scope = scope_of(job)
    layers = [CountedLayer(layer.name, layer.weight_shape, layer.macs) for layer in topology.layers]
    nominal = LayerPlan("all", bits.weight, bits.activation) if quantized else None
    cost: Cost = count_cost(layers, plan(scope), plan(paper), parameters, topology.attention_macs, nominal)
    named = {"model": job.model.name, "method": job.method.name, "bits": job.bits.name, "scope": job.bits.scope}
    return {**named, **asdict(cost), "full_precision_names": list(plan(scope).full_precision)}


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


def show_plan(job: Job) -> None:
    """Print what would run, what is in the store already, and what the quantized model costs."""
    from rich.console import Console
    from rich.table import Table

    store, hash = Store(job.store_root), weights_hash(job.model)
    ids, fp = job_ids(job, hash), job_ids(full_precision(job), hash).samples
    rows = [
        ("samples", "full precision", fp, job.metrics.samples),
        ("samples", "numerical floor", perturbed_id(fp, PERTURBATION), job.metrics.pairs),
        ("samples", "floor of another seed", other_seed_id(job, hash), job.metrics.samples),
    ]
    if job.method.stages:
        rows.append(("trajectories", f"{job.budget.trajectories} + {job.budget.validation}", ids.trajectories, 0))
    rows += [("quantized", name, id, 0) for name, id in ids.stages]
    if job.method.stages:
        rows.append(("samples", job.title, ids.samples, job.metrics.samples))
    rows.append(("result", job.title, ids.result, 0))
    table = Table("artifact", "what", "id", "state", title=f"Plan of {job.title}")
    for kind, what, id, count in rows:
        table.add_row(kind, what, id, state_of(store, job, kind, id, count))
    Console().print(table)
    show_cost(job)


def state_of(store: Store, job: Job, kind: str, id: str, count: int) -> str:
    """What a run would do about an artifact; ``count`` is the number of samples asked for."""
    artifact = store.verified(kind, id)
    if artifact is None:
        return "to be made"
    if kind == "samples":
        names = {chunk_name(number) for number in range(chunk_count(count, job.sampler.chunk))}
        return f"{len(names & artifact.files.keys())} of {len(names)} chunks are there"
    if kind == "result":
        found = json.loads(artifact.files["result.json"].read_text())
        lacking = [name for name in job.metrics.names if name not in found["metrics"]]
        return f"lacks {', '.join(lacking)}" if lacking else "is there"
    return "is there"


def other_seed_id(job: Job, weights: str) -> str:
    """Id of the full-precision samples that are drawn with another seed, for the floor of distribution metrics."""
    elsewhere = replace(full_precision(job), metrics=replace(job.metrics, seed=job.metrics.seed + 1))
    return job_ids(elsewhere, weights).samples
