"""One job, as a recipe: what it needs is looked up in the store or made, then measured and written down."""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dmqbench.anatomy.diagnosis import diagnose
from dmqbench.config.ids import inputs_id, job_ids, needs_match, perturbed_id
from dmqbench.config.method_checks import WHOSE_PARAMETERS
from dmqbench.config.model_facts import layer_shapes, timesteps, weights_hash
from dmqbench.config.precision_plans import mean_weight_bits, plan_hash
from dmqbench.config.schema import (
    DIAGNOSIS,
    DIAGNOSIS_VERSION,
    FOREIGN,
    STAND_IN,
    UNCALIBRATED,
    UNKNOWN,
    Job,
    SamplerConfig,
    full_precision,
)
from dmqbench.costs import calibration_costs, describe_cost, largest, said_of_quantization, show_cost
from dmqbench.eval.evaluate import Evaluation, Evaluator, Floors, SampleSet
from dmqbench.eval.feature_cache import feature_source, floor_source
from dmqbench.eval.protocol import Protocol
from dmqbench.models.rollout import chunk_count, chunk_name
from dmqbench.pipeline import PLAN, STATE, Workshop, compute_in_float32
from dmqbench.quant.plan import PrecisionPlan
from dmqbench.results.plots.samples import picture_of
from dmqbench.store.artifacts import Artifact, Store, StoreError
from dmqbench.store.files import json_text, load_json
from dmqbench.tracking.environment import environment
from dmqbench.tracking.record import Part
from dmqbench.tracking.tracker import Tracker
from dmqbench.tracking.wandb_client import warm_up

PERTURBATION = 1e-7
"""Relative change of x_T for the numerical floor: less than one unit in the last place of float32."""


def open_workshop(job: Job) -> Workshop:
    """Return the workshop of ``job`` over its store, which must be writable."""
    compute_in_float32()
    store = Store(job.store_root)
    store.check_writable()
    return Workshop(job, store)


def run_job(job: Job) -> Path:
    """Make everything that ``job`` needs, measure it, and return its result folder."""
    shop = open_workshop(job)
    with shop.record:
        tell_job(shop)
        evaluator = make_evaluator(shop)
        stages = calibrate_and_tell(shop)
        diagnosis = known_diagnosis(shop)
        if diagnosis is None and job.diagnosed:
            shop.bank()  # before layers are exchanged: its bits must not depend on who makes it
        samples = draw_samples(shop)
        diagnose_seconds = 0.0
        if diagnosis is None and job.diagnosed:
            started = time.perf_counter()
            diagnosis = make_diagnosis(shop)
            diagnose_seconds = time.perf_counter() - started
        with tracker(shop, "evaluation") as mirror:
            tell_location(mirror)
            started = time.perf_counter()
            evaluation = evaluator.evaluate(samples, job.metrics.names)
            seconds = time.perf_counter() - started
            result = compose_result(shop, evaluation, stages, seconds, diagnose_seconds)
            folder = write_result(shop.store, result, evaluation, diagnosis)
            show_in_tracker(shop, mirror, result, evaluation, diagnosis)
    return folder


def evaluate_stored(job: Job) -> Path:
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
    with shop.record:
        tell_job(shop)
        stages = calibrate_and_tell(shop)
    return stages[-1].path if stages else shop.store.root


def sample(job: Job) -> Path:
    """Draw the samples of ``job``; return their folder."""
    shop = open_workshop(job)
    with shop.record:
        draw_samples(shop)
    return shop.store.path("samples", shop.ids.samples)


def tell_job(shop: Workshop) -> None:
    """Begin the record with what the job is."""
    warm_up(shop.job.tracker.mode)
    shop.record.log("job", config=shop.job.config, ids=asdict(shop.ids), tags=tags_of(shop.job))


def tags_of(job: Job) -> tuple[str, str, str]:
    """Method, model and bits."""
    if job.evaluate.samples is not None:
        return FOREIGN, job.model.name, job.evaluate.bits or UNKNOWN
    return job.method.name, job.model.name, said_of_quantization(job)["bits"]


