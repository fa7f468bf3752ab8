"""What restoration and editing need of a configuration, and what of them enters ids. Imports no torch."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path

from dmqbench.config.checked_job import Job
from dmqbench.config.errors import ConfigError, require_one_of
from dmqbench.config.inputs import EditConfig, EvaluateConfig
from dmqbench.config.model_facts import encoder_hash, image_shape, prompts_of, reads_text
from dmqbench.config.names import CALIBRATING_TASKS, LABELS, TASK_KINDS
from dmqbench.config.places import planned
from dmqbench.config.plugin_code import method_module
from dmqbench.config.plugins import metrics as known_metrics
from dmqbench.config.schema import ModelConfig
from dmqbench.data import prompts as data_prompts
from dmqbench.data.archive_info import LEAST_IMAGES, ArchiveError, ArchiveInfo, times
from dmqbench.data.archives import inspect, stored_hash
from dmqbench.data.image_folders import image_names
from dmqbench.data.own_images import OWN_IMAGES
from dmqbench.data.prompts import PromptError
from dmqbench.data.statistics_file import holds_statistics
from dmqbench.samplers.timesteps import require_strength

_BITS = re.compile(r"w\d+a\d+")
_LONGEST_NAME = 80


def check_kind(job: Job) -> None:
    """Check the kind of a task, and that the sampler can be entered where editing enters it; ConfigError."""
    kind, strength, default = job.task_kind, job.edit.strength, EditConfig().strength
    require_one_of("task_kind", kind, TASK_KINDS)
    if kind != "edit":
        if strength != default:
            raise ConfigError("edit.strength", strength, [default], f"changes nothing with task_kind={kind}")
        return
    try:
        require_strength(strength, job.sampler.name, job.sampler.skip_prk)
    except ValueError as error:
        nearest = "1" if strength > 0 else default
        raise ConfigError("edit.strength", strength, problem=f"is not possible: {error}", nearest=nearest) from None


def check_inputs(job: Job) -> None:
    """Check that the job's model can do its kind of task, and that there are images to do it on.

    Raises:
        ConfigError: a value does not fit model, dataset or another value.
    """
    kind, model, images = job.task_kind, job.model, job.inputs.images
    if kind == "restore" and model.condition is None:
        problem = f"needs a model that reads an image, such as digits_sr, and {model.name} reads none"
        raise ConfigError("task_kind", kind, ("generate", "edit"), problem)
    if kind != "restore" and model.condition is not None:
        raise ConfigError("task_kind", kind, ("restore",), f"does not fit model={model.name}, which restores images")
    if not job.works_on_images:
        if images is not None:
            raise ConfigError("inputs.images", images, problem="is read by task_kind=restore and edit only")
        return
    if job.evaluate.samples is not None:
        problem = "is not known of images made elsewhere: nobody says which images they were made from"
        raise ConfigError("task_kind", kind, ("generate",), problem)
    if problem := _problem_of_images(job):
        raise ConfigError("inputs.images", images, problem=problem)
    if images is not None and job.task != "cost":
        _read_whole("inputs.images", images)


def check_labels(job: Job) -> None:
    """Refuse drawn labels where there are none, or where images have their own; ConfigError."""
    if not job.inputs.balanced and (not job.model.classes or job.works_on_images):
        whose = "images have their own" if job.works_on_images else f"{job.model.name} knows no classes"
        raise ConfigError("inputs.labels", job.inputs.labels, LABELS[:1], f"is not possible: {whose}")


def check_prompts(job: Job) -> None:
    """Check that a model conditioned on text has prompts for what the task draws, and no other has any; ConfigError."""
    inputs, model = job.inputs, job.model
    if model.shapes_only:
        return
    if not reads_text(model):
        for key, value in inputs.of_text.items():
            problem = f"is for models that read text, and {model.name} reads none"
            raise ConfigError(f"inputs.{key}", value, [None], problem)
        return
    if job.task == "cost" or (job.evaluate.samples is not None and job.evaluate.fp_samples is not None):
        return
    needed = "calibration_prompts" if job.task in CALIBRATING_TASKS and inputs.calibration_prompts else "prompts"
    if getattr(inputs, needed) is None:
        forms = "a file with one prompt a line, COCO's captions (json), or a table (csv, tsv, jsonl)"
        raise ConfigError(f"inputs.{needed}", None, problem=f"must be given, as {model.name} reads text: {forms}")
    try:
        prompts_of(inputs)
    except PromptError as error:
        key = "prompts" if inputs.prompts is not None and error.path == Path(inputs.prompts) else "calibration_prompts"
        raise ConfigError(f"inputs.{key}", error.path, problem=error.reason) from None
    encoder_hash(model)


def _problem_of_images(job: Job) -> str | None:
    """Return why the images cannot be used, which must be there, whole, of the model's size."""
    path, needed, dataset = job.inputs.images, image_shape(job.model), f"dataset={job.dataset.name}"
    wanted = f"model={job.model.name} makes {times(needed)} (C×H×W)"
    if path is None:
        shipped = OWN_IMAGES.get(job.dataset.name)
        if shipped is None:
            return f"must be given: no images of {dataset} are shipped"
        return None if shipped == needed else f"must be given: images of {dataset} are {times(shipped)}, and {wanted}"
    images = _inspected("inputs.images", path)
    if images.shape != needed:
        return f"holds images of {times(images.shape)}, and {wanted}"
    few = f"holds {images.count} images; streams share none, so at least {LEAST_IMAGES} are needed"
    return few if images.count < LEAST_IMAGES else None


