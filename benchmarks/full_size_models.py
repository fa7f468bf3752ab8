"""Pipeline folders of full-size models with random weights: network, decoder, scheduler, and what reads conditions.

Sizes are the originals'. The vocabulary has the original's length and nothing else of it: its words are letters.
"""

import json
import sys
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, ModelMixin, VQModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dmqbench.models.class_table import CLASS_NAME, ENTRIES, FOLDER, TABLE
from dmqbench.models.folders import ARCHITECTURES, CONFIG, WEIGHTS, read_config

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.!?-'"
ENDS = ("<|startoftext|>", "<|endoftext|>")
VOCABULARY, TOKENS = 49408, 77
"""Of CLIP: words, and the longest prompt."""

_STABLE = (AutoencoderKL, (128, 256, 512, 512), {"latent_channels": 4, "scaling_factor": 0.18215})
DECODERS = {
    "ldm4_imagenet": (VQModel, (128, 256, 512), {"latent_channels": 3, "num_vq_embeddings": 8192, "scaling_factor": 1}),
    "dit_xl_256": _STABLE,
    "sd14": _STABLE,
}
"""Class, widths and more of the published first stages of LDM-4 and of Stable Diffusion."""

_LATENT = {"beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
SCHEDULERS = {
    "ldm4_imagenet": {**_LATENT, "beta_start": 0.0015, "beta_end": 0.0195},
    "dit_xl_256": {"clip_sample": False},
    "sd14": {**_LATENT, "beta_start": 0.00085, "beta_end": 0.012},
}


def save_random_model(name: str, folder: Path) -> None:
    """Write the pipeline ``name``, weights in float32 as their libraries draw them, which leave everything finite."""
    torch.manual_seed(0)
    config = read_config(ARCHITECTURES / name / CONFIG)
    cls = getattr(diffusers, config["_class_name"])
    cls.from_config(config).save_pretrained(folder / ("unet" if name in ("ldm4_imagenet", "sd14") else "transformer"))
    decoder = _decoder(*DECODERS[name])
    decoder.save_pretrained(folder / ("vqvae" if isinstance(decoder, VQModel) else "vae"))
    if ENTRIES in config:
        _save_class_table(folder / FOLDER, config[ENTRIES], config["cross_attention_dim"])
    if name == "sd14":
        _save_text_encoder(folder)
    DDIMScheduler(**SCHEDULERS[name]).save_pretrained(folder / "scheduler")


def _decoder(cls: type[ModelMixin], widths: tuple[int, ...], settings: dict) -> ModelMixin:
    return cls(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=2,
        norm_num_groups=32,
        **settings,
    )


def _save_class_table(part: Path, rows: int, width: int) -> None:
    part.mkdir(parents=True)
    save_file({TABLE: torch.randn(rows, width)}, part / WEIGHTS)
    (part / CONFIG).write_text(json.dumps({"_class_name": CLASS_NAME}))


def _save_text_encoder(folder: Path) -> None:
    """CLIP ViT-L/14, and a tokenizer that cuts words into letters; its other words fill the vocabulary."""
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    words += [f"unused{number}" for number in range(VOCABULARY - len(ENDS) - len(words))]
    vocabulary = {word: number for number, word in enumerate([*words, *ENDS])}
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TOKENS).save_pretrained(folder / "tokenizer")
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    ends = {"bos_token_id": VOCABULARY - 2, "eos_token_id": VOCABULARY - 1}
    config = CLIPTextConfig(vocab_size=VOCABULARY, max_position_embeddings=TOKENS, **sizes, **ends)
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


if __name__ == "__main__":
    save_random_model(sys.argv[1], Path(sys.argv[2]))
