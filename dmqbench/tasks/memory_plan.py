"""The most memory that every part of a job would hold, told before anything starts; no weights are read."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, prod
from typing import Any

import torch

from dmqbench.calibration.shape_bench import PointCounts, ShapeBench
from dmqbench.config.checked_job import Job, scope_of
from dmqbench.config.errors import ConfigError
from dmqbench.config.model_facts import embeds_guidance, image_shape, network_family, reads_text, timesteps
from dmqbench.config.schema import SamplerConfig
from dmqbench.data.images import IMAGE_CHANNELS
from dmqbench.engines import lower_
from dmqbench.eval.memory import Sizes, networks_bytes, statistics_bytes
from dmqbench.methods import stages_of
from dmqbench.models.exchange import quantize_network_, quantized_attentions
from dmqbench.models.families.family import Family
from dmqbench.models.folders import CONFIG, OWN, decoder_folder, network_folder, read_config
from dmqbench.models.live_memory import live_memory, network_bytes, peak_of
from dmqbench.models.location import locate
from dmqbench.models.portions import WHOLE, Portions
from dmqbench.models.reading_memory import converted_bytes, encoders_bytes
from dmqbench.models.shape_memo import ShapeMemo
from dmqbench.models.sources import dtype_of, meta_model, meta_network, meta_topology
from dmqbench.quant.context import StepContext
from dmqbench.quant.layers import freeze_weight_, set_quantization_
from dmqbench.quant.plan import uniform_plan
from dmqbench.quant.spec import ENGINE_NAMES, BitWidth, step_groups
from dmqbench.stages.footprints import FOOTPRINTS
from dmqbench.tasks.memory_budget import fitted

GIB = 2**30

LIBRARIES = 1.1 * GIB
"""What Python and the libraries hold before anything is loaded, about."""

FLOAT = 4
"""Bytes of a value in the bank, and in files, which are mostly of float32."""


SIZES = ("ema_batch", "batch", "samples", "capture_mib", "memory_mib")
"""Settings of stages that say how much is computed or kept together."""


@dataclass(frozen=True)
class Phase:
    """A part of a job, and the bytes that it holds at most.

    Args:
        computing: of the network and all that is computed with it; on a GPU, if there is one.
        keeping: what lies in the host's memory at any rate: the bank, the decoder.
        keys: make it smaller.
        portions: of a stage, in which it fits into ``budget.memory_gib``.
        is_stage: whether ``budget.memory_gib`` bounds it.
        elsewhere: of a stage, what it keeps out of the memory that is bounded: on a GPU in the host's.
    """

    name: str
    computing: int
    keeping: int
    keys: tuple[str, ...] = ()
    is_stage: bool = False
    portions: Portions = WHOLE
    elsewhere: int = 0


def planned_phases(job: Job) -> list[Phase]:
    """Return the parts of a job that can be planned, in their order; none for a network of the user's own or another
    program's."""
    return [] if job.model.source == OWN or job.foreign else list(_Planner(job).phases())


def stage_portions(job: Job) -> dict[str, Portions]:
    """Return the portions in which the stages of a job fit into ``budget.memory_gib``, by their names; stages of other
    packages are not among them.

    Raises:
        ConfigError: one needs more, whatever is done.
    """
    phases = [] if job.budget.memory_gib is None else _Planner(job).stages()
    if (error := too_little(job, phases)) is not None:
        raise error
    return {phase.name: phase.portions for phase in phases}


def too_little(job: Job, phases: list[Phase]) -> ConfigError | None:
    """The error of the first stage that needs more than ``budget.memory_gib``; None without one."""
    allowed, on_gpu = job.budget.memory_gib, job.device_type == "cuda"
    if allowed is None:
        return None
    for phase in phases:
        needed = host_and_device(phase, on_gpu)[on_gpu] / GIB
        if phase.is_stage and needed > allowed:
            least = ceil(100 * needed) / 100
            problem = f"is too little for {phase.name}, which takes {needed:.2f} GiB in the smallest portions"
            return ConfigError("budget.memory_gib", allowed, [f"{least} or more"], problem, least)
    return None


