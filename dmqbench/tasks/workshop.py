"""The tools and materials of one job. The model is loaded once, and only when something must be computed."""

import gc
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property

from dmqbench.config.checked_job import Job, scope_of
from dmqbench.config.ids import job_ids
from dmqbench.config.model_facts import reads_text, weights_hash
from dmqbench.config.schema import SamplerConfig
from dmqbench.data.image_streams import ImageStreams, file_streams, own_streams
from dmqbench.data.noise import Stream
from dmqbench.models.adapter import Adapter, load_adapter
from dmqbench.models.conditioning import ClassConditioner, TextConditioner
from dmqbench.models.exchange import quantize_network_, quantized_attentions
from dmqbench.models.foreign import load_foreign_adapter
from dmqbench.models.image_tasks import edit_images_, restore_images_
from dmqbench.models.rollout import Denoising
from dmqbench.models.topology import Topology
from dmqbench.quant.layers import adopt_weight_bits_
from dmqbench.quant.plan import PrecisionPlan, uniform_plan
from dmqbench.quant.spec import BitWidth, Scope, StepGroups, step_groups
from dmqbench.samplers.plan import SamplerPlan, build_plan
from dmqbench.store.artifact import Artifact
from dmqbench.store.artifacts import Store
from dmqbench.tasks.embeddings import PromptEmbeddings
from dmqbench.tracking.environment import PeakMemory
from dmqbench.tracking.record import Record
from dmqbench.tracking.stopwatch import Stopwatch

STATE = "state.safetensors"
OUTCOME = "outcome"
"""Folder inside a work area that becomes the artifact; beside it may lie a checkpoint, which does not."""


class Workshop:
    """What the tasks of one job work with: its store and record, its model, its plans."""

    def __init__(self, job: Job, store: Store) -> None:
        self.job = job
        self.weights = weights_hash(job.model)  # once: it reads every byte of the checkpoint
        self.ids = job_ids(job, self.weights)
        self.store = store
        self.record = Record.of_job(job.store_root, self.ids.result)
        self.sampling_watches: dict[str, Stopwatch] = {}
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
        return step_groups(self.job.bits.ranges, self.calibration_sampler.network_calls)

    @cached_property
    def images(self) -> ImageStreams:
        """What is restored or edited."""
        path = self.job.inputs.images
        return own_streams(self.job.dataset.name) if path is None else file_streams(path)

    @cached_property
    def sampler(self) -> SamplerPlan:
        """The plan of the sampler that draws the samples."""
        return self._plan_of(self.job.sampler)

    @cached_property
    def calibration_sampler(self) -> SamplerPlan:
        """The plan of the trajectories, which the stages work on."""
        return self._plan_of(self.job.calibration_sampler)

    def _plan_of(self, sampler: SamplerConfig) -> SamplerPlan:
        spec = sampler.spec(self.adapter.prediction, self.job.strength)
        return build_plan(spec, self.adapter.schedule)

    def sampling(self, adapter: Adapter) -> Denoising:
        """How ``adapter`` draws the samples of this job."""
        return Denoising(adapter, self.sampler, self.job.sampler.guidance)

    def calibrating(self, adapter: Adapter) -> Denoising:
        """How ``adapter`` follows the trajectories that the stages work on."""
        return Denoising(adapter, self.calibration_sampler, self.job.calibration_sampler.guidance)

    # ---- prompts

    @cached_property
    def embeddings(self) -> PromptEmbeddings | None:
        """Conditions of the prompts; None for a model that reads no text."""
        return PromptEmbeddings(self.job, self.store) if reads_text(self.job.model) else None

    def read_prompts(self, counts: Mapping[Stream, int]) -> None:
        """Have the prompts of the first so many samples of streams read, before the network is loaded for them."""
        if self.embeddings is not None:
            self.embeddings.provide(counts)

    # ---- the model

    @cached_property
    def adapter(self) -> Adapter:
        """The one model that is kept: in full precision until ``quantized`` was asked for, then with its layers
        exchanged, in whatever state the last who asked left them."""
        return self._load_adapter()

    @property
    def full_precision(self) -> Adapter:
        """The model whose layers nobody has exchanged: with quantization off the last bits are others."""
        return self._load_adapter() if "quantized" in self.__dict__ else self.adapter

    def let_go_of_quantized(self) -> None:
        """Forget the model if its layers were exchanged, so that another need not lie beside it."""
        if self.__dict__.pop("quantized", None) is not None:
            del self.adapter
            gc.collect()  # what computes a lowered layer and the layer hold each other

    def _load_adapter(self) -> Adapter:
        model, read = self.job.model, self.embeddings
        conditioner = None if read is None else TextConditioner(read.conditions, read.unguided)
        adapter = load_adapter(model.checkpoint, self.job.device_type, conditioner=conditioner)
        if adapter.planted:
            self.record.log("planted", dose=model.planted.dose, places=adapter.planted)
        if isinstance(adapter.conditioner, ClassConditioner):
            adapter.conditioner = replace(adapter.conditioner, balanced=self.job.inputs.balanced)
        if self.job.task_kind == "restore":
            assert model.condition_factor is not None
            restore_images_(adapter, self.images, model.condition_factor, model.classes)
        elif self.job.task_kind == "edit":
            edit_images_(adapter, self.images, model.classes)
        return adapter

    @cached_property
    def topology(self) -> Topology:
        return self.adapter.topology()

    @cached_property
    def precision_plan(self) -> PrecisionPlan:
        return uniform_plan(self.topology.layers, self.bits, self.scope, self.job.bits.granularity)

    @cached_property
    def quantized(self) -> Adapter:
        """``adapter`` with quantizable layers; with their switches off it is the teacher of calibration."""
        adapter, plan = self.adapter, self.precision_plan  # traced before layers are exchanged
        attentions = quantized_attentions(self.topology, self.scope, self.bits)
        steps = self.step_groups
        quantize_network_(adapter.network, plan, adapter.context, steps, attentions=attentions, bits=self.bits)
        if self.job.plan is not None:
            adopt_weight_bits_(adapter.network, self.job.plan.plan)
        return adapter

    @cached_property
    def foreign(self) -> Adapter:
        """The network of ``method.path`` in the place of the model's own."""
        return load_foreign_adapter(str(self.job.method.path), self.adapter)

    # ---- artifacts

    def made_once(self, kind: str, id: str, make: Callable[[], dict]) -> Artifact:
        """Return the verified artifact; if there is none, let ``make`` fill its work folder, and publish that."""
        artifact = self.store.verified(kind, id)
        if artifact is None:
            with self.store.lock(kind, id):
                artifact = self.store.verified(kind, id)
                if artifact is None:
                    facts = make()
                    artifact = self.store.publish(kind, id, self.store.work(id) / OUTCOME, facts)
        return artifact


def open_workshop(job: Job) -> Workshop:
    """Return the workshop of ``job`` over its store, which must be writable."""
    store = Store(job.store_root)
    store.check_writable()
    return Workshop(job, store)
