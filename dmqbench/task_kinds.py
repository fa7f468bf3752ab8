"""What restoration and editing need of a configuration, and what of them enters ids. Imports no torch."""

from collections.abc import Mapping
from typing import Any

from dmqbench.config_error import ConfigError
from dmqbench.data.archives import LEAST_IMAGES, ArchiveError, inspect, stored_hash
from dmqbench.foreign import image_shape
from dmqbench.models.folders import decoder_folder, locate
from dmqbench.samplers.timesteps import require_strength
from dmqbench.schema import CONDITIONS, TASK_KINDS, EditConfig, Job, ModelConfig, SamplerConfig

OWN_IMAGES: Mapping[str, tuple[int, int, int]] = {"digits": (1, 16, 16)}
"""Dataset → (C, H, W) of the images shipped for it."""

OWN_IMAGES_VERSION = 1
"""Raised when other images are shipped, or streams draw from other parts of them."""


def check_kind(kind: str, edit: EditConfig, sampler: SamplerConfig) -> None:
    """Check the kind of a task, and that the sampler can be entered where editing enters it; ConfigError."""
    if kind not in TASK_KINDS:
        raise ConfigError("task_kind", kind, TASK_KINDS)
    strength, default = edit.strength, EditConfig().strength
    if kind != "edit":
        if strength != default:
            raise ConfigError("edit.strength", strength, [default], f"changes nothing with task_kind={kind}")
        return
    try:
        require_strength(strength, sampler.name, sampler.skip_prk)
    except ValueError as error:
        nearest = "1" if strength > 0 else default
        raise ConfigError("edit.strength", strength, problem=f"is not possible: {error}", nearest=nearest) from None


def check_inputs(job: Job) -> None:
    """Check that the job's model can do its kind of task, and that there are images to do it on.

    Raises:
        ConfigError: a value does not fit model, dataset or another value.
    """
    kind, model = job.task_kind, job.model
    if kind == "restore" and model.condition is None:
        problem = f"needs a model that reads an image, such as digits_sr, and {model.name} reads none"
        raise ConfigError("task_kind", kind, ("generate", "edit"), problem)
    if kind != "restore" and model.condition is not None:
        raise ConfigError("task_kind", kind, ("restore",), f"does not fit model={model.name}, which restores images")
    if not job.works_on_images:
        if job.inputs.images is not None:
            raise ConfigError("inputs.images", job.inputs.images, problem="is read by task_kind=restore and edit only")
        return
    if job.evaluate.samples is not None:
        problem = "is not known of images made elsewhere: nobody says which images they were made from"
        raise ConfigError("task_kind", kind, ("generate",), problem)
    _check_images(job)


def _check_images(job: Job) -> None:
    """Images of the model's size must be there; only headers are read."""
    path, needed = job.inputs.images, image_shape(job.model)
    wanted = f"model={job.model.name} makes {_times(needed)} (C×H×W)"
    if path is None:
        shipped = OWN_IMAGES.get(job.dataset.name)
        if shipped is None:
            problem = f"must be given: no images of dataset={job.dataset.name} are shipped"
            raise ConfigError("inputs.images", None, problem=problem)
        if shipped != needed:
            problem = f"must be given: images of dataset={job.dataset.name} are {_times(shipped)}, and {wanted}"
            raise ConfigError("inputs.images", None, problem=problem)
        return
    try:
        found = inspect(path)
    except ArchiveError as error:
        within = f"{error.path.name}: " if str(error.path) != str(path) else ""
        raise ConfigError("inputs.images", path, problem=f"cannot be used: {within}{error.reason}") from None
    if found.shape != needed:
        raise ConfigError("inputs.images", path, problem=f"holds images of {_times(found.shape)}, and {wanted}")
    if found.count < LEAST_IMAGES:
        problem = f"holds {found.count} images; streams share none, so at least {LEAST_IMAGES} are needed"
        raise ConfigError("inputs.images", path, problem=problem)


def check_condition(model: ModelConfig, network: Mapping[str, Any]) -> None:
    """Check what a model's YAML says of an image that its network reads; ``network`` is its ``config.json``.

    Raises:
        ConfigError: a value is missing or not allowed, or the network has other channels.
    """
    read, predicted = network.get("in_channels"), network.get("out_channels")
    state = (read or 0) - (model.condition_channels or 0)
    if predicted is not None and read is not None and predicted not in (state, 2 * state):
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
    factor, size = model.condition_factor, network["sample_size"]
    sides = tuple(size) if isinstance(size, (list, tuple)) else (size,)
    if factor is None or factor < 2 or any(side % factor for side in sides):
        shown = "×".join(map(str, sides))
        raise ConfigError("model.condition_factor", factor, problem=f"must be 2 or more and divide the size {shown}")
    if decoder_folder(locate(model.checkpoint)) is not None:
        raise ConfigError("model.condition", model.condition, [None], f"is for pixels, and {model.name} is latent")


def task_facts(job: Job) -> dict[str, Any]:
    """What of a job that restores or edits images enters ids: the kind, the images, and what is done to them."""
    path, model = job.inputs.images, job.model
    own = f"{job.dataset.name}/{OWN_IMAGES_VERSION}"
    facts: dict[str, Any] = {"kind": job.task_kind, "images": own if path is None else stored_hash(path)}
    if job.task_kind == "edit":
        return facts | {"strength": job.strength}
    degradation = {"kind": model.condition, "channels": model.condition_channels, "factor": model.condition_factor}
    return facts | {"degradation": degradation}


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
