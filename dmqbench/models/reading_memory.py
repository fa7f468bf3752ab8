"""Bytes that are held while weights are read, and while prompts are, told from headers and configurations alone."""

from pathlib import Path
from typing import Any

import torch

from dmqbench.models.families.family import Family
from dmqbench.models.families.text import TextPart
from dmqbench.models.live_memory import network_bytes, peak_of
from dmqbench.models.text_files import present_parts
from dmqbench.models.weight_files import stored_bytes

_STORED = {torch.float32: "F32", torch.bfloat16: "BF16"}


def converted_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Return the bytes of a component's files that lie beside what is made of them: those of other types than
    ``dtype``. The others are mapped, and are the weights."""
    return sum(size for stored, size in stored_bytes(folder).items() if stored != _STORED[dtype])


def encoders_bytes(folder: Path, family: Family) -> int:
    """Return what the encoders of a pipeline hold, which are read one after another and stay, and which read a prompt
    in float32."""
    held = peak = working = 0
    for part in present_parts(folder, family):
        encoder, tokens = _encoder(folder / part.encoder, part), _longest(family)
        held += network_bytes(encoder)
        peak = max(peak, held + converted_bytes(folder / part.encoder, torch.float32))
        read = getattr(encoder.config, "max_position_embeddings", tokens)
        working = max(working, _reading(encoder, read))
    return max(peak, held + working)


def _encoder(folder: Path, part: TextPart) -> Any:
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        return getattr(transformers, part.cls)(config).eval()


def _longest(family: Family) -> int:
    """Tokens that the network reads of a prompt: those of all encoders, where they are joined."""
    return max(len(shape) and shape[0] for shape, _ in family.conditions.values() if len(shape) == 2)


def _reading(encoder: Any, tokens: int) -> int:
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    with torch.no_grad():
        return peak_of(lambda: encoder(ids))
