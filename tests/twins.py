"""Tiny twins of the pipelines that people have, with random weights, their text encoders, decoders and schedulers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    LDMPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from tiny import (
    autoencoder,
    dit,
    flux,
    pixart,
    save_class_table,
    save_pipeline,
    sd3,
    sdxl_unet,
    text_unet,
    unet,
    vq_autoencoder,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.!?-'"
LONGEST = 12
"""Tokens of a prompt, its marks of start and end included."""


def clip_tokenizer() -> CLIPTokenizer:
    """Cuts words into letters, which stand in no file."""
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=LONGEST)


def clip_encoder(seed: int = 0, cls: type = CLIPTextModel, width: int = 12) -> CLIPTextModel:
    """Text encoder of one layer for ``clip_tokenizer``."""
    config = CLIPTextConfig(
        vocab_size=2 * len(LETTERS) + 2,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LONGEST,
        projection_dim=width,
        bos_token_id=2 * len(LETTERS),
        eos_token_id=2 * len(LETTERS) + 1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(config).eval().requires_grad_(False)


LEAST = {
    "block_out_channels": (8,),
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
}
"""A U-Net with one resolution and attention in its middle alone, each kind of layer as few times as it goes."""
TWO_SIZES = {name: 2 * value for name, value in LEAST.items() if isinstance(value, tuple)}
"""The same with a layer that halves the resolution and one that doubles it."""


def stable_diffusion(seed: int = 0) -> StableDiffusionPipeline:
    """Stable Diffusion with everything small."""
    return StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=clip_encoder(),
        tokenizer=clip_tokenizer(),
        unet=text_unet(seed, **LEAST | TWO_SIZES),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1, beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def t5_tokenizer() -> T5TokenizerFast:
    """Cuts words into letters, which stand in no file."""
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *((letter, -3.0) for letter in LETTERS)]
    return T5TokenizerFast(vocab=words, extra_ids=0, model_max_length=LONGEST)


def t5_encoder(seed: int = 0, width: int = 12) -> T5EncoderModel:
    """Text encoder of one layer for ``t5_tokenizer``."""
    sizes = {"d_model": width, "d_kv": 4, "d_ff": 2 * width, "num_layers": 1, "num_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return T5EncoderModel(T5Config(vocab_size=len(LETTERS) + 4, **sizes)).eval().requires_grad_(False)


def sdxl(seed: int = 0) -> StableDiffusionXLPipeline:
    entries = {"cross_attention_dim": 24, "projection_class_embeddings_input_dim": 12 + 6 * 8, **LEAST}
    entries["transformer_layers_per_block"] = 1
    return StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=clip_encoder(),
        text_encoder_2=clip_encoder(1, CLIPTextModelWithProjection),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=sdxl_unet(seed, **entries),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1, beta_schedule="scaled_linear"),
    )


def pixart_sigma(seed: int = 0) -> PixArtSigmaPipeline:
    network = pixart(seed, layers=1)
    return PixArtSigmaPipeline(t5_tokenizer(), t5_encoder(), autoencoder(), network, DPMSolverMultistepScheduler())


def pixart_alpha(seed: int = 0) -> PixArtAlphaPipeline:
    """Of latents of 128 by 128, at which its network is told the sizes of pictures."""
    network = pixart(seed, layers=1, heads=3, size=128)
    return PixArtAlphaPipeline(t5_tokenizer(), t5_encoder(), autoencoder(), network, DPMSolverMultistepScheduler())


def stable_diffusion_3(seed: int = 0, t5: bool = True) -> StableDiffusion3Pipeline:
    """With its third encoder, or without, as it is deployed where memory is short."""
    return StableDiffusion3Pipeline(
        transformer=sd3(seed, joint_attention_dim=24, pooled_projection_dim=24),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(shift_factor=0.1),
        text_encoder=clip_encoder(0, CLIPTextModelWithProjection),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_encoder(1, CLIPTextModelWithProjection),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(width=24) if t5 else None,
        tokenizer_3=t5_tokenizer() if t5 else None,
    )


def flux_dev(seed: int = 0) -> FluxPipeline:
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=autoencoder(shift_factor=0.1),
        text_encoder=clip_encoder(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
        transformer=flux(seed, pooled_projection_dim=12),
    )


PIPELINES: Mapping[str, Callable[[], DiffusionPipeline]] = {
    "sd": stable_diffusion,
    "sdxl": sdxl,
    "pixart": pixart_sigma,
    "sd3": stable_diffusion_3,
    "flux": flux_dev,
}
"""Of text."""


def pixels() -> DDIMPipeline:
    return DDIMPipeline(unet(class_entries=None, **LEAST), DDIMScheduler(clip_sample=False))


def latents() -> LDMPipeline:
    network = unet(class_entries=None, in_channels=4, out_channels=4, **LEAST)
    return LDMPipeline(vq_autoencoder(), network, DDIMScheduler(clip_sample=False))


def diffusion_transformer() -> DiTPipeline:
    return DiTPipeline(dit(classes=1000, layers=1), autoencoder(), DDIMScheduler(clip_sample=False))


SAMPLED = {
    "sd": "sampler.steps_offset=1",
    "sdxl": "sampler.steps_offset=1",
    "pixart": "sampler=dpmpp sampler.spacing=linspace",
    "sd3": "sampler=flow sampler.spacing=linspace",
    "flux": "sampler=flow sampler.spacing=trailing",
}
"""How a pipeline's own scheduler draws, where that is not DDIM from timestep 0."""

CLASSES_AS_TOKENS = "ldm_classes"
"""Latent diffusion of classes, for which diffusers has no pipeline."""
TWINS: Mapping[str, Callable[[], DiffusionPipeline] | None] = {
    "unet": pixels,
    "ldm": latents,
    CLASSES_AS_TOKENS: None,
    "dit": diffusion_transformer,
    **PIPELINES,
}
"""Of every family."""


def save_twin(name: str, folder: Path) -> Path:
    """Write the folder of a model and return it."""
    build = TWINS[name]
    if build is not None:
        build().save_pretrained(folder)
    else:
        save_class_table(save_pipeline(folder, text_unet(**LEAST), vq_autoencoder()))
    return folder


def asked_of(model: str, steps: int, guidance: float) -> dict[str, Any]:
    """What a pipeline of text is called with for pictures of 16 by 16."""
    asked = {"num_inference_steps": steps, "guidance_scale": guidance, "height": 16, "width": 16, "output_type": "np"}
    return asked | ({"use_resolution_binning": False, "clean_caption": False} if model.startswith("pixart") else {})
