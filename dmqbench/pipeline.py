"""How the artifacts of a job are made: trajectories, stages, samples. Each is looked up in the store first.

Everything here is reached through a ``Workshop``, which loads the model once and only when something must be computed.
"""

import time
from collections.abc import Callable
from functools import cached_property, partial
from importlib import import_module

import torch
from safetensors.torch import load_file, save

from dmqbench.calibration.stage import StageFactory, UnitCheckpoint, UnitProgress, Workbench, run_stage
from dmqbench.config.ids import inputs_id, job_ids
from dmqbench.config.model_facts import weights_hash
from dmqbench.config.schema import FINDINGS, Job, SamplerConfig, StageConfig, scope_of
from dmqbench.data.bank import Trajectories, TrajectoryBank, join
from dmqbench.data.image_streams import OWN_STREAMS, ImageStreams, file_streams
from dmqbench.data.noise import Stream
from dmqbench.engines import lower_
from dmqbench.eval.evaluate import SampleSet
from dmqbench.models.adapter import Adapter, load_adapter
from dmqbench.models.attention import attach_attention_quantizers_
from dmqbench.models.foreign import load_foreign_adapter
from dmqbench.models.image_tasks import OfImages, edit_images_, restore_images_
from dmqbench.models.rollout import chunk_count, chunk_name, follow, sample_chunk
from dmqbench.models.topology import Topology
from dmqbench.quant.layers import (
    adopt_weight_bits_,
    freeze_,
    plan_of_layers,
    quantization,
    quantize_layers_,
    set_quantization_,
)
from dmqbench.quant.plan import PrecisionPlan, uniform_plan
from dmqbench.quant.spec import (
    FULL_PRECISION,
    BitWidth,
    Scope,
    StepGroups,
    group_size,
    nearest_calls,
    neighbouring_calls,
)
from dmqbench.quant.state import follow_calls_, interpolate_calls_, load_calibration_state_
from dmqbench.samplers.plan import SamplerPlan, build_plan
from dmqbench.store.artifacts import Artifact, Store
from dmqbench.store.files import load_json, save_atomic, save_json
from dmqbench.tracking.environment import PeakMemory, memory_facts
from dmqbench.tracking.progress import Meter
from dmqbench.tracking.record import Record

STATE = "state.safetensors"
PLAN = "plan.json"
OUTCOME = "outcome"
"""Folder inside a work area that becomes the artifact; beside it may lie a checkpoint, which does not."""


INPUTS_SHOWN = 32
"""So many of the images that samples start from are kept for pictures."""


