"""The result of a job: of samples drawn here, or of images made elsewhere; and how it is written or extended."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from math import isfinite, nan
from pathlib import Path
from typing import Any

from dmqbench.config.checked_job import Job
from dmqbench.config.ids import reference_id
from dmqbench.config.inputs import EvaluateConfig
from dmqbench.config.model_facts import is_of_model, layer_shapes
from dmqbench.config.names import DIAGNOSIS, FOREIGN, UNKNOWN
from dmqbench.config.precision_plans import PLAN_FILE, mean_weight_bits, plan_hash
from dmqbench.data.archives import inspect
from dmqbench.eval.evaluate import Evaluation, Evaluator, SampleSet
from dmqbench.quant.plan import PrecisionPlan
from dmqbench.results.record import (
    Artifacts,
    CalibrationPart,
    Cost,
    PlanFacts,
    ProcessorTiming,
    Quantization,
    Run,
    Samples,
    Timing,
    largest,
)
from dmqbench.results.result import Result, records_of
from dmqbench.store.artifact import Artifact
from dmqbench.store.artifacts import Store
from dmqbench.store.files import json_text, load_json
from dmqbench.tasks.cost import describe_cost, quantization_of
from dmqbench.tasks.mirror import show_in_tracker, tracker
from dmqbench.tasks.sample import shown_inputs
from dmqbench.tasks.workshop import STATE, Workshop
from dmqbench.tracking.environment import environment, peak_memory_mib
from dmqbench.tracking.stopwatch import Stopwatch


def label_of(evaluate: EvaluateConfig) -> str:
    """Return how the row is called: as its author says, otherwise as the file."""
    path = Path(evaluate.samples or "").resolve()
    return evaluate.name or (path.name if path.is_dir() else path.stem)


def declared_quantization(name: str, bits: str | None) -> Quantization:
    """Return what is known of how images made elsewhere were quantized: what their author says."""
    return Quantization(bits=bits or UNKNOWN, scope=UNKNOWN, name=name, declared=("bits",) if bits else ())


def calibration_costs(parts: Iterable[tuple[str, Artifact]]) -> tuple[CalibrationPart, ...]:
    """Return seconds, network calls of batch 1 and peaks of memory of every part of a calibration.

    A peak is None in artifacts that were made before it was measured, and on a device that the part did not use.
    """
    return tuple(
        CalibrationPart(
            stage=name,
            seconds=round(artifact.facts["seconds"], 3),
            processor_seconds=finite(artifact.facts.get("processor_seconds", nan)),
            network_forwards=round(artifact.facts["network_forwards"]),
            peak_memory_mib=artifact.facts.get("peak_memory_mib"),
            peak_device_memory_mib=artifact.facts.get("peak_device_memory_mib"),
        )
        for name, artifact in parts
    )


def finite(seconds: float) -> float | None:
    """Return seconds for a file; None where some were not measured, as by earlier versions."""
    return round(seconds, 3) if isfinite(seconds) else None


def run_result(
    shop: Workshop,
    evaluation: Evaluation,
    stages: list[Artifact],
    evaluating: Stopwatch,
    diagnosing: Stopwatch,
) -> Result:
    """Return the result of samples that were drawn here."""
    job, ids = shop.job, shop.ids
    bank = shop.store.verified("trajectories", ids.trajectories) if stages else None
    parts = [] if bank is None else [("trajectories", bank)]
    parts += [(name, artifact) for (name, _), artifact in zip(ids.stages, stages, strict=True)]
    cost = describe_cost(job, reached_plan(stages), stages[-1].path / STATE if stages else None)
    return Result(
        job_id=ids.result,
        method=job.method.name,
        model_name=job.model.name,
        quantization=quantization_of(job),
        dataset=job.dataset.name,
        seed=job.seed,
        embedded=job.model.source == "embedded",
        config=job.config,
        samples=Samples(
            quantized=ids.samples,
            fp=reference_id(job, shop.weights),
            input=shown_inputs(shop) if job.works_on_images else None,
        ),
        **measured(evaluation),
        cost=Cost.from_json({**cost, "simulated": None if job.foreign else True}),
        timing=run_timing(shop, bank, stages, evaluating, diagnosing),
        environment=environment(job.device_type),
        run=run_facts(shop, stages, calibration_costs(parts)),
    )


def measured(evaluation: Evaluation) -> dict[str, Any]:
    """Return the fields of a result that say what was measured, and what was not."""
    return {
        "measured": evaluation.measurements,
        "records": records_of(evaluation.measurements),
        "unavailable": evaluation.unavailable,
        "missing_weights": tuple(evaluation.missing_weights),
    }


def run_timing(
    shop: Workshop, bank: Artifact | None, stages: list[Artifact], evaluating: Stopwatch, diagnosing: Stopwatch
) -> Timing:
    """Return what every step took; trajectories and stages that were looked up, what making them took."""
    parts = stages if bank is None else [bank, *stages]
    on_processor = [part.facts.get("processor_seconds", nan) for part in parts]
    sampling = shop.sampling_watches.get(shop.ids.samples, Stopwatch())
    return Timing(
        trajectories_s=0.0 if bank is None else round(bank.facts["seconds"], 3),
        calibrate_s=round(sum(stage.facts["seconds"] for stage in stages), 3),
        sample_s=round(sampling.seconds, 3),
        evaluate_s=round(evaluating.seconds, 3),
        diagnose_s=round(diagnosing.seconds, 3),
        processor=ProcessorTiming(
            trajectories_s=0.0 if bank is None else finite(on_processor[0]),
            calibrate_s=finite(sum(on_processor[len(parts) - len(stages) :])),
            sample_s=round(sampling.processor_seconds, 3),
            evaluate_s=round(evaluating.processor_seconds, 3),
            diagnose_s=round(diagnosing.processor_seconds, 3),
        ),
        unet_forwards_calibration=round(sum(part.facts["network_forwards"] for part in parts)),
        peak_memory_mib=shop.memory.total_mib,
        calibration_peak_memory_mib=largest(part.facts.get("peak_memory_mib") for part in parts),
    )


def run_facts(shop: Workshop, stages: list[Artifact], calibration: tuple[CalibrationPart, ...]) -> Run:
    """Return what only samples drawn here have: task, artifacts, precision plan, parts of the calibration."""
    job, ids = shop.job, shop.ids
    return Run(
        variant=job.method.variant,
        task_kind=job.task_kind,
        strength=job.strength if job.task_kind == "edit" else None,
        input_images=len(shop.images.images["eval"]) if job.works_on_images else None,
        artifacts=Artifacts(trajectories=ids.trajectories if stages else None, stages=ids.stages),
        undiagnosed=job.undiagnosed if job.diagnose else None,
        plan=plan_facts(shop, stages),
        calibration=calibration,
    )


def reached_plan(stages: list[Artifact]) -> PrecisionPlan | None:
    """Return the precision plan after the last stage; None where there is no stage."""
    return PrecisionPlan.from_json(load_json(stages[-1].path / PLAN_FILE)) if stages else None


def plan_facts(shop: Workshop, stages: list[Artifact]) -> PlanFacts | None:
    """Return hash and mean bits of the plan that was given or found; None where all rows have the job's bits."""
    plan, given = reached_plan(stages), shop.job.plan is not None
    if plan is None or not (given or plan.mixed_rows):
        return None
    mean = mean_weight_bits(plan, layer_shapes(shop.job.model))
    return PlanFacts(hash=plan_hash(plan), mean_weight_bits=round(mean, 6))


