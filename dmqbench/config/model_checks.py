"""Whether a model's YAML fits the files it names."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from dmqbench.config.checked_job import Job
from dmqbench.config.errors import ConfigError, require_one_of
from dmqbench.config.model_facts import network_config, process_of, schedule_is_rescaled
from dmqbench.config.model_file_checks import check_decoded, check_files
from dmqbench.config.names import CONDITIONS, COUNTING_TASKS, FOREIGN, IMAGELESS_TASKS
from dmqbench.config.own_model import check_own_images, checked_own_model
from dmqbench.config.plugins import shipped_with
from dmqbench.config.schema import ModelConfig
from dmqbench.config.sizes import at_size
from dmqbench.models.families import families, family_of, kind_of
from dmqbench.models.families.family import SIZE
from dmqbench.models.folders import (
    OWN,
    SCHEDULER_CONFIG,
    SHIPPED,
    ModelError,
    decoder_folder,
    network_folder,
    scheduler_file,
)
from dmqbench.models.foreign import ordinary_folder, require_fit
from dmqbench.models.location import locate, locate_scheduler
from dmqbench.models.precision import DTYPES, FLOAT32, TOO_NARROW
from dmqbench.quant.spec import ENGINE_NAMES
from dmqbench.samplers.scheduler_config import fitting_samplers
from dmqbench.store.files import safe_name

log = logging.getLogger(__name__)


def check_condition(model: ModelConfig, network: Mapping[str, Any]) -> None:
    """Check what a model's YAML says of an image that its network reads; ``network`` is its ``config.json``.

    Raises:
        ConfigError: a value is missing or not allowed, or the network has other channels.
    """
    read, predicted = network.get("in_channels"), network.get("out_channels")
    state = (read or 0) - (model.condition_channels or 0)
    if predicted is not None and read is not None and predicted not in (state, 2 * state):
        if kind_of(network).text_parts:
            problem = (
                f"does not fit out_channels={predicted}: a network that inpaints or edits reads a mask or an image"
            )
            raise ConfigError("in_channels", read, [predicted], f"{problem} beside its latent, which no job has")
        problem = f"does not fit: {model.name} reads {read} channels and predicts {predicted}"
        if not model.condition_channels:
            problem += "; one that reads an image beside its state needs model.condition"
        raise ConfigError("model.condition_channels", model.condition_channels, problem=problem)
    if model.condition is None:
        for key in ("condition_channels", "condition_factor"):
            if (value := getattr(model, key)) is not None:
                raise ConfigError(f"model.{key}", value, [None], "changes nothing without model.condition")
        return
    if model.condition not in CONDITIONS:
        raise ConfigError("model.condition", model.condition, CONDITIONS)
    if model.condition_channels != state:
        problem = "does not fit: the image to restore has as many channels as the state"
        raise ConfigError("model.condition_channels", model.condition_channels, [(read or 0) // 2], problem)
    factor, size = model.condition_factor, network.get(SIZE) or network["sample_size"]
    sides = tuple(size) if isinstance(size, (list, tuple)) else (size,)
    if factor is None or factor < 2 or any(side % factor for side in sides):
        problem = f"must be 2 or more and divide the size {'×'.join(map(str, sides))}"
        raise ConfigError("model.condition_factor", factor, problem=problem)
    if decoder_folder(locate(model.checkpoint)) is not None:
        raise ConfigError("model.condition", model.condition, [None], f"is for pixels, and {model.name} is latent")


_NEEDED = {"embedded": (), "architecture": (), "package": (), "local": ("path",), "hub": ("path", "revision")}


def check_weights(job: Job) -> None:
    if job.model.shapes_only and job.task not in COUNTING_TASKS:
        problem = f"needs weights, and those of {job.model.name} are not shipped; give a checkpoint, model.path=FOLDER"
        raise ConfigError("task", job.task, COUNTING_TASKS, problem, nearest="cost")


def check_dtype(job: Job) -> None:
    """Refuse precisions that nothing is calibrated in, and exact integers beside products that round."""
    dtype = job.model.dtype
    if dtype == TOO_NARROW:
        problem = "is not possible: gradients of calibration vanish in it, and activations of some networks overflow"
        raise ConfigError("model.dtype", dtype, DTYPES, problem, nearest=DTYPES[1])
    require_one_of("model.dtype", dtype, DTYPES)
    if dtype != FLOAT32 and job.engine != ENGINE_NAMES[0]:
        problem = f"sums integers exactly, and a network in {dtype} rounds its sums"
        raise ConfigError("engine", job.engine, ENGINE_NAMES[:1], problem)


def check_images_of_model(job: Job) -> None:
    """What the sampler ends with must become images, unless they are not asked for."""
    if job.task in IMAGELESS_TASKS or job.model.shapes_only or job.model.sample_shape is None:
        return
    if job.model.source == OWN:
        check_own_images(job.model)
        return
    check_decoded(locate(job.model.checkpoint), job.model.sample_shape[0])


def check_sampler_fits(job: Job) -> None:
    """Refuse a sampler over another process than the one that the model was trained with."""
    model, process = job.model, process_of(job.model)
    if model.shapes_only:  # there is no scheduler beside shapes
        return
    rescaled = schedule_is_rescaled(model)
    allowed = fitting_samplers(None if process is None else type(process), rescaled)
    if job.sampler.name not in allowed:
        betas = "a rescaled schedule of betas" if rescaled else "a schedule of betas"
        problem = f"does not fit model={model.name}, whose scheduler states {process.title if process else betas}"
        raise ConfigError("sampler", job.sampler.name, allowed, problem, allowed[0])
    embedding = network_config(model).get("time_embedding_type")
    if process is not None and embedding not in (None, "positional"):
        problem = f"does not fit a network whose time_embedding_type={embedding} takes no real timesteps"
        raise ConfigError("sampler", job.sampler.name, problem=problem, nearest=None)


def check_foreign_network(job: Job) -> None:
    path = job.method.path
    if not job.foreign:
        return
    if path is None:
        raise ConfigError("method.path", None, problem=f"must be given with method={FOREIGN}")
    try:
        require_fit(path, network_config(job.model))
    except ModelError as error:
        raise ConfigError("method.path", path, problem=f"cannot be used: {error}") from None


def check_weights_fit(jobs: Iterable[Job]) -> None:
    """Compare the weights that jobs load with what their configurations make, which takes torch; ModelError.

    The embedded networks fit: nothing is imported for them.
    """
    parts: dict[Path, str] = {}
    for job in jobs:
        if job.task == "cost" or job.model.shapes_only:
            continue
        if job.foreign and job.method.path and (theirs := ordinary_folder(job.method.path)) is not None:
            parts[theirs] = ""
        source = job.model.checkpoint
        if source.kind not in SHIPPED:
            folder = locate(source)
            found = (network_folder(folder, source.advice), decoder_folder(folder))
            parts |= {part: source.advice for part in found if part is not None}
    if parts:
        from dmqbench.models.weight_fit import require_weights_fit

        for part, advice in parts.items():
            require_weights_fit(part, advice)


def checked_model(model: ModelConfig, guidances: Mapping[str, float | None]) -> ModelConfig:
    """Fill in from the model's folder what its YAML leaves open; it must know what ``guidances``, by key, need."""
    if model.source == OWN and model.path is not None:
        return checked_own_model(model, guidances)
    sized = at_size(_as_stated(replace(model, size=None), guidances), model.size)
    if sized.size is not None:
        check_condition(sized, network_config(sized))
    return sized


