"""Quantized models in a script of one's own:

    quantize_(pipe, method="q_diffusion", bits="w4a6")
    images = pipe(num_inference_steps=20).images
    save(pipe, "folder")
    pipe = load("folder")

A quantized pipeline computes in float32, as the benchmark does: what it saves is space on disk, not time.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import nn

from dmqbench.config.compose import compose
from dmqbench.config.errors import ConfigError
from dmqbench.config.job import make_job
from dmqbench.config.model_facts import timesteps
from dmqbench.config.precision_plans import check_layers
from dmqbench.config.schema import RUNNABLE_NETWORKS, Job, scope_of
from dmqbench.models.folders import CONFIG, SCHEDULER_CONFIG, ModelError
from dmqbench.models.quantized import NETWORK, Description, exchange_, load, save, without_origin
from dmqbench.models.sources import NetworkSpec, example_inputs
from dmqbench.models.topology import trace
from dmqbench.quant.serving import is_quantized
from dmqbench.quant.spec import FULL_PRECISION, StepGroups, group_size
from dmqbench.samplers.schedule import NoiseSchedule
from dmqbench.samplers.spec import PREDICTIONS
from dmqbench.store.artifacts import Store
from dmqbench.store.files import TEMPORARY_PREFIX, load_json, save_json
from dmqbench.tasks.calibrate import calibrated
from dmqbench.tasks.workshop import PLAN, STATE, Workshop

__all__ = ["ConfigError", "ModelError", "load", "quantize_", "save"]

_SAMPLERS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "PNDMScheduler": "pndm",
    "DPMSolverMultistepScheduler": "dpmpp",
}
_COMPUTED: Mapping[str, Mapping[str, Any]] = {
    "ddim": {"thresholding": False},
    "ddpm": {"thresholding": False, "variance_type": "fixed_small"},
    "pndm": {},
    "dpmpp": {
        **{"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "thresholding": False},
        **{"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False},
        **{"use_lu_lambdas": False, "use_flow_sigmas": False, "euler_at_final": False, "final_sigmas_type": "zero"},
    },
}
"""Settings of a scheduler without a key in ``sampler``, and the value under which calibration follows it."""


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
        pipe: a diffusers pipeline with a float32 ``UNet2DModel`` and a scheduler; calibrated where its network lies.
        method: for example ``q_diffusion``.
        bits: for example ``w4a6``.
        steps: sampler steps of calibration, and of every later call where activation ranges are kept per step or
            group of steps, unless ``match`` says otherwise.
        sampler: whose trajectories it is calibrated on. None, or its scheduler's own: with the scheduler's spacing,
            offset and clipping; another: with that sampler's defaults.
        eta: noise that the sampler adds, 0 to 1, while calibrating.
        guidance: classifier-free guidance while calibrating; 1 is none.
        seed: of calibration.
        budget: calibration sizes and iteration counts.
        scope: what is quantized: ``"common"``, or ``"paper"``, what the method's paper quantizes.
        ranges: network calls that share activation ranges: ``"shared"``, ``"step"``, ``"group5"`` and its like, or
            ``"method"``, as the method was published.
        match: what a call at a timestep that was not calibrated does where that matters: ``"refuse"`` raises
            ``ServingError``, ``"nearest"`` takes the ranges of the nearest calibrated timestep, ``"interpolate"``
            those between the two around it.
        store: folder of the run store; None: ``DMQBENCH_RUNS``, else ``runs``.
        overrides: further ``key=value``, as on the command line.

    Raises:
        ConfigError: a name or a value is not allowed.
        ModelError: the pipeline cannot be quantized.
    """
    network = _quantizable(pipe)
    config = compose(
        [
            *("model=local", f"method={method}", f"bits={bits}", f"budget={budget}", "tracker=disabled"),
            *_sampler(pipe, sampler),
            *(f"sampler.steps={steps}", f"sampler.eta={eta}", f"sampler.guidance={guidance}", f"seed={seed}"),
            *(f"bits.scope={scope}", f"bits.ranges={ranges}", f"calibration.match={match}"),
            f"trainer={_accelerator(network)}",
            *overrides,
        ]
    )
    config.store.root = str(Path(store or os.environ.get("DMQBENCH_RUNS") or "runs").expanduser().absolute())
    run_store = Store(config.store.root)
    run_store.check_writable()
    with _undisturbed(network), _exported(pipe, run_store) as folder:
        job = _job(config, folder)
        shop = Workshop(job, run_store)
        with shop.record:
            last = calibrated(shop)[-1]
        exchange_(network, _description(network, shop, load_json(last.path / PLAN)), load_file(last.path / STATE))


def _quantizable(pipe: Any) -> Any:
    """The network of a pipeline, or ModelError where it cannot be quantized."""
    network: Any = getattr(pipe, NETWORK, None)
    kind = type(pipe).__name__
    if not isinstance(pipe, DiffusionPipeline):
        raise ModelError(f"a {kind} cannot be quantized: give a diffusers pipeline, which has a scheduler too")
    if type(network).__name__ not in RUNNABLE_NETWORKS or getattr(pipe, "scheduler", None) is None:
        allowed = f"{NETWORK} of {', '.join(RUNNABLE_NETWORKS)}, and a scheduler"
        raise ModelError(f"{kind}: its {NETWORK} is {type(network).__name__} (allowed: {allowed})")
    if is_quantized(network):
        raise ModelError(f"{kind}: its {NETWORK} is quantized already; load the full-precision pipeline again")
    dtypes = {parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()}
    if dtypes != {torch.float32}:
        found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise ModelError(f"{kind}: its {NETWORK} is in {found}; quantization computes in float32: load it in that")
    return network