def measure(
    shop: Workshop,
    evaluator: Evaluator,
    samples: SampleSet,
    result_of: Callable[[Evaluation, Stopwatch], Result],
    diagnosis: dict[str, Any] | None = None,
) -> Path:
    """Measure samples, write the result and show it in the tracker; return its folder.

    ``result_of`` makes it of what was measured and the time that this took.
    """
    with tracker(shop, "evaluation") as mirror:
        with Stopwatch().running() as evaluating:
            evaluation = evaluator.evaluate(samples, shop.job.metrics.names)
        result = result_of(evaluation, evaluating)
        result = write_result(shop.store, result, evaluation, diagnosis)
        show_in_tracker(shop, mirror, result, evaluation, diagnosis)
    return result.folder


def write_result(store: Store, result: Result, evaluation: Evaluation, diagnosis: dict[str, Any] | None) -> Result:
    """Write the result, or extend the one that is there, and return it as it was written."""
    with store.lock("result", result.job_id):
        per_image = dict(evaluation.per_image)
        before = store.verified("result", result.job_id)
        if before is not None:
            result = extended(Result.load(before.path), result)
            per_image = load_json(before.files["per_image.json"]) | per_image
        files = {"result.json": json_text(result.to_json()), "per_image.json": json_text(per_image)}
        if diagnosis is not None:
            files[DIAGNOSIS] = json_text(diagnosis)
        return replace(result, folder=store.replace_files("result", result.job_id, files).path)


def extended(old: Result, new: Result) -> Result:
    """Return the new result with what it does not replace: earlier values, every record, what other versions wrote.

    What was looked up took no time; what making it took is still the answer.
    """
    kept = {name: value for name, value in old.measured.items() if name not in new.unavailable}
    processor = new.timing.processor.after(old.timing.processor)
    timing = replace(new.timing.after(old.timing), processor=processor)
    return replace(
        new,
        measured={**kept, **new.measured},
        records={**old.records, **new.records},
        samples=new.samples.keeping(old.samples),
        cost=new.cost.keeping(old.cost),
        timing=timing,
        further={**old.further, **new.further},
    )


def names_of_images(job: Job) -> dict[str, Any]:
    """Return model and dataset of the result: those that the job names, where the images can be of that model."""
    if is_of_model(job.evaluate, job.model):
        embedded = job.model.source == "embedded"
        return {"model_name": job.model.name, "dataset": job.dataset.name, "embedded": embedded}
    dataset = "none" if job.dataset.reference is None else UNKNOWN
    return {"model_name": UNKNOWN, "dataset": dataset, "embedded": False}


def imported_result(shop: Workshop, reference: str, evaluation: Evaluation, evaluating: Stopwatch) -> Result:
    """Return the result of images made elsewhere; what nobody told this program is None or "unknown"."""
    job, evaluate = shop.job, shop.job.evaluate
    found = [inspect(path) for path in (evaluate.samples, evaluate.fp_samples) if path is not None]
    return Result(
        job_id=shop.ids.result,
        method=FOREIGN,
        **names_of_images(job),
        quantization=declared_quantization(label_of(evaluate), evaluate.bits),
        seed=job.seed,
        config=job.config,
        samples=Samples(quantized=shop.ids.samples, fp=reference),
        **measured(evaluation),
        timing=Timing(
            evaluate_s=round(evaluating.seconds, 3),
            processor=ProcessorTiming(evaluate_s=round(evaluating.processor_seconds, 3)),
            peak_memory_mib=peak_memory_mib(),
        ),
        environment=environment(job.device_type),
        notes=(*filter(None, (info.note for info in found)), *_of_sizes([info.count for info in found])),
    )


def _of_sizes(counts: list[int]) -> tuple[str, ...]:
    """What is said of two sets that do not pair to the last image."""
    if len(set(counts)) < 2:
        return ()
    return (f"{counts[0]} images and {counts[1]} of full precision: the first {min(counts)} of both are pairs",)
