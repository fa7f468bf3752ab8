"""Quantized models in a script of one's own:

    quantize_(pipe, method="q_diffusion", bits="w4a6")
    images = pipe(num_inference_steps=20).images
    save(pipe, "folder")
    pipe = load("folder")

A quantized pipeline computes in its own precision, float32 or bfloat16, and its quantizers in float32: what it saves is
space on disk, not time. A denoiser of your own is a ``Denoiser``; ``evaluate`` measures it.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import nn

from dmqbench.config.checked_job import Job
from dmqbench.config.compose import compose
from dmqbench.config.errors import ConfigError
from dmqbench.config.job import make_job
from dmqbench.config.model_facts import timesteps
from dmqbench.config.places import CONF, yaml_names
from dmqbench.config.precision_plans import check_layers
from dmqbench.config.schedulers import sampler_overrides
from dmqbench.data.prompts import COLUMNS
from dmqbench.models.exchange import exchange_, network_name
from dmqbench.models.export import dtype_name, exported, quantizable_parts
from dmqbench.models.families import families
from dmqbench.models.folders import OWN, ModelError
from dmqbench.models.likeness import require_same_outputs
from dmqbench.models.own import Conditions, Denoiser
from dmqbench.models.own_checks import require_usable
from dmqbench.models.own_exchange import exchange_own_
from dmqbench.models.own_folder import described
from dmqbench.models.planting import plant_
from dmqbench.models.quantized import load, save
from dmqbench.models.quantized_report import report
from dmqbench.quant.modes import undisturbed
from dmqbench.quant.spec import FULL_PRECISION, step_groups
from dmqbench.store.artifacts import Store, store_root
from dmqbench.tasks.calibrate import calibrated, description
from dmqbench.tasks.run import carry_out
from dmqbench.tasks.same_function import require_same_function
from dmqbench.tasks.workshop import STATE, Workshop

__all__ = ["Conditions", "ConfigError", "Denoiser", "ModelError", "evaluate", "load", "quantize_", "report", "save"]


def quantize_(
    pipe: DiffusionPipeline | Denoiser,
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
    prompts: str | os.PathLike[str] | Sequence[str] | None = None,
    size: int | tuple[int, int] | None = None,
    store: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> None:
    """Calibrate a method on the network of a pipeline and exchange its layers, in place.

    All names are those of the command line. Whatever is in the run store already is not computed again. The network is
    frozen and in evaluation mode afterwards; until calibration is done the pipeline is untouched.

    Args:
        pipe: a diffusers pipeline with a scheduler and a network of a known family; calibrated where that lies and in
            its precision, float32 or bfloat16. Or a ``Denoiser``, whose network is quantized in place.
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
        prompts: that a pipeline of text is calibrated on, two or more, or a file of them.
        size: (height, width) of the images that it is calibrated on, in pixels, or one number for both; None: as the
            network's configuration says. Ranges do not depend on the size of later calls.
        store: folder of the run store; None: ``DMQBENCH_RUNS``, else ``runs``.
        overrides: further ``key=value``, as on the command line.

    Raises:
        ConfigError: a name or a value is not allowed.
        ModelError: the pipeline cannot be quantized.
    """
    network, scheduler = _parts(pipe)
    config = compose(
        [
            *("task=calibrate", "model=local", "tracker=disabled"),
            *(f"method={method}", f"bits={bits}", f"budget={budget}"),
            *sampler_overrides(scheduler, sampler),
            *(f"sampler.steps={steps}", f"sampler.eta={eta}", f"sampler.guidance={guidance}", f"seed={seed}"),
            *(f"bits.scope={scope}", f"bits.ranges={ranges}", f"calibration.match={match}"),
            f"trainer={_trainer(network)}",
            f"model.dtype={dtype_name(network)}",
            *([] if size is None else [f"model.size={size if isinstance(size, int) else [*size]}"]),
            *overrides,
        ]
    )
    _require_own_dtype(config, network)
    run_store = _store_of(config, store)
    own, area = pipe if isinstance(pipe, Denoiser) else None, run_store.work_area
    sized = config.model.size is not None
    with undisturbed(_device(network)), described(own, area) if own else exported(pipe, area, sized) as folder:
        config.inputs.calibration_prompts = _prompt_file(prompts, folder) or config.inputs.calibration_prompts
        with _named_as_given(prompts):
            job = _job(config, folder, own.name if own else None)
        _require_exchangeable(job)
        shop = Workshop(job, run_store)
        if own:
            require_same_function(shop)
        else:
            require_same_outputs(network, shop.adapter, f"{type(pipe).__name__}.{network_name(pipe)}")
        with shop.record:
            last = calibrated(shop)[-1]
        facts, state = description(shop, last), load_file(last.path / STATE)
        plant_(network, shop.job.model.planted)
        if own:
            exchange_own_(own, facts, state, per_step=job.bits.ranges != "shared")
        else:
            exchange_(network, facts, state)


def evaluate(
    denoiser: Denoiser,
    method: str,
    bits: str,
    *,
    steps: int = 20,
    sampler: str | None = None,
    store: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """Calibrate a method on a denoiser of one's own, sample from both, measure; return the folder of the result.

    This is ``task=run``: whatever is in the run store already is not computed again, and ``dmqbench-report`` shows the
    result beside those of other models. Copies are worked on; the denoiser is not touched.

    Args:
        denoiser: its states must be images, of 1 or 3 channels in [−1, 1].
        method: for example ``q_diffusion``.
        bits: for example ``w4a6``.
        steps: of sampling and calibration.
        sampler: whose samples are drawn; None: the scheduler's own, with its settings.
        store: folder of the run store; None: ``DMQBENCH_RUNS``, else ``runs``.
        overrides: all the rest as ``key=value``, as on the command line: ``metrics.samples=64``, ``seed=1``.

    Raises:
        ConfigError: a name or a value is not allowed.
        ModelError: the denoiser cannot be quantized.
    """
    if not isinstance(denoiser, Denoiser):
        advice = "give a Denoiser; a pipeline is saved, and measured by dmqbench model=local model.path=FOLDER"
        raise ModelError(f"a {type(denoiser).__name__} cannot be evaluated here: {advice}")
    network, scheduler = _parts(denoiser)
    config = compose(
        [
            *("task=run", "model=local", "tracker=disabled", f"method={method}", f"bits={bits}"),
            *sampler_overrides(scheduler, sampler),
            *(f"sampler.steps={steps}", f"trainer={_trainer(network)}"),
            *(f"model.dtype={dtype_name(network)}", *overrides),
        ]
    )
    _require_own_dtype(config, network)
    run_store = _store_of(config, store)
    with undisturbed(_device(network)), described(denoiser, run_store.work_area) as folder:
        for key, value, fixed in (("task", config.task, "run"), ("evaluate.samples", config.evaluate.samples, None)):
            if value != fixed:
                raise ConfigError(key, value, [fixed], "is for the command line only")
        job = _job(config, folder, denoiser.name)
        if job.foreign:
            raise ConfigError("method", job.method.name, problem="is for models in files")
        require_same_function(Workshop(job, run_store))
        return carry_out(job)


def _parts(model: Any) -> tuple[nn.Module, Any]:
    """Return the network and the scheduler of what is to be quantized; ModelError if it cannot be."""
    if not isinstance(model, Denoiser):
        return quantizable_parts(model, list(dict.fromkeys(family.network for family in families())))
    require_usable(model)
    if model.name in yaml_names(CONF / "model"):
        raise ModelError(f"a denoiser's name: {model.name} is the name of a model of dmqbench; take another")
    return model.network, model.scheduler


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def _trainer(network: nn.Module) -> str:
    return "gpu" if _device(network).type == "cuda" else "cpu"


def _store_of(config: DictConfig, named: str | os.PathLike[str] | None) -> Store:
    """Return the store that is asked for, writable, and name it in the configuration."""
    config.store.root = str(store_root(named))
    store = Store(config.store.root)
    store.check_writable()
    return store


def _require_own_dtype(config: DictConfig, network: nn.Module) -> None:
    """Refuse another precision than that of the network in hand."""
    if config.model.dtype != (own := dtype_name(network)):
        raise ConfigError("model.dtype", config.model.dtype, [own], "is that of the network itself here")


def _prompt_file(prompts: str | os.PathLike[str] | Sequence[str] | None, folder: Path) -> str | None:
    """Return the file of the prompts, written into ``folder`` if there is none."""
    if prompts is None:
        return None
    if isinstance(prompts, (str, os.PathLike)):
        if not Path(prompts).exists():
            raise ConfigError("prompts", prompts, problem="is no file: give a list of prompts, or a file of them")
        return os.fspath(prompts)
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({COLUMNS[0]: prompt}) + "\n" for prompt in prompts), encoding="utf-8")
    return str(path)


@contextmanager
def _named_as_given(prompts: object) -> Iterator[None]:
    """What is said of a file of prompts is said of the argument, which a script knows."""
    try:
        yield
    except ConfigError as error:
        if error.key not in ("inputs.prompts", "inputs.calibration_prompts"):
            raise
        value = prompts if prompts is None or isinstance(prompts, (str, os.PathLike)) else "[...]"
        raise ConfigError("prompts", value, problem=error.problem) from None


def _job(config: DictConfig, folder: Path, name: str | None) -> Job:
    """Return the checked job on what ``folder`` describes; a denoiser of one's own has a name."""
    if config.model.path is not None or config.model.name != "local":
        raise ConfigError("model.path", config.model.path or config.model.name, problem="is the pipeline's own here")
    config.model.path = str(folder)
    if name is not None:
        config.model.name, config.model.source = name, OWN
    job = make_job(config)
    if job.works_on_images:
        raise ConfigError("task_kind", job.task_kind, ["generate"], problem="is for the command line only")
    return job


def _require_exchangeable(job: Job) -> None:
    """Refuse a job whose outcome no layers can be exchanged for."""
    if not job.method.stages or job.bits.weight == job.bits.activation == FULL_PRECISION:
        raise ConfigError("method", f"{job.method.name} bits={job.bits.name}", problem="quantizes nothing")
    calls = timesteps(job.calibration_sampler, job.model)
    if step_groups(job.bits.ranges, len(calls)).divided(calls) is not None:
        problem = f"needs one network call per timestep, or all of them in one group; {job.sampler.name} has several"
        raise ConfigError("bits.ranges", job.bits.ranges, ["shared"], problem)
    check_layers(job)