def _sampler(pipe: Any, wanted: str | None) -> list[str]:
    """Overrides for the sampler that makes calibration trajectories."""
    scheduler = pipe.scheduler
    own = _SAMPLERS.get(type(scheduler).__name__)
    if wanted not in (None, own):
        return [f"sampler={wanted}"]
    if own is None:
        problem = "is no sampler of dmqbench; name the one to calibrate with"
        raise ConfigError("sampler", type(scheduler).__name__, _SAMPLERS.values(), problem)
    config = dict(scheduler.config)
    for key, value in _COMPUTED[own].items():
        if wanted is None and config.get(key, value) != value:
            problem = f"is not computed by the sampler {own}; say sampler={own} to calibrate without it"
            raise ConfigError(f"{type(scheduler).__name__}.{key}", config[key], [value], problem)
    values = {"spacing": config["timestep_spacing"], "steps_offset": config["steps_offset"]}
    if own in ("ddim", "ddpm"):
        values["clip_sample"] = config["clip_sample_range"] if config["clip_sample"] else "null"
    if own in ("ddim", "pndm"):
        values["final_alpha_one"] = config["set_alpha_to_one"]
    if own == "pndm":
        values["skip_prk"] = config["skip_prk_steps"]
    return [f"sampler={own}", *(f"sampler.{key}={value}" for key, value in values.items())]


def _accelerator(network: nn.Module) -> str:
    return "gpu" if next(network.parameters()).device.type == "cuda" else "cpu"


def _job(config: DictConfig, folder: Path) -> Job:
    """The checked job on a model in ``folder``."""
    if config.model.path is not None or config.model.name != "local":
        raise ConfigError("model.path", config.model.path or config.model.name, problem="is the pipeline's own here")
    config.model.path = str(folder)
    job = make_job(config)
    if job.works_on_images:
        raise ConfigError("task_kind", job.task_kind, ["generate"], problem="is for the command line only")
    if not job.method.stages or job.bits.weight == job.bits.activation == FULL_PRECISION:
        raise ConfigError("method", f"{job.method.name} bits={job.bits.name}", problem="quantizes nothing")
    calls, size = timesteps(job.calibration_sampler, job.model), group_size(job.bits.ranges)
    if size is not None and StepGroups.of_size(len(calls), size).divided(calls) is not None:
        problem = f"needs one network call per timestep, or all of them in one group; {job.sampler.name} has several"
        raise ConfigError("bits.ranges", job.bits.ranges, ["shared"], problem)
    check_layers(job)
    return job


@contextmanager
def _exported(pipe: Any, store: Store) -> Iterator[Path]:
    """The network and its noise schedule as a folder of the store's work area, for as long as it is needed.

    Only what calibration depends on is written, so that the same pipeline from another place has the same ids.
    """
    config, allowed = dict(pipe.scheduler.config), ", ".join(PREDICTIONS)
    try:
        schedule = NoiseSchedule.from_scheduler_config(config)
        if config.get("prediction_type", "epsilon") not in PREDICTIONS:
            raise ValueError(f"prediction_type {config['prediction_type']}: allowed are {allowed}")
    except (TypeError, ValueError) as error:
        raise ModelError(f"{type(pipe).__name__}: its scheduler cannot be followed ({error})") from None
    place = store.root / ".work"
    with tempfile.TemporaryDirectory(prefix=f"{TEMPORARY_PREFIX}pipeline-", dir=place) as name:
        folder = Path(name)
        pipe.unet.save_pretrained(folder / NETWORK)
        without_origin(folder / NETWORK / CONFIG)
        prediction = {"prediction_type": config.get("prediction_type", "epsilon")}
        save_json(folder / SCHEDULER_CONFIG, {**asdict(schedule), **prediction})
        yield folder


@contextmanager
def _undisturbed(network: nn.Module) -> Iterator[None]:
    """Compute as if the caller had no modes of its own, and leave its random numbers and settings as they were."""
    device = next(network.parameters()).device
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=devices):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic = before


def _attentions(network: Any, job: Job) -> list[str]:
    """Names of the attentions whose products the job quantizes."""
    if not scope_of(job).attention or job.bits.activation == FULL_PRECISION:
        return []
    args, kwargs = example_inputs(NetworkSpec(network.config), device=network.device)
    return [attention.name for attention in trace(network, args, kwargs).attentions]


def _description(network: Any, shop: Workshop, plan: dict[str, Any]) -> Description:
    job = shop.job
    return Description(
        method=job.method.name,
        bits={**job.bits.facts, **({"plan": job.plan.hash} if job.plan else {})},
        plan=plan,
        attentions=tuple(_attentions(network, job)),
        timesteps=timesteps(job.calibration_sampler, job.model),
        engine=job.engine,
        sampler=asdict(job.calibration_sampler),
        budget=asdict(job.budget),
        seed=job.seed,
        ids={"trajectories": shop.ids.trajectories, "stages": dict(shop.ids.stages)},
        match=job.calibration.match,
    )