def _inspected(key: str, path: str) -> ArchiveInfo:
    """Return what is in a folder or an archive, by headers."""
    with _one_line(key, path):
        return inspect(path)


def _read_whole(key: str, path: str) -> None:
    """Read every pixel, as the last of all checks; an id is asked for next, and it is known then."""
    with _one_line(key, path):
        stored_hash(path)


@contextmanager
def _one_line(key: str, path: str) -> Iterator[None]:
    try:
        yield
    except ArchiveError as error:
        within = f"{error.path.name}: " if error.path != Path(path) else ""
        raise ConfigError(key, path, problem=f"cannot be used: {within}{error.reason}") from None


def check_reference(job: Job) -> None:
    """Check that what images are compared with is whole: files of images or statistics; ConfigError."""
    key, path = "dataset.reference", job.dataset.reference
    if path is None or job.task == "cost":
        return
    with _one_line(key, path):
        if holds_statistics(path):
            return
    _inspected(key, path)
    if any(known_metrics()[name].over == "samples" for name in job.metrics.names):
        _read_whole(key, path)


def check_foreign(evaluate: EvaluateConfig, model: ModelConfig, samples: int) -> None:
    """Check what ``evaluate`` names, down to the last pixel; ``samples`` is ``metrics.samples``.

    Raises:
        ConfigError: a file cannot be used, or two of them or they and the model do not belong together.
    """
    if evaluate.samples is None:
        for key, value in asdict(evaluate).items():
            if value is not None:
                raise ConfigError(f"evaluate.{key}", value, problem="needs evaluate.samples")
        return
    images = _inspected("evaluate.samples", evaluate.samples)
    size = times(images.shape)
    if evaluate.fp_samples is not None:
        references = _inspected("evaluate.fp_samples", evaluate.fp_samples)
        if images.shape != references.shape:
            problem = f"holds images of {times(references.shape)}, and evaluate.samples of {size} (C×H×W)"
            raise ConfigError("evaluate.fp_samples", evaluate.fp_samples, problem=problem)
        _check_pairs(images, references)
    elif images.shape != (shape := image_shape(model)):
        problem = f"holds images of {size}, and model={model.name} makes {times(shape)} (C×H×W): name the model that "
        problem += "they are of, or give evaluate.fp_samples"
        raise ConfigError("evaluate.samples", evaluate.samples, problem=problem)
    _check_words(evaluate)
    if evaluate.prompts is not None:
        prompts, needed = read_prompts(evaluate.prompts), min(images.count, samples)
        if not needed <= len(prompts) <= images.count:
            problem = f"has {len(prompts)} lines, and the {images.count} images need a prompt each"
            raise ConfigError("evaluate.prompts", evaluate.prompts, problem=problem)
    for key in ("samples", "fp_samples"):
        if (path := getattr(evaluate, key)) is not None:
            _read_whole(f"evaluate.{key}", path)


def _check_pairs(samples: ArchiveInfo, references: ArchiveInfo) -> None:
    """Two folders pair by the names of their files, others by their order: one that is missing would shift the rest."""
    folders = [info.path for info in (samples, references) if info.path.is_dir()]
    if len(folders) == 2:
        for name, other in zip_longest(*map(image_names, folders), fillvalue="nothing"):
            if name != other:
                problem = f"does not pair with evaluate.samples: {other} stands where {name} does there"
                raise ConfigError("evaluate.fp_samples", references.path, problem=problem)
    elif folders and samples.count != references.count:
        problem = f"holds {references.count} images, and evaluate.samples {samples.count}: which of them are pairs?"
        raise ConfigError("evaluate.fp_samples", references.path, problem=problem)


def _check_words(evaluate: EvaluateConfig) -> None:
    bits, name = evaluate.bits, evaluate.name
    if bits is not None and not _BITS.fullmatch(bits):
        problem = "is not of the form w4a8 (bits of weights and of activations)"
        raise ConfigError("evaluate.bits", bits, problem=problem)
    if name is None:
        return
    problem = None
    if method_module(name) is not None or name in planned("method"):
        problem = "is a method of this program, which did not make these images"
    elif not (name.strip() and name.isprintable() and len(name) <= _LONGEST_NAME):
        problem = f"is not a name of 1 to {_LONGEST_NAME} printable characters"
    if problem is not None:
        raise ConfigError("evaluate.name", name, problem=problem)


def read_prompts(path: str) -> tuple[str, ...]:
    """Return the prompts of a file, one for each image in their order; ConfigError if they cannot be read."""
    key = "evaluate.prompts"
    if Path(path).suffix == ".json":
        raise ConfigError(key, path, problem="is of captions, which are in no order of images; give one prompt a line")
    try:
        return tuple(prompt.text for prompt in data_prompts.read_prompts(path))
    except PromptError as error:
        raise ConfigError(key, path, problem=error.reason) from None