def calibrate_and_tell(shop: Workshop) -> list[Artifact]:
    """Run the stages that are not in the store, mirrored to the tracker; return the artifacts of all."""
    with tracker(shop, "calibration") as mirror:
        tell_location(mirror)
        stages = shop.calibrated()
        if shop.ids.quantized is not None:
            mirror.made(shop.ids.quantized, **facts_of(shop.job))
    return stages


def facts_of(job: Job) -> dict[str, str]:
    method, model, bits = tags_of(job)
    return {"method": method, "model": model, "bits": bits}


def show_in_tracker(
    shop: Workshop,
    mirror: Tracker,
    result: Mapping[str, Any],
    evaluation: Evaluation,
    diagnosis: Mapping[str, Any] | None,
) -> None:
    """Log what was found, link it with its calibration, and add what people would rather look at than read."""
    measured = without_stand_ins(evaluation.measurements)
    shop.record.log("metrics", **{name: each.value for name, each in measured.items() if not each.exact})
    mirror.summarize(
        {
            "metrics": without_stand_ins(result["metrics"]),
            "cost": result["cost"],
            "timing": result["timing"],
        }
    )
    if shop.ids.quantized is not None:
        mirror.used(shop.ids.quantized, **facts_of(shop.job))
    mirror.per_image(without_stand_ins(evaluation.per_image))
    if diagnosis is not None:
        mirror.diagnosis(diagnosis)
    if mirror.location is None:
        return
    picture = shop.record.path.with_suffix(".png")
    try:
        picture_of(shop.store.root, [shop.store.path("result", shop.ids.result)], picture)
    except (OSError, ValueError, SafetensorError, StoreError):
        return  # damaged, or of a kind that the picture does not know; the numbers are there
    rows = "full precision | quantized | difference"
    mirror.image("samples", picture, f"input | {rows}" if shop.job.works_on_images else rows)


