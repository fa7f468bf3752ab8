"""``task=calibrate``: the stages of a job's method, each once and in order."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

from safetensors.torch import load_file

from dmqbench.calibration.checkpoint import UnitCheckpoint
from dmqbench.calibration.offloading import weights_elsewhere
from dmqbench.calibration.rows import Shelf
from dmqbench.calibration.run import UnitProgress, run_stage
from dmqbench.calibration.stage import Stage, Workbench
from dmqbench.config.checked_job import Job, StageConfig
from dmqbench.config.effort import work_of_stage
from dmqbench.config.model_facts import timesteps
from dmqbench.config.names import FINDINGS
from dmqbench.config.precision_plans import PLAN_FILE
from dmqbench.data.tensor_files import save_tensors
from dmqbench.methods import stages_of
from dmqbench.models.absorption import load_state_into_
from dmqbench.models.exchange import Description, quantized_attentions
from dmqbench.models.portions import WHOLE, Portions
from dmqbench.models.sources import meta_topology
from dmqbench.quant.layers import adopt_weight_bits_, plan_of_layers
from dmqbench.quant.plan import PrecisionPlan, reasons_left_out
from dmqbench.quant.spec import FULL_PRECISION
from dmqbench.store.artifact import Artifact
from dmqbench.store.files import load_json, save_json
from dmqbench.tasks.memory_plan import stage_portions
from dmqbench.tasks.mirror import facts_of, tell_job, tracker
from dmqbench.tasks.trajectories import bank_of
from dmqbench.tasks.workshop import OUTCOME, STATE, Workshop, open_workshop
from dmqbench.tracking.progress import Meter


def carry_out(job: Job) -> Path:
    """Run the stages of ``job``; return the folder of the last one's artifact."""
    shop = open_workshop(job)
    with shop.record:
        tell_job(shop)
        stages = calibrate_and_tell(shop)
    return stages[-1].path if stages else shop.store.root


def calibrate_and_tell(shop: Workshop) -> list[Artifact]:
    """Run the stages that are not in the store, mirrored to the tracker; return the artifacts of all."""
    with tracker(shop, "calibration") as mirror:
        stages = calibrated(shop)
        if shop.ids.quantized is not None:
            mirror.made(shop.ids.quantized, **facts_of(shop.job))
    return stages


def calibrated(shop: Workshop) -> list[Artifact]:
    """Return the artifacts of the method's stages in order; none for full precision."""
    artifacts: list[Artifact] = []
    with ExitStack() as until_the_last:
        portions = cache(lambda: _portions(shop, until_the_last))  # found when the first stage is to be run
        for config, (_, id) in zip(shop.job.method.stages, shop.ids.stages, strict=True):
            parent = artifacts[-1] if artifacts else None
            artifacts.append(shop.made_once("quantized", id, partial(_run_stage, shop, config, id, parent, portions)))
    return artifacts


def _portions(shop: Workshop, until_the_last: ExitStack) -> Mapping[str, Portions]:
    """The portions of the stages, by their names; weights that are to lie elsewhere do so from now on."""
    found = stage_portions(shop.job)
    if any(portions.offloaded for portions in found.values()):
        bank_of(shop)  # followed by the network as it was loaded
        shelf = Shelf(moved=True, folder=shop.store.root)
        until_the_last.enter_context(weights_elsewhere(shop.quantized.network, shelf))
    return found


def _run_stage(
    shop: Workshop,
    config: StageConfig,
    id: str,
    parent: Artifact | None,
    portions_of: Callable[[], Mapping[str, Portions]],
) -> dict[str, float]:
    """Run one stage from its parent's state into the work folder; return what it cost."""
    folder = shop.store.work(id)
    portions = portions_of().get(config.name, WHOLE)
    stage = _stage(shop, config, parent, folder)
    if portions != WHOLE:
        shop.record.log("portions", stage=config.name, **asdict(portions))
    with stage.bench.adapter.computing(portions):
        checkpoint = UnitCheckpoint(folder / "checkpoint.safetensors")
        checkpoint.resume(stage)
        title = f"{shop.job.method.name} {shop.bits.name}: {config.name}"
        with Meter(title, len(stage.units()), stage.first_unit, work_of_stage(config)) as meter:
            run_stage(stage, shop.job.trainer.accelerator, [checkpoint, UnitProgress(meter)])
        stage.note_memory()
        cost = {**stage.watch.facts, "network_forwards": stage.network_forwards, **stage.peaks}
        findings = stage.findings()  # it runs the network as well, which is no calibration
    stage.conclude_()
    save_tensors(folder / OUTCOME / STATE, stage.state())
    # A weight-only stage is shared by all activation bit-widths: its plan must not name the first comer's.
    reached = plan_of_layers(shop.quantized.network, shop.precision_plan)
    plan = reached.with_activation_bits(FULL_PRECISION) if stage.weights_only else reached
    save_json(folder / OUTCOME / PLAN_FILE, plan.to_json())
    if findings:
        save_json(folder / OUTCOME / FINDINGS, findings)
    return cost


def _stage(shop: Workshop, config: StageConfig, parent: Artifact | None, scratch: Path) -> Stage:
    """Return the stage at its bench, the layers in the state that its parent left."""
    job, bank = shop.job, bank_of(shop)
    adapter = shop.quantized
    if parent is not None:
        load_state_(shop, parent)
    shop.memory.begin_part()
    bench = Workbench(
        denoising=shop.calibrating(adapter),
        topology=shop.topology,
        bank=bank,
        step_groups=shop.step_groups,
        seed=job.seed,
        record=shop.record,
        scratch=scratch,
    )
    stage = stages_of(job.method.name)[config.name].of(bench, **config.settings)
    if stage.weights_only == ("activation" in config.uses):
        raise ValueError(f"stage {config.name}: its YAML's uses and its class's weights_only contradict each other")
    return stage


def description(shop: Workshop, last: Artifact) -> Description:
    """Return how the job quantizes its network, by the precision plan that its ``last`` stage reached."""
    job = shop.job
    topology, _ = meta_topology(job.model.checkpoint)
    return Description(
        method=job.method.name,
        bits={**job.bits.facts, **({"plan": job.plan.hash} if job.plan else {})},
        plan=load_json(last.path / PLAN_FILE),
        attentions=quantized_attentions(topology, shop.scope, shop.bits),
        timesteps=timesteps(job.calibration_sampler, job.model),
        engine=job.engine,
        sampler=job.calibration_sampler.facts,
        budget=job.budget.facts,
        seed=job.seed,
        ids={"trajectories": shop.ids.trajectories, "stages": dict(shop.ids.stages)},
        match=job.calibration.match,
        dtype=job.model.dtype,
        reasons=reasons_left_out(topology.layers, shop.scope),
    )


def load_state_(shop: Workshop, stage: Artifact) -> None:
    """Set the layers to what a stage has left, other weight bits included."""
    network = shop.quantized.network
    adopt_weight_bits_(network, PrecisionPlan.from_json(load_json(stage.path / PLAN_FILE)))
    load_state_into_(network, load_file(stage.path / STATE))
