"""How the parts of a pipeline that read text are called. Needs no torch."""

from typing import NamedTuple

from dmqbench.models.folders import ENCODER_FOLDERS, TOKENIZER_FOLDERS


class TextPart(NamedTuple):
    """A text encoder with its tokenizer."""

    encoder: str
    """What pipelines call it: their attribute and its folder."""
    cls: str
    """Of transformers."""
    cut_by_pipeline: bool = False
    """Whether the pipeline says how many tokens it reads (``max_sequence_length``), and not its tokenizer."""
    optional: bool = False
    """Whether the pipeline puts zeros in the place of what it reads where it has none."""

    @property
    def tokenizer(self) -> str:
        return TOKENIZER_FOLDERS[ENCODER_FOLDERS.index(self.encoder)]


FIRST, SECOND, THIRD = ENCODER_FOLDERS
CLIP = TextPart(FIRST, "CLIPTextModel")
CLIP_TOKENS = 77
"""Length of a prompt in CLIP."""


def t5(encoder: str, optional: bool = False) -> TextPart:
    """T5 in the folder ``encoder``."""
    return TextPart(encoder, "T5EncoderModel", cut_by_pipeline=True, optional=optional)


def pooling_clip(encoder: str) -> TextPart:
    """CLIP that gives one vector of a prompt too, in the folder ``encoder``."""
    return TextPart(encoder, "CLIPTextModelWithProjection")