def without_stand_ins(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by metric, without those of made-up networks."""
    return {name: value for name, value in values.items() if not name.startswith(STAND_IN)}


def tracker(shop: Workshop, part: Part) -> Tracker:
    """The wandb mirror of one half of the job."""
    job = shop.job
    return Tracker(
        shop.record,
        part,
        mode=job.tracker.mode,
        directory=job.store_root,
        tags=tags_of(job),
        config=job.config,
        ids=asdict(shop.ids),
    )


def tell_location(mirror: Tracker) -> None:
    """Say where a wandb run lies, if there is one."""
    if mirror.location is not None:
        print(f"wandb {mirror.part}: {mirror.location}", file=sys.stderr)


def draw_samples(shop: Workshop):
    """The samples of this job's model."""
    job = shop.job
    return shop.samples(shop.ids.samples, job.metrics.samples, job.title, shop.frozen, seed=job.metrics.seed)


def known_diagnosis(shop: Workshop) -> dict[str, Any] | None:
    """What an earlier run of the job found on the same trajectories, if the store has it."""
    before = shop.store.verified("result", shop.ids.result)
    if before is None or DIAGNOSIS not in before.files:
        return None
    found = load_json(before.files[DIAGNOSIS])
    current = (found.get("version"), found.get("bank")) == (DIAGNOSIS_VERSION, shop.ids.trajectories)
    return found if current else None


def make_diagnosis(shop: Workshop) -> dict[str, Any]:
    """Measure errors per step and layer on the validation trajectories."""
    job = shop.job
    found = diagnose(
        shop.frozen(),
        shop.plan,
        shop.bank().val,
        seed=job.seed,
        guidance=job.sampler.guidance,
        chunk=job.sampler.chunk,
    )
    return {**found.to_json(), "bank": shop.ids.trajectories}


def make_evaluator(shop: Workshop) -> Evaluator:
    """Full-precision samples, the floors beside them, and the protocol that all metrics of this job share."""
    job = shop.job
    fp_id = job_ids(full_precision(job), shop.weights).samples
    return Evaluator(
        protocol=shared_protocol(shop, fp_id),
        full_precision=full_precision_samples(shop, fp_id, job.metrics.samples),
        full_precision_id=fp_id,
        dataset=job.dataset.name,
        reference=job.dataset.reference,
        pairs=job.metrics.pairs,
        settings=job.metrics,
        features=feature_source(shop.store, job.device_type),
        floor_of=floor_source(shop.store, job.device_type),
        floors=draw_floors(shop, fp_id),
        truth=ground_truth(shop),
        device=job.device_type,
    )


def ground_truth(shop: Workshop) -> SampleSet | None:
    """The images that were degraded, for all pairs; None where nothing says what a sample should be."""
    job = shop.job
    if job.task_kind != "restore":
        return None
    return SampleSet(inputs_id(job), shop.images.pixels("eval", range(job.metrics.pairs)))


def full_precision_samples(shop: Workshop, id: str, count: int) -> SampleSet:
    """The first ``count`` samples ``id`` of the full-precision model, from the store or drawn now."""
    return shop.samples(id, count, "full precision", shop.full_precision, seed=shop.job.metrics.seed)


def draw_floors(shop: Workshop, fp_id: str) -> Floors:
    """What the metrics read where nothing is quantized: once per model, sampler and seed, shared by all jobs."""
    metrics, model = shop.job.metrics, shop.full_precision
    perturbed, other = perturbed_id(fp_id, PERTURBATION), other_seed_id(shop.job, shop.weights)
    return Floors(
        perturbed=shop.samples(
            perturbed, metrics.pairs, "the numerical floor", model, seed=metrics.seed, perturbation=PERTURBATION
        ),
        other_seed=shop.samples(other, metrics.samples, "the floor of another seed", model, seed=metrics.seed + 1),
    )


def shared_protocol(shop: Workshop, fp_id: str) -> Protocol:
    """The protocol of this job's samples, to which a metric adds its own entries."""
    job = shop.job
    return Protocol(
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
        engine=None if job.foreign else job.engine,
        scope=None if job.method.name in UNCALIBRATED else job.bits.scope,
        clip=job.sampler.clip_sample,
        task=job.task_kind if job.works_on_images else None,
        strength=job.strength if job.task_kind == "edit" else None,
        base=fp_id,
        unknown=("scope", "engine") if job.foreign else (),
    )


def compose_result(
    shop: Workshop,
    evaluation: Evaluation,
    stages: list[Artifact],
    evaluate_seconds: float,
    diagnose_seconds: float,
) -> dict[str, Any]:
    """The content of ``result.json`` (design section 5)."""
    job, ids = shop.job, shop.ids
    bank = shop.store.verified("trajectories", ids.trajectories) if stages else None
    named = [("trajectories", bank)] if bank else []
    named += [(name, artifact) for (name, _), artifact in zip(ids.stages, stages, strict=True)]
    calibration = calibration_costs(named)
    return {
        "job_id": ids.result,
        "method": job.method.name,
        "variant": job.method.variant,
        **said_of_quantization(job),
        "model": job.model.name,
        "dataset": job.dataset.name,
        "seed": job.seed,
        "task_kind": job.task_kind,
        "strength": job.strength if job.task_kind == "edit" else None,
        "input_images": len(shop.images.images["eval"]) if job.works_on_images else None,
        "embedded": job.model.source == "embedded",
        "config": job.config,
        "artifacts": {
            "trajectories": ids.trajectories if stages else None,
            "stages": [[name, id] for name, id in ids.stages],
        },
        "samples": {
            "quantized": ids.samples,
            "fp": job_ids(full_precision(job), shop.weights).samples,
            **({"input": shop.shown_inputs()} if job.works_on_images else {}),
        },
        "metrics": {name: found.to_json() for name, found in evaluation.measurements.items()},
        "unavailable": evaluation.unavailable,
        "undiagnosed": job.undiagnosed if job.diagnose else None,
        "missing_weights": evaluation.missing_weights,
        "plan": plan_facts(shop, stages),
        "cost": {
            **describe_cost(job, reached_plan(stages), stages[-1].path / STATE if stages else None),
            "simulated": None if job.foreign else True,
        },
        "timing": {
            "trajectories_s": round(bank.facts["seconds"], 3) if bank else 0.0,
            "calibrate_s": round(sum(artifact.facts["seconds"] for artifact in stages), 3),
            "sample_s": round(shop.sample_seconds.get(ids.samples, 0.0), 3),
            "evaluate_s": round(evaluate_seconds, 3),
            "diagnose_s": round(diagnose_seconds, 3),
            "unet_forwards_calibration": round(sum(artifact.facts["network_forwards"] for _, artifact in named)),
            "peak_memory_mib": shop.memory.total_mib,
            "calibration_peak_memory_mib": largest(part["peak_memory_mib"] for part in calibration),
        },
        "calibration": calibration,
        "environment": environment(job.device_type),
    }


def reached_plan(stages: list[Artifact]) -> PrecisionPlan | None:
    """The precision plan after the last stage; None where there is no stage."""
    return PrecisionPlan.from_json(load_json(stages[-1].path / PLAN)) if stages else None


def plan_facts(shop: Workshop, stages: list[Artifact]) -> dict[str, Any] | None:
    """Hash and mean bits of the plan that the job was given, or has found; None where all rows have the job's bits."""
    plan, given = reached_plan(stages), shop.job.plan is not None
    if plan is None or not (given or plan.mixed_rows):
        return None
    mean = mean_weight_bits(plan, layer_shapes(shop.job.model))
    return {"hash": plan_hash(plan), "mean_weight_bits": round(mean, 6)}


def write_result(
    store: Store, result: dict[str, Any], evaluation: Evaluation, diagnosis: dict[str, Any] | None
) -> Path:
    """Write or extend the result: what was measured now replaces older records, metrics not measured now stay."""
    id = result["job_id"]
    result["records"] = _all_records({}, result)
    with store.lock("result", id):
        per_image = dict(evaluation.per_image)
        before = store.verified("result", id)
        if before is not None:
            old = load_json(before.files["result.json"])
            result["records"] = _all_records(old, result)
            kept = {name: record for name, record in old["metrics"].items() if name not in result["unavailable"]}
            result["metrics"] = kept | result["metrics"]
            per_image = load_json(before.files["per_image.json"]) | per_image
            # What is looked up takes no time; what making it took is still the answer.
            for name in ("sample_s", "diagnose_s"):
                result["timing"][name] = result["timing"].get(name) or old["timing"].get(name)
        files = {"result.json": json_text(result), "per_image.json": json_text(per_image)}
        if diagnosis is not None:
            files[DIAGNOSIS] = json_text(diagnosis)
        return store.replace_files("result", id, files).path


def _all_records(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every value ever measured of these samples, one for each protocol; ``metrics`` holds the latest of each name."""
    listed = [*old.get("records", ()), *({"metric": name, **record} for name, record in new["metrics"].items())]
    return list({(record["metric"], record["protocol"]): record for record in listed}.values())


# ---- plan


def show_plan(job: Job) -> None:
    """Print what would run, what is in the store already, and what the quantized model costs."""
    from rich.console import Console
    from rich.table import Table

    if job.model.shapes_only:
        print(f"{job.title}: nothing can be made, as the weights of {job.model.name} are not shipped")
        show_cost(job)
        return
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
    if job.works_on_images:
        source = job.inputs.images or f"the images shipped for {job.dataset.name}"
        calls = len(timesteps(job.sampler, job.model, job.strength))
        print(f"{job.task_kind}: {source}; {calls} network calls a sample")
    if job.calibration.changes:
        print(f"calibrated on {_said(job.calibration_sampler)}; sampled with {_said(job.sampler)}")
    if needs_match(job):
        print(f"every sampled call has {WHOSE_PARAMETERS[job.calibration.match]}")
    show_cost(job)


def _said(sampler: SamplerConfig) -> str:
    return f"{sampler.name}, steps {sampler.steps}, eta {sampler.eta:g}, guidance {sampler.guidance:g}"


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
