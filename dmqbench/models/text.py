"""Conditions of prompts, made by the tokenizers and encoders of the model's own pipeline."""

import inspect
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch import Tensor

from dmqbench.models.families.family import Family
from dmqbench.models.families.text import TextPart
from dmqbench.models.folders import ModelError
from dmqbench.models.sources import only_errors_logged, require_finite
from dmqbench.models.text_files import pipeline_name, pipeline_settings, present_parts
from dmqbench.models.weight_files import refuse_misfits, weight_variant


class PromptEncoder:
    """The text parts of a pipeline in float32.

    Args:
        folder: of the model.
        image_scale: how many times larger images are than the sampler's state; some pipelines tell the network sizes.

    Raises:
        ModelError: a part cannot be loaded.
    """

    def __init__(self, folder: Path, family: Family, image_scale: int, device: torch.device | str = "cpu") -> None:
        self._family = family
        self._parts = present_parts(folder, family)
        parts = {name: value for part in self._parts for name, value in _loaded(folder, part, device).items()}
        kind: Any = getattr(diffusers, pipeline_name(folder, family))
        given = {**_NOT_NEEDED, **pipeline_settings(folder), **parts}
        with _quiet():
            self._pipe = kind(**{name: given.get(name) for name in _asked(kind, given)})
        if len(self._parts) < len(family.text_parts):
            # The pipeline asks its network how wide the zeros are that stand for what it lacks.
            setattr(self._pipe, family.part, SimpleNamespace(config=SimpleNamespace(**family.config)))
        self._pipe.vae_scale_factor = image_scale

    @torch.no_grad()
    def encoded(self, prompt: str) -> dict[str, Tensor]:
        """Return the conditions of one prompt without leading size, on the CPU.

        Prompts are read one at a time, so that the bits of one depend on no other.
        """
        with _quiet():
            return _first(self._family.encoded(self._pipe, prompt))

    @torch.no_grad()
    def encoded_null(self, negative: str | None) -> dict[str, Tensor]:
        """Return the conditions of the unguided branch, without leading size, on the CPU."""
        with _quiet():
            return _first(self._family.encoded_null(self._pipe, negative))

    def cuts(self, prompt: str) -> bool:
        """Whether the prompt is longer than what the encoder that reads most of it reads."""
        return all(self._is_cut(part, prompt) for part in self._parts)

    def _is_cut(self, part: TextPart, prompt: str) -> bool:
        tokenizer = getattr(self._pipe, part.tokenizer)
        read = tokenizer.model_max_length
        if part.cut_by_pipeline:
            read = inspect.signature(self._pipe.encode_prompt).parameters["max_sequence_length"].default
        return len(tokenizer(prompt, verbose=False).input_ids) > read


@contextmanager
def _quiet() -> Iterator[None]:
    """What the libraries say while loading and cutting is said here, once."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with only_errors_logged():
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


_NOT_NEEDED = {"requires_safety_checker": False, "add_watermarker": False}


def _asked(kind: Any, given: Collection[str]) -> list[str]:
    """What a pipeline must be given, and what it may be given that is."""
    parameters = inspect.signature(kind).parameters.values()
    return [each.name for each in parameters if each.default is each.empty or each.name in given]


def _first(conditions: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value[0].contiguous().cpu() for name, value in conditions.items()}


def _loaded(folder: Path, part: TextPart, device: torch.device | str) -> dict[str, Any]:
    import transformers

    place = folder / part.encoder
    try:
        with _quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder / part.tokenizer, local_files_only=True)
            encoder, report = getattr(transformers, part.cls).from_pretrained(
                place,
                dtype=torch.float32,
                use_safetensors=True,
                variant=weight_variant(place),
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{place}: does not load with its tokenizer ({reason[:200]})") from error
    # transformers fills what is missing with random numbers; what is too much, positions of old files, is not read.
    refuse_misfits(place, report["missing_keys"], (), report["mismatched_keys"])
    require_finite(encoder, str(place))
    return {part.encoder: encoder.eval().requires_grad_(False).to(device), part.tokenizer: tokenizer}