def _as_stated(model: ModelConfig, guidances: Mapping[str, float | None]) -> ModelConfig:
    """The model at the size that its network's file states."""
    require_one_of("model.source", model.source, tuple(_NEEDED))
    folder = shipped_with("models", model.name) if model.source == "embedded" else None
    if folder is not None:  # a plug-in's, which ships it
        model = replace(model, source="local", path=str(folder))
    for key in ("path", "revision"):
        if getattr(model, key) is None and key in _NEEDED[model.source]:
            raise ConfigError(f"model.{key}", None, problem=f"must be given with model={model.name}")
    try:
        safe_name(model.name)
    except ValueError as error:
        raise ConfigError("model.name", model.name, problem=f"is not allowed: {error}") from None
    model = _pinned(model)
    config = network_config(model)
    if model.source == "architecture" and model.path is not None:
        _check_shapes(model, config)
    if model.shapes_only:
        if model.scheduler is not None:
            raise ConfigError("model.scheduler", model.scheduler, [None], f"changes nothing for {model.name}'s shapes")
        return replace(model, sample_shape=_sample_shape(model, config))
    if not any(family.is_of(config) for family in families()):
        allowed = ", ".join(sorted({family.network for family in families()}))
        raise ConfigError("model.path", model.path, problem=f"holds a {config.get('_class_name')}; allowed: {allowed}")
    check_files(locate(model.checkpoint), _scheduler_of(model))
    shape, family = _sample_shape(model, config), family_of(config, model.condition_channels or 0)
    entries = family.label_entries
    classes = model.classes if model.classes is not None else family.classes
    if classes is not None and not 0 < classes <= (entries or 0):
        raise ConfigError("model.classes", classes, problem=f"is not possible: the model knows {entries} labels")
    model = replace(model, sample_shape=shape, classes=classes)
    if not family.reads_text:
        _check_guidances(model, entries, guidances)
    return model


