"""The files of the parts that read text in a model's folder. Needs no torch."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dmqbench.models.families.family import Family
from dmqbench.models.families.text import TextPart
from dmqbench.models.folders import CONFIG, ModelError, read_config, renamed
from dmqbench.models.weight_files import weight_files

INDEX = "model_index.json"
IMAGE_SCALE = "_image_scale"
"""Key of an index of ours: how many pixels of an image a latent is wide, where there is no decoder to ask."""
TOKENIZER_SUFFIXES = (".json", ".txt", ".model")
VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
"""Of which a tokenizer has one, or transformers makes one that knows no word."""


def text_files(folder: Path, family: Family, advice: str = "") -> tuple[Path, ...]:
    """Return the files that decide what conditions a prompt gives: of tokenizers and encoders.

    Raises:
        ModelError: a part is missing, or a file of one is missing or not whole.
    """
    return tuple(path for part in present_parts(folder, family) for path in _files_of(folder, part, advice))


def present_parts(folder: Path, family: Family) -> tuple[TextPart, ...]:
    """Return the parts that read prompts, but for optional ones that the pipeline's folder says it does without."""
    index = pipeline_index(folder)
    return tuple(part for part in family.text_parts if not (part.optional and _is_left_out(folder, part, index)))


def _is_left_out(folder: Path, part: TextPart, index: Mapping[str, Any]) -> bool:
    """Whether the index of a pipeline states no class of a part, or says nothing of one whose folder is not there."""
    if part.encoder in index:
        return not any(index[part.encoder] or ())
    return bool(index) and not (folder / part.encoder).exists()


def _files_of(folder: Path, part: TextPart, advice: str) -> Iterator[Path]:
    encoder, tokenizer = folder / part.encoder, folder / part.tokenizer
    if not (encoder / CONFIG).is_file():
        hint = renamed(folder, part.encoder) or _ADVICE
        raise ModelError(f"{folder}: no {part.encoder}/{CONFIG}, and its network is conditioned on text{hint}")
    yield from (encoder / CONFIG, *weight_files(encoder, advice))
    words = sorted(path for path in tokenizer.glob("*") if path.suffix in TOKENIZER_SUFFIXES)
    if not words:
        hint = renamed(folder, part.tokenizer) or _ADVICE
        raise ModelError(f"{folder}: no {part.tokenizer}/, which cuts prompts into tokens{hint}")
    if not {path.name for path in words} & {*VOCABULARIES}:
        raise ModelError(f"{tokenizer}: none of {', '.join(VOCABULARIES)}, which say what words there are{_ADVICE}")
    yield from words


_ADVICE = "; give the folder of the whole pipeline, as save_pretrained writes it"


def pipeline_name(folder: Path, family: Family) -> str:
    """Return diffusers' pipeline that reads the prompts of a family: the one that the folder names, or the usual."""
    named = pipeline_index(folder).get("_class_name")
    return named if named in family.pipelines else family.pipelines[0]


def pipeline_settings(folder: Path) -> dict[str, Any]:
    """Return the switches that a pipeline's folder states, such as ``force_zeros_for_empty_prompt``, and the scale of
    its images where no decoder says it."""
    index = pipeline_index(folder)
    return {key: value for key, value in index.items() if isinstance(value, bool) or key == IMAGE_SCALE}


def pipeline_index(folder: Path) -> dict[str, Any]:
    """Return what a folder says of its pipeline; nothing where it is none."""
    path = folder / INDEX
    return read_config(path) if path.is_file() else {}
