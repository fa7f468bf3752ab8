"""How the artifacts of a job are made: trajectories, stages, samples. Each is looked up in the store first.

Everything here is reached through a ``Workshop``, which loads the model once and only when something must be computed.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module

import torch
from safetensors.torch import load_file, save

from dmqbench.config import Job, JobIds, StageConfig
from dmqbench.data.bank import Trajectories, TrajectoryBank, follow, join
from dmqbench.engines import lower_
from dmqbench.eval.evaluate import SampleSet
from dmqbench.eval.generate import chunk_count, chunk_name, sample_chunk
from dmqbench.methods.base import StageFactory, Workbench, run_stage
from dmqbench.models.adapter import Adapter, load_adapter
from dmqbench.models.attention import attach_attention_quantizers_
from dmqbench.models.topology import Topology, trace
from dmqbench.progress import UnitProgress, meter
from dmqbench.quant.layers import freeze_, quantize_layers_
from dmqbench.quant.plan import PrecisionPlan, uniform_plan
from dmqbench.quant.spec import COMMON_SCOPE, FULL_PRECISION, BitWidth, Scope, StepGroups
from dmqbench.quant.state import calibration_state, load_calibration_state_
from dmqbench.samplers.plan import SamplerPlan, build_plan
from dmqbench.store import Artifact, Store
from dmqbench.tracking import Record

MIB = 2**20
PERTURBATION = 1e-7


class Workshop:
    """The tools and materials of one job."""

    def __init__(self, job: Job, ids: JobIds, store: Store, record: Record) -> None:
        self.job = job
        self.ids = ids
        self.store = store
        self.record = record
        self.device = torch.device("cuda" if job.trainer.accelerator == "gpu" else "cpu")

    # ---- what the job says, as objects

    @property
    def scope(self) -> Scope:
        return Scope(**self.job.method.paper_scope) if self.job.bits.scope == "paper" else COMMON_SCOPE

    @property
    def bits(self) -> BitWidth:
        return BitWidth(self.job.bits.weight, self.job.bits.activation)

    @property
    def step_groups(self) -> StepGroups:
        calls = self.plan.network_calls
        return StepGroups.per_step(calls) if self.job.bits.ranges == "step" else StepGroups.shared()

    @cached_property
    def adapter(self) -> Adapter:
        """The full-precision model."""
        return load_adapter(self.job.model, self.device)

    @cached_property
    def plan(self) -> SamplerPlan:
        return build_plan(self.job.sampler.spec(self.adapter.prediction), self.adapter.schedule)

    @cached_property
    def topology(self) -> Topology:
        args, kwargs = self.adapter.example_inputs()
        return trace(self.adapter.network, args, kwargs)

    @property
    def precision_plan(self) -> PrecisionPlan:
        return uniform_plan(self.topology.layers, self.bits, self.scope)

    @cached_property
    def quantized(self) -> Adapter:
        """The same model with quantizable layers; they share the parameters of the full-precision one."""
        topology, plan = self.topology, self.precision_plan  # traced before the layers are exchanged
        quantize_layers_(self.adapter.network, plan, self.adapter.context, self.step_groups)
        if self.scope.attention and self.bits.activation != FULL_PRECISION:
            attach_attention_quantizers_(self.adapter, topology, self.bits, self.step_groups)
        return self.adapter

    # ---- trajectories

    def bank(self) -> TrajectoryBank:
        """The calibration and validation trajectories, from the store or made now."""
        artifact = self._made_once("trajectories", self.ids.trajectories, self._make_trajectories)
        streams = {}
        for stream in ("cal", "val"):
            parts = [load_file(path) for path in sorted(artifact.path.glob(f"{stream}_*.safetensors"))]
            streams[stream] = join([Trajectories.from_tensors(part) for part in parts])
        return TrajectoryBank(streams["cal"], streams["val"], self.job.seed)

    def _make_trajectories(self) -> dict[str, float]:
        """Follow the trajectories batch by batch into the work folder; batches that a killed run left are kept."""
        job, folder = self.job, self.store.work(self.ids.trajectories)
        batch = job.sampler.chunk
        counts = {"cal": job.budget.trajectories, "val": job.budget.validation}
        jobs = [(stream, start) for stream, count in counts.items() for start in range(0, count, batch)]
        started = time.perf_counter()
        with meter(f"trajectories of {job.model.name}", len(jobs)) as shown:
            for stream, start in jobs:
                path = folder / f"{stream}_{start // batch:05d}.safetensors"
                if not path.exists():
                    indices = range(start, min(start + batch, counts[stream]))
                    [part] = follow(
                        self.adapter,
                        self.plan,
                        stream=stream,
                        seed=job.seed,
                        indices=indices,
                        guidance=job.sampler.guidance,
                        batch=batch,
                    )
                    save_atomic(path, save(part.to_tensors()))
                shown.advance()
        return {"seconds": time.perf_counter() - started, "network_forwards": sum(counts.values()) * self.plan.network_calls}

    def _made_once(self, kind: str, id: str, make: Callable[[], dict]) -> Artifact:
        """Return the verified artifact; if there is none, let ``make`` fill its work folder, and publish that."""
        artifact = self.store.verified(kind, id)
        if artifact is None:
            with self.store.lock(id):
                artifact = self.store.verified(kind, id)
                if artifact is None:
                    facts = make()
                    artifact = self.store.publish(kind, id, self.store.work(id), facts)
        return artifact

    # ---- stages

    def calibrated(self) -> Artifact | None:
        """The artifact of the method's last stage; None for full precision."""
        artifact = None
        for stage, id in self.ids.stages:
            config = next(config for config in self.job.method.stages if config.name == stage)
            artifact = self._made_once("quantized", id, lambda: self._run_stage(config, id, artifact))  # noqa: B023
        return artifact

    def _run_stage(self, config: StageConfig, id: str, parent: Artifact | None) -> dict[str, float]:
        folder = self.store.work(id)
        network = self.quantized.network
        if parent is not None:
            load_calibration_state_(network, load_file(parent.path / STATE))
        bench = Workbench(
            adapter=self.adapter,
            topology=self.topology,
            bank=self.bank(),
            sampler=self.plan,
            guidance=self.job.sampler.guidance,
            step_groups=self.step_groups,
            seed=self.job.seed,
            record=self.record,
        )
        stages: dict[str, StageFactory] = import_module(f"dmqbench.methods.{self.job.method.name}").STAGES
        stage = stages[config.name](bench, **config.settings)
        checkpoint = UnitCheckpoint(folder / "checkpoint.safetensors")
        checkpoint.resume(stage)
        title = f"{self.job.method.name} {self.bits.name}: {config.name}"
        with meter(title, len(stage.units()), stage.first_unit) as shown:
            run_stage(stage, self.job.trainer.accelerator, [checkpoint, UnitProgress(shown)])
        save_atomic(folder / STATE, save(stage.state()))
        save_json(folder / PLAN, self.precision_plan.to_json())
        checkpoint.path.unlink(missing_ok=True)
        return {"seconds": stage.seconds, "network_forwards": stage.network_forwards}

    # ---- samples

    def frozen(self) -> Adapter:
        """The model of this job, ready to sample: full precision, or frozen and lowered to the engine."""
        artifact = self.calibrated()
        if artifact is None:
            return self.adapter
        network = self.quantized.network
        load_calibration_state_(network, load_file(artifact.path / STATE))
        freeze_(network)
        lower_(network, self.job.engine)
        return self.quantized

    def samples(self, adapter: Callable[[], Adapter], id: str, count: int, title: str, *, seed: int, perturbation: float = 0.0) -> SampleSet:
        """The first ``count`` samples of the artifact ``id``; missing chunks are drawn with ``adapter``."""
        job = self.job
        names = [chunk_name(number) for number in range(chunk_count(count, job.sampler.chunk))]
        present = self.store.verified_files("samples", id)
        missing = [number for number, name in enumerate(names) if name not in present]
        if missing:
            model = adapter()
            with meter(f"samples of {title}", len(names), len(names) - len(missing)) as shown:
                for number in missing:
                    drawn = sample_chunk(
                        model,
                        self.plan,
                        number,
                        chunk=job.sampler.chunk,
                        seed=seed,
                        guidance=job.sampler.guidance,
                        perturbation=perturbation,
                    )
                    self.store.append_file("samples", id, names[number], save(drawn.to_tensors()))
                    shown.advance()
            present = self.store.verified_files("samples", id)
        parts = [load_file(present[name]) for name in names]
        return SampleSet(
            torch.cat([part["images"] for part in parts])[:count], torch.cat([part["state"] for part in parts])[:count]
        )