def _check_guidances(model: ModelConfig, entries: int | None, guidances: Mapping[str, float | None]) -> None:
    """Refuse guidance of a model without a label for "no class"; ``entries`` are the rows of its table."""
    for key, guidance in guidances.items():
        if guidance in (None, 1):
            continue
        if model.classes is not None and model.classes == entries:
            raise ConfigError(key, guidance, [1.0], f"needs a null label, and {model.name} has none")
        if not model.classes:
            raise ConfigError(key, guidance, [1.0], f"needs a model with classes, and {model.name} has none")


def _scheduler_of(model: ModelConfig) -> Path:
    """Return the file that states the model's noise schedule, which a bare network is to be given."""
    try:
        found = locate_scheduler(model.checkpoint)
    except ModelError as error:
        if model.scheduler is None:
            raise
        raise ConfigError("model.scheduler", model.scheduler, problem=f"cannot be used: {error}") from None
    if found is None:
        problem = f"has no {SCHEDULER_CONFIG}, which states the noise schedule: name one with model.scheduler"
        folder = locate(model.checkpoint).absolute()
        if scheduler_file(folder.parent) is not None:
            problem += f"; {folder.parent}, the folder around it, has one"
        raise ConfigError("model.path", model.path, problem=problem)
    return found


def _pinned(model: ModelConfig) -> ModelConfig:
    """Return a model at the commit that its branch or tag stands for now."""
    if model.revision is None:
        return model
    commit = locate(model.checkpoint).name  # as the hub's client calls the folder of a snapshot
    if commit != model.revision:
        _say_commit(model.label, model.revision, commit)
    return replace(model, revision=commit)


@cache
def _say_commit(model: str, revision: str, commit: str) -> None:
    """Say once in a process what a branch or tag stands for."""
    log.warning(
        "model.revision=%s of %s is %s now: name the commit for the same weights tomorrow", revision, model, commit
    )


def _check_shapes(model: ModelConfig, found: Mapping[str, Any]) -> None:
    """Refuse a checkpoint, whose ``config.json`` is ``found``, of other shapes than the model of its name."""
    own = network_config(replace(model, path=None, revision=None))
    pairs = {"network": (kind_of(own).network, kind_of(found).network)}
    pairs |= {key: (own[key], found.get(key, "absent")) for key in own if not key.startswith("_")}
    for key, (wanted, value) in pairs.items():
        if wanted != value:
            problem = f"is no {model.name}: its {key} is {value}, not {wanted}"
            raise ConfigError("model.path", model.path, problem=problem)


def _sample_shape(model: ModelConfig, config: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return (C, H, W) of the sampler's state."""
    check_condition(model, config)
    shape = family_of(config, model.condition_channels or 0).sample_shape
    if model.sample_shape and tuple(model.sample_shape) != shape:
        raise ConfigError("model.sample_shape", list(model.sample_shape), problem=f"is {list(shape)} in this model")
    return shape
