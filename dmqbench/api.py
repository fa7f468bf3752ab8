"""Quantized models in a script of one's own:

    quantize_(pipe, method="q_diffusion", bits="w4a6")
    images = pipe(num_inference_steps=20).images
    save(pipe, "folder")
    pipe = load("folder")

A quantized pipeline computes in float32, as the benchmark does: what it saves is space on disk, not time.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from omegaconf import DictConfig
from safetensors.torch import load_file

from dmqbench.config.checked_job import Job
from dmqbench.config.compose import compose
from dmqbench.config.errors import ConfigError
from dmqbench.config.job import make_job
from dmqbench.config.model_facts import timesteps
from dmqbench.config.precision_plans import check_layers
from dmqbench.config.schedulers import sampler_overrides
from dmqbench.models.exchange import exchange_, network_name
from dmqbench.models.export import exported, quantizable_parts
from dmqbench.models.families import runnable
from dmqbench.models.folders import ModelError
from dmqbench.models.likeness import require_same_outputs
from dmqbench.models.quantized import load, save
from dmqbench.quant.modes import undisturbed
from dmqbench.quant.spec import FULL_PRECISION, step_groups
from dmqbench.store.artifacts import Store, store_root
from dmqbench.tasks.calibrate import calibrated, description
from dmqbench.tasks.workshop import STATE, Workshop

__all__ = ["ConfigError", "ModelError", "load", "quantize_", "save"]


def quantize_(
    pipe: DiffusionPipeline,
    method: str,
    bits: str,
    *,
    steps: int = 20,
    sampler: str | None = None,
    eta: float = 0.0,
    guidance: float = 1.0,
    seed: int = 0,
    budget: str = "quick",
    scope: str = "common",
    ranges: str = "method",
    match: str = "refuse",
    store: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> None:
    """Calibrate a method on the network of a pipeline and exchange its layers, in place.

    All names are those of the command line. Whatever is in the run store already is not computed again. The network is
    frozen and in evaluation mode afterwards; until calibration is done the pipeline is untouched.

    Args:
        pipe: a diffusers pipeline with a scheduler and a float32 ``UNet2DModel`` or ``DiTTransformer2DModel``;
            calibrated where its network lies.
        method: for example ``q_diffusion``.
        bits: for example ``w4a6``.
        steps: of calibration, and of later calls where ranges are kept per step or group and ``match`` refuses others.
        sampler: whose trajectories it is calibrated on; None: the scheduler's own, with its settings.
        eta: noise that the sampler adds, 0 to 1, while calibrating.
        guidance: classifier-free guidance while calibrating; 1 is none.
        seed: of calibration.
        budget: calibration sizes and iteration counts.
        scope: what is quantized: ``"common"``, or ``"paper"``, what the method's paper quantizes.
        ranges: calls that share activation ranges: ``"shared"``, ``"step"``, ``"group5"``; ``"method"``: as published.
        match: what a call at a timestep that was not calibrated does: ``"refuse"`` raises ``ServingError``,
            ``"nearest"`` takes the ranges of the nearest one, ``"interpolate"`` those between the two around it.
        store: folder of the run store; None: ``DMQBENCH_RUNS``, else ``runs``.
        overrides: further ``key=value``, as on the command line.

    Raises:
        ConfigError: a name or a value is not allowed.
        ModelError: the pipeline cannot be quantized.
    """
    network, scheduler = quantizable_parts(pipe, [family.network for family in runnable()])
    config = compose(
        [
            *("task=calibrate", "model=local", "tracker=disabled"),
            *(f"method={method}", f"bits={bits}", f"budget={budget}"),
            *sampler_overrides(scheduler, sampler),
            *(f"sampler.steps={steps}", f"sampler.eta={eta}", f"sampler.guidance={guidance}", f"seed={seed}"),
            *(f"bits.scope={scope}", f"bits.ranges={ranges}", f"calibration.match={match}"),
            f"trainer={'gpu' if network.device.type == 'cuda' else 'cpu'}",
            *overrides,
        ]
    )
    config.store.root = str(store_root(store))
    run_store = Store(config.store.root)
    run_store.check_writable()
    with undisturbed(network.device), exported(pipe, run_store.work_area) as folder:
        job = _job(config, folder)
        shop = Workshop(job, run_store)
        require_same_outputs(network, shop.adapter, f"{type(pipe).__name__}.{network_name(pipe)}")
        with shop.record:
            last = calibrated(shop)[-1]
        exchange_(network, description(shop, last), load_file(last.path / STATE))


def _job(config: DictConfig, folder: Path) -> Job:
    """Return the checked job on a model in ``folder``."""
    if config.model.path is not None or config.model.name != "local":
        raise ConfigError("model.path", config.model.path or config.model.name, problem="is the pipeline's own here")
    config.model.path = str(folder)
    job = make_job(config)
    if job.works_on_images:
        raise ConfigError("task_kind", job.task_kind, ["generate"], problem="is for the command line only")
    if not job.method.stages or job.bits.weight == job.bits.activation == FULL_PRECISION:
        raise ConfigError("method", f"{job.method.name} bits={job.bits.name}", problem="quantizes nothing")
    calls = timesteps(job.calibration_sampler, job.model)
    if step_groups(job.bits.ranges, len(calls)).divided(calls) is not None:
        problem = f"needs one network call per timestep, or all of them in one group; {job.sampler.name} has several"
        raise ConfigError("bits.ranges", job.bits.ranges, ["shared"], problem)
    check_layers(job)
    return job
