"""What restoration and editing need of a configuration, and what of them enters ids. Imports no torch."""

import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dmqbench.config.checked_job import Job
from dmqbench.config.errors import ConfigError
from dmqbench.config.model_facts import image_shape
from dmqbench.config.names import TASK_KINDS, TO_COME
from dmqbench.config.plugin_code import method_module
from dmqbench.config.schema import EditConfig, EvaluateConfig, ModelConfig, SamplerConfig
from dmqbench.data.archive_info import LEAST_IMAGES, ArchiveError, ArchiveInfo, times
from dmqbench.data.archives import inspect
from dmqbench.data.image_folders import image_names
from dmqbench.data.own_images import OWN_IMAGES
from dmqbench.samplers.timesteps import require_strength


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
    wanted = f"model={job.model.name} makes {times(needed)} (C×H×W)"
    if path is None:
        shipped = OWN_IMAGES.get(job.dataset.name)
        if shipped is None:
            problem = f"must be given: no images of dataset={job.dataset.name} are shipped"
            raise ConfigError("inputs.images", None, problem=problem)
        if shipped != needed:
            problem = f"must be given: images of dataset={job.dataset.name} are {times(shipped)}, and {wanted}"
            raise ConfigError("inputs.images", None, problem=problem)
        return
    try:
        found = inspect(path)
    except ArchiveError as error:
        within = f"{error.path.name}: " if str(error.path) != str(path) else ""
        raise ConfigError("inputs.images", path, problem=f"cannot be used: {within}{error.reason}") from None
    if found.shape != needed:
        raise ConfigError("inputs.images", path, problem=f"holds images of {times(found.shape)}, and {wanted}")
    if found.count < LEAST_IMAGES:
        problem = f"holds {found.count} images; streams share none, so at least {LEAST_IMAGES} are needed"
        raise ConfigError("inputs.images", path, problem=problem)


LARGEST_PROMPTS = 64 * 2**20
_BITS = re.compile(r"w\d+a\d+")
_LONGEST_NAME = 80


class ForeignError(ValueError):
    """A key under ``evaluate`` cannot be used; ``problem`` goes on after "key=value" in one line."""

    def __init__(self, key: str, value: Any, problem: str) -> None:
        self.key, self.value, self.problem = f"evaluate.{key}", value, " ".join(problem.split())
        super().__init__(f"{self.key}={value} {self.problem}")

    def __reduce__(self):
        return type(self), (self.key.removeprefix("evaluate."), self.value, self.problem)


def check_foreign(evaluate: EvaluateConfig, model: ModelConfig, samples: int) -> None:
    """Check what ``evaluate`` names, reading headers only; ``samples`` is ``metrics.samples``.

    Raises:
        ForeignError: a file cannot be used, or two of them or they and the model do not belong together.
    """
    if evaluate.samples is None:
        for key, value in asdict(evaluate).items():
            if value is not None:
                raise ForeignError(key, value, "needs evaluate.samples")
        return
    ours = _inspected("samples", evaluate.samples)
    if evaluate.fp_samples is not None:
        theirs = _inspected("fp_samples", evaluate.fp_samples)
        if ours.shape != theirs.shape:
            problem = f"holds images of {times(theirs.shape)}, and evaluate.samples of {times(ours.shape)} (C×H×W)"
            raise ForeignError("fp_samples", evaluate.fp_samples, problem)
        _check_names(Path(evaluate.samples), Path(evaluate.fp_samples))
    elif ours.shape != (shape := image_shape(model)):
        raise ForeignError(
            "samples",
            evaluate.samples,
            f"holds images of {times(ours.shape)}, and model={model.name} makes {times(shape)} (C×H×W): name the "
            "model that they are of, or give evaluate.fp_samples",
        )
    _check_words(evaluate)
    if evaluate.prompts is not None:
        prompts, needed = read_prompts(evaluate.prompts), min(ours.count, samples)
        if not needed <= len(prompts) <= ours.count:
            problem = f"has {len(prompts)} lines, and the {ours.count} images need a prompt each"
            raise ForeignError("prompts", evaluate.prompts, problem)


def _check_names(ours: Path, theirs: Path) -> None:
    """Two folders pair by the names of their files: one image that is missing would shift all that follow."""
    if ours.is_dir() and theirs.is_dir():
        for name, other in zip(image_names(ours), image_names(theirs), strict=False):
            if name != other:
                problem = f"does not pair with evaluate.samples: {other} stands where {name} does there"
                raise ForeignError("fp_samples", theirs, problem)


def _inspected(key: str, path: str) -> ArchiveInfo:
    try:
        return inspect(path)
    except ArchiveError as error:
        within = f"{error.path.name}: " if error.path != Path(path) else ""
        raise ForeignError(key, path, f"cannot be used: {within}{error.reason}") from None


def _check_words(evaluate: EvaluateConfig) -> None:
    if evaluate.bits is not None and not _BITS.fullmatch(evaluate.bits):
        raise ForeignError("bits", evaluate.bits, "is not of the form w4a8 (bits of weights and of activations)")
    name = evaluate.name
    if name is not None and _is_method(name):
        raise ForeignError("name", name, "is a method of this program, which did not make these images")
    if name is not None and not (name.strip() and name.isprintable() and len(name) <= _LONGEST_NAME):
        raise ForeignError("name", name, f"is not a name of 1 to {_LONGEST_NAME} printable characters")


def _is_method(name: str) -> bool:
    return method_module(name) is not None or name in TO_COME["method"]


def read_prompts(path: str) -> tuple[str, ...]:
    """Return the lines of a text file, one prompt for each image; ForeignError if it is none."""
    try:
        if os.stat(path).st_size > LARGEST_PROMPTS:
            raise ForeignError("prompts", path, f"is larger than {LARGEST_PROMPTS >> 20} MiB")
        lines = Path(path).read_text(encoding="utf-8").split("\n")  # splitlines() also cuts within prompts
    except OSError as error:
        raise ForeignError("prompts", path, f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ForeignError("prompts", path, "is not text in UTF-8") from None
    return tuple(lines[:-1] if lines[-1] == "" else lines)
