"""How the parts of a pipeline that read text are called. Needs no torch."""

from typing import NamedTuple

from dmqbench.models.folders import ENCODER_FOLDERS, TOKENIZER_FOLDERS


class TextPart(NamedTuple):
    """A text encoder with its tokenizer."""

    encoder: str
    """What pipelines call it: their attribute and its folder."""
    cls: str
    """Of transformers."""
    tokens: int | None = None
    """How many the pipeline lets it read; None: as many as its tokenizer says."""

    @property
    def tokenizer(self) -> str:
        return TOKENIZER_FOLDERS[ENCODER_FOLDERS.index(self.encoder)]


CLIP = TextPart("text_encoder", "CLIPTextModel")
CLIP_TOKENS = 77
"""Length of a prompt in CLIP."""
