"""What ``result.json`` says, and how it is written or extended."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dmqbench.config.ids import job_ids
from dmqbench.config.model_facts import is_of_model, layer_shapes
from dmqbench.config.precision_plans import mean_weight_bits, plan_hash
from dmqbench.config.schema import DIAGNOSIS, FOREIGN, UNKNOWN, EvaluateConfig, Job, full_precision
from dmqbench.data.archives import inspect
from dmqbench.eval.evaluate import Evaluation
from dmqbench.quant.plan import PrecisionPlan
from dmqbench.store.artifacts import Artifact, Store
from dmqbench.store.files import json_text, load_json
from dmqbench.tasks.cost import describe_cost, said_of_quantization
from dmqbench.tasks.sample import shown_inputs
from dmqbench.tasks.workshop import PLAN, STATE, Workshop
from dmqbench.tracking.environment import environment, peak_memory_mib

COST_KEYS = ("parameters", "quantized_layers", "skip_layers", "full_precision_layers", "macs", "attention_macs", "bops")


def label_of(evaluate: EvaluateConfig) -> str:
    """How the row is called: as its author says, otherwise as the file."""
    if evaluate.name is not None:
        return evaluate.name
    path = Path(evaluate.samples or "").resolve()
    return path.name if path.is_dir() else path.stem


def foreign_entries(name: str, bits: str | None, size_mib: float | None = None) -> dict[str, Any]:
    """Entries of ``result.json`` that speak of what was made elsewhere; what only its author says is ``declared``."""
    return {
        "method": FOREIGN,
        "name": name,
        "bits": bits or UNKNOWN,
        "scope": UNKNOWN,
        "ranges": None,
        "declared": ["bits"] if bits else [],
        "cost": {
            **dict.fromkeys(COST_KEYS),
            "size_mib": {"all_layers": None, "paper_code": None, "packed": size_mib},
            "full_precision_names": None,
            "simulated": None,
        },
    }


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
            **({"input": shown_inputs(shop)} if job.works_on_images else {}),
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


def names_of_images(job: Job) -> dict[str, Any]:
    """Model and dataset of the result: those that the job names, where the images can be of that model."""
    if is_of_model(job.evaluate, job.model):
        embedded = job.model.source == "embedded"
        return {"model": job.model.name, "dataset": job.dataset.name, "embedded": embedded}
    dataset = "none" if job.dataset.reference is None else UNKNOWN
    return {"model": UNKNOWN, "dataset": dataset, "embedded": False}


def foreign_result(shop: Workshop, reference: str, evaluation: Evaluation, seconds: float) -> dict[str, Any]:
    """The content of ``result.json`` (design section 5); what nobody told this program is null or "unknown"."""
    job, evaluate = shop.job, shop.job.evaluate
    paths = [path for path in (evaluate.samples, evaluate.fp_samples) if path is not None]
    return {
        **foreign_entries(label_of(evaluate), evaluate.bits),
        "job_id": shop.ids.result,
        **names_of_images(job),
        "seed": job.seed,
        "config": job.config,
        "samples": {"quantized": shop.ids.samples, "fp": reference},
        "notes": [note for path in paths if (note := inspect(path).note) is not None],
        "metrics": {name: found.to_json() for name, found in evaluation.measurements.items()},
        "unavailable": evaluation.unavailable,
        "missing_weights": evaluation.missing_weights,
        "timing": {
            "trajectories_s": None,
            "calibrate_s": None,
            "sample_s": None,
            "evaluate_s": round(seconds, 3),
            "unet_forwards_calibration": None,
            "peak_memory_mib": peak_memory_mib(),
        },
        "environment": environment(job.device_type),
    }