class _Planner:
    """Takes a network of shapes through the parts of a job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.family: Family = network_family(job.model)
        self.state = prod(self.family.sample_shape) * FLOAT
        self.cond = sum(prod(shape) * (8 if whole else FLOAT) for shape, whole in self.family.conditions.values())
        self.folder = locate(job.model.checkpoint)
        part = decoder_folder(self.folder)
        self.decoder = None if part is None else meta_model(read_config(part / CONFIG))
        self.decoder_bytes = 0 if self.decoder is None else network_bytes(self.decoder)
        self.left: ShapeBench | None = None
        """As the stages leave it; None where that is not known."""

    def phases(self) -> Iterator[Phase]:
        job = self.job
        bench, decoder = self._bench(), self.decoder_bytes
        if reads_text(job.model) and not job.model.shapes_only:
            yield Phase("prompts", encoders_bytes(self.folder, self.family), 0)
        weights = bench.network_bytes
        yield self._loading(weights, bench.dtype)
        plain = bench.call(job.sampler.chunk, False, False)
        if job.method.stages:
            following = self._following(plain, bench.points.calls)
            yield Phase("trajectories", weights + following, decoder, ("sampler.chunk",))
        yield self._sampling(bench, "samples of full precision", plain)
        if job.method.stages:
            yield from self.stages(bench)
            if self.left is not None and job.engine == ENGINE_NAMES[0]:  # the other looks at values
                yield self._quantized_samples(self.left)
        image = image_shape(job.model)
        if image[0] in IMAGE_CHANNELS and not job.model.shapes_only:  # what has no decoder may be a latent
            yield self._evaluation(weights, image)

    def stages(self, bench: ShapeBench | None = None) -> list[Phase]:
        """The stages of the method, each in the portions in which it fits into ``budget.memory_gib``; if one fits in
        none, all with their weights elsewhere."""
        bench = bench or self._bench()
        self._quantize_(bench)
        keeping = self._bank(bench) + self.decoder_bytes
        limit, again = self._limit(keeping), deepcopy(bench)
        phases: list[Phase] = []
        for phase in self._fitted(bench, keeping, limit, WHOLE):
            if limit is not None and phase.computing > limit:
                return list(self._fitted(again, keeping, limit, Portions(offloaded=True)))
            phases.append(phase)
        return phases

    def _fitted(self, bench: ShapeBench, keeping: int, limit: float | None, first: Portions) -> Iterator[Phase]:
        """The stages in their order; ``left`` is what they leave behind."""
        self.left = None
        for config in self.job.method.stages:
            footprint = FOOTPRINTS.get(config.name)
            if footprint is None:  # of another package: what it leaves is not known either
                self.left = None
                return
            settings = stages_of(self.job.method.name)[config.name].settings_of(config.settings)
            keys = tuple(f"method.{config.name}.{size}" for size in SIZES if hasattr(settings, size))
            fit = fitted(bench, footprint, settings, limit, first)
            yield Phase(config.name, fit.computing, keeping, keys, True, fit.portions, fit.bench.elsewhere)
            bench = self.left = replace(fit.bench, portions=WHOLE)

    def _quantized_samples(self, bench: ShapeBench) -> Phase:
        with ShapeMemo():
            freeze_weight_(bench.network)
        with live_memory() as live:
            lower_(bench.network, self.job.engine)
            set_quantization_(bench.network, weight=True, activation=True)
        call = bench.call(self.job.sampler.chunk, True, True)
        return self._sampling(bench, "samples", call, live.now, self._bank(bench))

    def _bank(self, bench: ShapeBench) -> int:
        budget = self.job.budget
        return (budget.trajectories + budget.validation) * self._trajectory(bench.points.calls)

    def _limit(self, keeping: int) -> float | None:
        """Bytes that a stage may hold beside what is kept at any rate; None: as many as it takes."""
        allowed = self.job.budget.memory_gib
        if allowed is None:
            return None
        return allowed * GIB if self.job.device_type == "cuda" else allowed * GIB - LIBRARIES - keeping

    def _bench(self) -> ShapeBench:
        job, sampler = self.job, self.job.calibration_sampler
        topology, _ = meta_topology(job.model.checkpoint)
        calls = len(timesteps(sampler, job.model, job.strength))
        return ShapeBench(
            network=meta_network(job.model.checkpoint),
            family=self.family,
            topology=topology,
            context=StepContext(),
            branches=self._branches(sampler),
            points=PointCounts(job.budget.trajectories * calls, job.budget.validation * calls, calls),
            rows=step_groups(job.bits.ranges, calls).rows,
            dtype=dtype_of(job.model.checkpoint),
        )

    def _branches(self, sampler: SamplerConfig) -> int:
        return 1 if sampler.guidance == 1.0 or embeds_guidance(self.job.model) else 2

    def _quantize_(self, bench: ShapeBench) -> None:
        job, scope = self.job, scope_of(self.job)
        bits = BitWidth(job.bits.weight, job.bits.activation)
        plan = uniform_plan(bench.topology.layers, bits, scope, job.bits.granularity)
        steps = step_groups(job.bits.ranges, bench.points.calls)
        attentions = quantized_attentions(bench.topology, scope, bits)
        quantize_network_(bench.network, plan, bench.context, steps, attentions=attentions, bits=bits)
        bench.network.to("meta")  # where the quantizers of attentions are not made

    def _loading(self, weights: int, dtype: torch.dtype) -> Phase:
        """Of files that are not known, those of a YAML alone, float32 is thought."""
        files = weights * FLOAT // dtype.itemsize * (dtype != torch.float32)
        if not self.job.model.shapes_only:
            files = converted_bytes(network_folder(self.folder), dtype)
        on_host = files + weights * (self.job.device_type == "cuda")  # where it is read before it is sent
        return Phase("loading", weights + files - on_host, self.decoder_bytes + on_host)

    def _evaluation(self, weights: int, image: tuple[int, ...]) -> Phase:
        """Beside the network and the decoder, which drew what is measured."""
        job, metrics = self.job, self.job.metrics
        sizes = Sizes(metrics.samples, metrics.pairs, image, self.family.sample_shape)
        networks, working = networks_bytes(metrics, sizes)
        statistics = statistics_bytes(metrics.names, sizes)
        if job.device_type == "cpu":  # one after another
            working, statistics = max(working, statistics), 0
        computing = weights + self.decoder_bytes + networks + working
        return Phase("evaluation", computing, sizes.sets + statistics, ("metrics.samples", "metrics.pairs"))

    def _trajectory(self, calls: int) -> int:
        """Bytes of one trajectory: states, predictions and conditions."""
        return (2 * calls + 1) * self.state + self.cond

    def _following(self, call: int, calls: int) -> int:
        """A batch of trajectories with its last ``call``."""
        batch = self.job.sampler.chunk
        return batch * self._trajectory(calls) + call

    def _sampling(self, bench: ShapeBench, name: str, call: int, lowered: int = 0, bank: int = 0) -> Phase:
        """``lowered``: what layers hold beside the network. The decoder is where it decodes."""
        computing = bench.network_bytes + self.decoder_bytes + lowered + max(call, self._decoding)
        return Phase(name, computing, bank, ("sampler.chunk",))

    @cached_property
    def _decoding(self) -> int:
        """What a chunk of samples holds while it is decoded."""
        network: Any = self.decoder
        if network is None:
            return 0
        shape = (self.job.sampler.chunk, *self.family.sample_shape)
        with torch.no_grad():
            return peak_of(lambda: network.decode(torch.empty(shape, device="meta")))


def host_and_device(phase: Phase, on_gpu: bool) -> tuple[float, int]:
    """Bytes of a phase in the host's memory, what Python and its libraries take included, and on the GPU."""
    if on_gpu:
        return LIBRARIES + phase.keeping + phase.elsewhere, phase.computing
    return LIBRARIES + phase.keeping + phase.computing, 0