def compute_in_float32() -> None:
    """Compute in float32 throughout: TF32 would not be what ids and results say."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


class Workshop:
    """The tools and materials of one job."""

    def __init__(self, job: Job, store: Store) -> None:
        self.job = job
        self.weights = weights_hash(job.model)  # once: it reads every byte of the checkpoint
        self.ids = job_ids(job, self.weights)
        self.store = store
        self.record = Record.of_job(job.store_root, self.ids.result)
        self.sample_seconds: dict[str, float] = {}
        """Time spent so far on drawing samples that were not in the store, by the id of their artifact."""
        self.memory = PeakMemory()

    # ---- what the job says, as objects

    @property
    def scope(self) -> Scope:
        return scope_of(self.job)

    @property
    def bits(self) -> BitWidth:
        return BitWidth(self.job.bits.weight, self.job.bits.activation)

    @property
    def step_groups(self) -> StepGroups:
        size = group_size(self.job.bits.ranges)
        return StepGroups.shared() if size is None else StepGroups.of_size(self.calibration_plan.network_calls, size)

    @cached_property
    def adapter(self) -> Adapter:
        """The full-precision model."""
        compute_in_float32()
        adapter, model = load_adapter(self.job.model.checkpoint, self.job.device_type), self.job.model
        if self.job.task_kind == "restore":
            assert model.condition_factor is not None
            restore_images_(adapter, self.images, model.condition_factor, model.classes)
        elif self.job.task_kind == "edit":
            edit_images_(adapter, self.images, model.classes)
        return adapter

    @cached_property
    def images(self) -> ImageStreams:
        """What is restored or edited."""
        path = self.job.inputs.images
        return OWN_STREAMS[self.job.dataset.name]() if path is None else file_streams(path)

    @cached_property
    def plan(self) -> SamplerPlan:
        """Of sampling."""
        return self._plan_of(self.job.sampler)

    @cached_property
    def calibration_plan(self) -> SamplerPlan:
        """Of the trajectories, which the stages work on."""
        return self._plan_of(self.job.calibration_sampler)

    def _plan_of(self, sampler: SamplerConfig) -> SamplerPlan:
        spec = sampler.spec(self.adapter.prediction, self.job.strength)
        return build_plan(spec, self.adapter.schedule)

    @cached_property
    def topology(self) -> Topology:
        return self.adapter.topology()

    @cached_property
    def precision_plan(self) -> PrecisionPlan:
        return uniform_plan(self.topology.layers, self.bits, self.scope)

    @cached_property
    def quantized(self) -> Adapter:
        """The same model with quantizable layers; with their switches off it is still the full-precision one."""
        topology, plan = self.topology, self.precision_plan  # traced before layers are exchanged
        quantize_layers_(self.adapter.network, plan, self.adapter.context, self.step_groups)
        if self.job.plan is not None:
            adopt_weight_bits_(self.adapter.network, self.job.plan.plan)
        if self.scope.attention and self.bits.activation_levels is not None:
            attach_attention_quantizers_(self.adapter, topology, self.bits, self.step_groups)
        return self.adapter

    @cached_property
    def foreign(self) -> Adapter:
        """The network of ``method.path`` in the place of the model's own."""
        return load_foreign_adapter(str(self.job.method.path), self.adapter)

    # ---- trajectories

    def bank(self) -> TrajectoryBank:
        """The calibration and validation trajectories, from the store or made now."""
        artifact = self._made_once("trajectories", self.ids.trajectories, self._make_trajectories)

        def stream(name: Stream) -> Trajectories:
            parts = [path for file, path in sorted(artifact.files.items()) if file.startswith(name)]
            return join([Trajectories.from_tensors(load_file(path)) for path in parts])

        return TrajectoryBank(stream("cal"), stream("val"), self.job.seed)

    def _make_trajectories(self) -> dict[str, float]:
        """Follow the trajectories batch by batch into the work folder; batches that a killed run left are kept.

        Raises:
            RuntimeError: layers were exchanged already, after which the last bits are others.
        """
        if "quantized" in self.__dict__:
            raise RuntimeError("the trajectories must be made before the layers are exchanged")
        job, folder = self.job, self.store.work(self.ids.trajectories) / OUTCOME
        plan, guidance, batch = self.calibration_plan, job.calibration_sampler.guidance, job.sampler.chunk
        counts: dict[Stream, int] = {"cal": job.budget.trajectories, "val": job.budget.validation}
        starts: list[tuple[Stream, int]] = [
            (stream, start) for stream, count in counts.items() for start in range(0, count, batch)
        ]
        self.memory.begin_part()
        started = time.perf_counter()
        with (
            Meter(f"trajectories of {job.model.name}", len(starts)) as shown,
            quantization(self.adapter.network, weight=False, activation=False),
        ):
            for stream, start in starts:
                path = folder / f"{stream}_{start // batch:05d}.safetensors"
                if not path.exists():
                    part = follow(
                        self.adapter,
                        plan,
                        stream=stream,
                        seed=job.seed,
                        indices=range(start, min(start + batch, counts[stream])),
                        guidance=guidance,
                    )
                    save_atomic(path, save(part.to_tensors()))
                shown.advance()
        return {
            "seconds": time.perf_counter() - started,
            "network_forwards": sum(counts.values()) * plan.network_calls * (1 if guidance == 1.0 else 2),
            **memory_facts(job.device_type),
        }

    def _made_once(self, kind: str, id: str, make: Callable[[], dict]) -> Artifact:
        """Return the verified artifact; if there is none, let ``make`` fill its work folder, and publish that."""
        artifact = self.store.verified(kind, id)
        if artifact is None:
            with self.store.lock(kind, id):
                artifact = self.store.verified(kind, id)
                if artifact is None:
                    facts = make()
                    artifact = self.store.publish(kind, id, self.store.work(id) / OUTCOME, facts)
        return artifact

    # ---- stages

    def calibrated(self) -> list[Artifact]:
        """The artifacts of the method's stages in order; none for full precision."""
        artifacts: list[Artifact] = []
        for config, (_, id) in zip(self.job.method.stages, self.ids.stages, strict=True):
            parent = artifacts[-1] if artifacts else None
            make = partial(self._run_stage, config, id, parent)
            artifacts.append(self._made_once("quantized", id, make))
        return artifacts

    def _run_stage(self, config: StageConfig, id: str, parent: Artifact | None) -> dict[str, float]:
        folder = self.store.work(id)
        bank = self.bank()  # before layers are exchanged: its bits must not depend on who makes it
        network = self.quantized.network
        if parent is not None:
            self._load_state_(parent)
        bench = Workbench(
            adapter=self.adapter,
            topology=self.topology,
            bank=bank,
            sampler=self.calibration_plan,
            guidance=self.job.calibration_sampler.guidance,
            step_groups=self.step_groups,
            seed=self.job.seed,
            record=self.record,
        )
        self.memory.begin_part()
        stages: dict[str, StageFactory] = import_module(f"dmqbench.methods.{self.job.method.name}").STAGES
        stage = stages[config.name](bench, **config.settings)
        if stage.weights_only == ("activation" in config.uses):
            raise ValueError(f"stage {config.name}: its YAML's uses and its class's weights_only contradict each other")
        checkpoint = UnitCheckpoint(folder / "checkpoint.safetensors")
        checkpoint.resume(stage)
        title = f"{self.job.method.name} {self.bits.name}: {config.name}"
        with Meter(title, len(stage.units()), stage.first_unit) as shown:
            run_stage(stage, self.job.trainer.accelerator, [checkpoint, UnitProgress(shown)])
        stage.note_memory()
        save_atomic(folder / OUTCOME / STATE, save(stage.state()))
        # A weight-only stage is shared by all activation bit-widths: its plan must not name the first comer's.
        reached = plan_of_layers(network, self.precision_plan)
        plan = reached.with_activation_bits(FULL_PRECISION) if stage.weights_only else reached
        save_json(folder / OUTCOME / PLAN, plan.to_json())
        cost = {"seconds": stage.seconds, "network_forwards": stage.network_forwards, **stage.peaks}
        findings = stage.findings()  # it runs the network as well, which is no calibration
        if findings:
            save_json(folder / OUTCOME / FINDINGS, findings)
        return cost

    def _load_state_(self, stage: Artifact) -> None:
        """Set the layers to what a stage has left, other weight bits included."""
        network = self.quantized.network
        adopt_weight_bits_(network, PrecisionPlan.from_json(load_json(stage.path / PLAN)))
        load_calibration_state_(network, load_file(stage.path / STATE))

    # ---- samples

    def shown_inputs(self) -> str | None:
        """Id of the samples artifact that holds what the first samples start from; None where that is noise alone."""
        if not self.job.works_on_images:
            return None
        id, store = inputs_id(self.job), self.store
        name = chunk_name(0)
        if name not in store.verified_files("samples", id):
            conditioner = self.adapter.conditioner
            assert isinstance(conditioner, OfImages)
            content = save({"images": conditioner.shown(range(INPUTS_SHOWN)).contiguous()})
            store.append_file("samples", id, name, lambda path: path.write_bytes(content))
        return id

    def frozen(self, plan: SamplerPlan | None = None) -> Adapter:
        """The model of this job, ready to follow ``plan``, by default that of sampling: full precision, foreign, or
        frozen and lowered to the engine. A call of another plan than the calibrated one has the activation parameters
        of the calibrated call at the nearest timestep, or between those of the two calls around it."""
        if self.job.foreign:
            return self.foreign
        stages = self.calibrated()
        if not stages:
            return self.adapter
        network = self.quantized.network
        self._load_state_(stages[-1])
        followed, calibrated = (plan or self.plan).timesteps, self.calibration_plan.timesteps
        if followed != calibrated and self.job.calibration.match == "interpolate":
            interpolate_calls_(network, neighbouring_calls(calibrated, followed))
        elif followed != calibrated:
            follow_calls_(network, nearest_calls(calibrated, followed))
        freeze_(network)
        lower_(network, self.job.engine)
        return self.quantized

    def full_precision(self) -> Adapter:
        """The model with all quantization off."""
        set_quantization_(self.adapter.network, weight=False, activation=False)
        return self.adapter

    def samples(
        self, id: str, count: int, title: str, model: Callable[[], Adapter], *, seed: int, perturbation: float = 0.0
    ) -> SampleSet:
        """The first ``count`` samples of the artifact ``id``; chunks that are missing are drawn from ``model()``."""
        job, store = self.job, self.store
        names = [chunk_name(number) for number in range(chunk_count(count, job.sampler.chunk))]
        present = store.verified_files("samples", id)
        missing = [number for number, name in enumerate(names) if name not in present]
        if missing:
            adapter = model()
            started = time.perf_counter()
            with Meter(f"samples of {title}", len(names), len(names) - len(missing)) as shown:
                for number in missing:
                    with store.lock("samples", id, part=names[number]):
                        if names[number] not in store.verified_files("samples", id):
                            drawn = sample_chunk(
                                adapter,
                                self.plan,
                                number,
                                chunk=job.sampler.chunk,
                                seed=seed,
                                guidance=job.sampler.guidance,
                                perturbation=perturbation,
                            )
                            content = save(drawn.to_tensors())
                            store.append_file("samples", id, names[number], lambda path, c=content: path.write_bytes(c))
                    shown.advance()
            seconds = time.perf_counter() - started
            self.sample_seconds[id] = seconds
            self.record.log("samples", id=id, drawn=len(missing), seconds=seconds)
            present = store.verified_files("samples", id)
        parts = [load_file(present[name]) for name in names]
        images, state = (torch.cat([part[key] for part in parts])[:count] for key in ("images", "state"))
        return SampleSet(id, images, state)
