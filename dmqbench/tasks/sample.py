"""``task=sample``: images of a job's model, chunk by chunk, each kept as soon as it is drawn."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn

from dmqbench.config.checked_job import Job
from dmqbench.config.effort import work_of_samples
from dmqbench.config.ids import inputs_id
from dmqbench.engines import lower_
from dmqbench.eval.evaluate import SampleSet
from dmqbench.models.adapter import Adapter
from dmqbench.models.image_tasks import OfImages
from dmqbench.models.rollout import Denoising, Move, chunk_name, chunk_names
from dmqbench.quant.layers import freeze_
from dmqbench.quant.spec import nearest_calls, neighbouring_calls
from dmqbench.quant.state import follow_calls_, interpolate_calls_
from dmqbench.samplers.plan import SamplerPlan
from dmqbench.tasks.calibrate import calibrated, load_state_
from dmqbench.tasks.workshop import Workshop, open_workshop
from dmqbench.tracking.progress import Meter
from dmqbench.tracking.stopwatch import Stopwatch

INPUTS_SHOWN = 32
"""So many of the images that samples start from are kept for pictures."""


def carry_out(job: Job) -> Path:
    """Draw the samples of ``job``; return their folder."""
    shop = open_workshop(job)
    with shop.record:
        draw_samples(shop)
    return shop.store.path("samples", shop.ids.samples)


def draw_samples(shop: Workshop) -> SampleSet:
    """Return the samples of this job's model."""
    job = shop.job
    return samples(shop, shop.ids.samples, job.metrics.samples, job.title, lambda: frozen(shop), seed=job.metrics.seed)


def frozen(shop: Workshop, sampler: SamplerPlan | None = None) -> Adapter:
    """Return the model of this job, ready to follow ``sampler``, by default the job's: full precision, foreign, or
    frozen and lowered to the engine."""
    if shop.job.foreign:
        return shop.foreign
    stages = calibrated(shop)
    if not stages:
        return shop.full_precision
    network = shop.quantized.network
    load_state_(shop, stages[-1])
    _match_calls_(network, shop, (sampler or shop.sampler).timesteps)
    freeze_(network)
    lower_(network, shop.job.engine)
    return shop.quantized


def _match_calls_(network: nn.Module, shop: Workshop, followed: tuple[float, ...]) -> None:
    """Give every call of another plan than the calibrated one the activation parameters of the calibrated call at the
    nearest timestep, or those between the two calls around it."""
    of_stages = shop.calibration_sampler.timesteps
    if followed == of_stages:
        return
    if shop.job.calibration.match == "interpolate":
        interpolate_calls_(network, neighbouring_calls(of_stages, followed))
    else:
        follow_calls_(network, nearest_calls(of_stages, followed))


def samples(
    shop: Workshop,
    id: str,
    count: int,
    title: str,
    model: Callable[[], Adapter],
    *,
    seed: int,
    perturbation: float = 0.0,
) -> SampleSet:
    """Return the first ``count`` samples of the artifact ``id``; missing chunks are drawn from ``model()``."""
    names = chunk_names(count, shop.job.sampler.chunk)
    present = shop.store.verified_files("samples", id)
    missing = [number for number, name in enumerate(names) if name not in present]
    if missing:
        shop.read_prompts({"eval": len(names) * shop.job.sampler.chunk})
        denoising = shop.sampling(model())
        work = work_of_samples(shop.job, count, quantized=id == shop.ids.samples)
        watch, done = Stopwatch(), len(names) - len(missing)
        with watch.running(), Meter(f"samples of {title}", len(names), done, work) as meter:
            for number in missing:
                _draw_chunk(shop, id, number, denoising, seed, perturbation, meter.move)
                meter.advance()
        shop.sampling_watches[id] = watch
        shop.record.log(
            "samples", id=id, drawn=len(missing), seconds=watch.seconds, processor_seconds=watch.processor_seconds
        )
        present = shop.store.verified_files("samples", id)
    parts = [load_file(present[name]) for name in names]
    images, state = (torch.cat([part[key] for part in parts])[:count] for key in ("images", "state"))
    return SampleSet(id, images, state)


def _draw_chunk(
    shop: Workshop, id: str, number: int, denoising: Denoising, seed: int, perturbation: float, move: Move
) -> None:
    """Draw one chunk into the store, unless another process did so meanwhile."""
    store, name = shop.store, chunk_name(number)
    with store.lock("samples", id, part=name):
        if name in store.verified_files("samples", id):
            return
        chunk = shop.job.sampler.chunk
        drawn = denoising.sample_chunk(number, chunk=chunk, seed=seed, perturbation=perturbation, move=move)
        content = save(drawn.to_tensors())
        store.append_file("samples", id, name, lambda path: path.write_bytes(content))


def shown_inputs(shop: Workshop) -> str | None:
    """Return the id of the samples that hold what the first samples start from; None where that is noise alone."""
    if not shop.job.works_on_images:
        return None
    id, store = inputs_id(shop.job), shop.store
    name = chunk_name(0)
    if name not in store.verified_files("samples", id):
        conditioner = shop.adapter.conditioner
        assert isinstance(conditioner, OfImages)
        content = save({"images": conditioner.shown(range(INPUTS_SHOWN)).contiguous()})
        store.append_file("samples", id, name, lambda path: path.write_bytes(content))
    return id
