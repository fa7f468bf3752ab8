"""Sizes of images: how many pixels a latent is wide, and networks at another size than their files state.

Needs no torch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmqbench.models.class_table import network_config_of
from dmqbench.models.families.family import SIZE
from dmqbench.models.folders import CONFIG, ModelSource, decoder_folder, read_config
from dmqbench.models.location import locate
from dmqbench.models.text_files import IMAGE_SCALE, pipeline_index


def image_scale(folder: Path) -> int:
    """Return how many pixels of an image one place of the sampler's state is wide: as the decoder has it or, where
    only its pipeline was there, the index."""
    part = decoder_folder(folder)
    if part is None:
        return pipeline_index(folder).get(IMAGE_SCALE, 1)
    return decoder_scale(read_config(part / CONFIG)["block_out_channels"])


def decoder_scale(widths: Sequence[int]) -> int:
    """Return how many times larger a decoder makes images, whose levels have these ``widths``."""
    return 2 ** (len(widths) - 1)


def sized_config(source: ModelSource) -> dict[str, Any]:
    """Return the ``config.json`` of a model's network, with the size of its state where that is not the file's."""
    folder = locate(source)
    config = network_config_of(folder, source.advice)
    if source.size is None:
        return config
    scale = image_scale(folder)
    return {**config, SIZE: [side // scale for side in source.size]}
