"""Images that another program sampled: how they are checked, named and called in a result. Imports no torch."""

import os
import re
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dmqbench.data.archives import ArchiveError, ArchiveInfo, image_names, inspect, stored_hash
from dmqbench.ids import VERSIONS, JobIds, job_ids, network_config
from dmqbench.models.folders import CONFIG, decoder_folder, locate, read_config
from dmqbench.schema import FOREIGN, TO_COME, UNKNOWN, EvaluateConfig, Job, ModelConfig, full_precision
from dmqbench.store.files import short_hash

UNKNOWN_OF_SAMPLES = (*("scope", "engine", "seed", "sampler", "timesteps", "eta", "guidance", "clip", "chunk", "base"),)
"""Entries of a protocol that nobody knows of images made elsewhere."""

COST_KEYS = ("parameters", "quantized_layers", "skip_layers", "full_precision_layers", "macs", "attention_macs", "bops")

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


# ---- checking


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
            problem = f"holds images of {_times(theirs.shape)}, and evaluate.samples of {_times(ours.shape)} (C×H×W)"
            raise ForeignError("fp_samples", evaluate.fp_samples, problem)
        _check_names(Path(evaluate.samples), Path(evaluate.fp_samples))
    elif ours.shape != (shape := image_shape(model)):
        raise ForeignError(
            "samples",
            evaluate.samples,
            f"holds images of {_times(ours.shape)}, and model={model.name} makes {_times(shape)} (C×H×W): name the "
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
    built = name.isidentifier() and find_spec(f"dmqbench.methods.{name}") is not None
    return built or name in TO_COME["method"]


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


def is_of_model(evaluate: EvaluateConfig, model: ModelConfig) -> bool:
    """Whether the images can be of the model that the job names; with others, nothing of it applies."""
    return evaluate.samples is not None and inspect(evaluate.samples).shape == image_shape(model)


def image_shape(model: ModelConfig) -> tuple[int, int, int]:
    """Return (C, H, W) of the images of ``model``: its sampler's state, or what its decoder makes of that."""
    folder = decoder_folder(locate(model.checkpoint))
    if folder is None:
        channels, height, width = model.sample_shape or _state_shape(model)
        return channels, height, width
    decoder = read_config(folder / CONFIG)
    scale = 2 ** (len(decoder["block_out_channels"]) - 1)
    _, height, width = model.sample_shape or _state_shape(model)
    return decoder["out_channels"], height * scale, width * scale


def _state_shape(model: ModelConfig) -> tuple[int, int, int]:
    config = network_config(model)
    size = config["sample_size"]
    height, width = size if isinstance(size, list) else (size, size)
    return config["in_channels"], height, width


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


# ---- naming


def images_job(job: Job) -> Job:
    """The same job on images made elsewhere, without what they do not depend on: method, bits, seed, engine.

    What its configuration then says of method and bits is that of the full-precision samples it may have to draw.
    """
    base = full_precision(job)
    return replace(base, evaluate=job.evaluate, config={**base.config, "evaluate": asdict(job.evaluate)})


def foreign_ids(job: Job, weights: str) -> JobIds:
    """Ids of a job with ``evaluate.samples``: by the pixels, what they are compared with, and what they are called.

    Raises:
        ArchiveError: the images cannot be read.
    """
    evaluate = job.evaluate
    assert evaluate.samples is not None
    own = job_ids(replace(full_precision(job), evaluate=EvaluateConfig()), weights)
    samples = images_id(evaluate.samples)
    result = short_hash(
        {
            "kind": "result",
            "version": VERSIONS["result"],
            "samples": samples,
            "reference": own.samples if evaluate.fp_samples is None else images_id(evaluate.fp_samples),
            "model": job.model.name,
            "dataset": job.dataset.name,
            "name": evaluate.name,
            "bits": evaluate.bits,
        }
    )
    return JobIds(own.trajectories, (), None, samples, result)


def images_id(path: str | Path) -> str:
    """Id of the samples artifact that holds the images of an archive or folder, whatever file they came in."""
    return short_hash({"kind": "samples", "version": VERSIONS["samples"], "images": stored_hash(path)})


def label_of(evaluate: EvaluateConfig) -> str:
    """How the row is called: as its author says, otherwise as the file."""
    if evaluate.name is not None:
        return evaluate.name
    path = Path(evaluate.samples or "").resolve()
    return path.name if path.is_dir() else path.stem


# ---- what a result says


def foreign_entries(name: str, bits: str | None, size_mib: float | None = None) -> dict[str, Any]:
    """Entries of ``result.json`` that speak of what was made elsewhere; what only its author says is ``declared``."""
    return {
        "method": FOREIGN,
        "name": name,
        "bits": bits or UNKNOWN,
        "scope": UNKNOWN,
        "ranges": None,
        "declared": ["bits"] if bits else [],
        "cost": {
            **dict.fromkeys(COST_KEYS),
            "size_mib": {"all_layers": None, "paper_code": None, "packed": size_mib},
            "full_precision_names": None,
            "simulated": None,
        },
    }
