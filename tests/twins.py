"""Tiny twins of the pipelines of text that people have, with random weights, their text encoders and schedulers."""

from collections.abc import Callable, Mapping

import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    PixArtSigmaPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from tiny import autoencoder, flux, pixart, sd3, sdxl_unet, text_unet
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


def stable_diffusion(seed: int = 0) -> StableDiffusionPipeline:
    """Stable Diffusion with everything small."""
    return StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=clip_encoder(),
        tokenizer=clip_tokenizer(),
        unet=text_unet(seed),
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
    entries = {"cross_attention_dim": 24, "projection_class_embeddings_input_dim": 12 + 6 * 8}
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
    return PixArtSigmaPipeline(t5_tokenizer(), t5_encoder(), autoencoder(), pixart(seed), DPMSolverMultistepScheduler())


def stable_diffusion_3(seed: int = 0) -> StableDiffusion3Pipeline:
    return StableDiffusion3Pipeline(
        transformer=sd3(seed, joint_attention_dim=24, pooled_projection_dim=24),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(shift_factor=0.1),
        text_encoder=clip_encoder(0, CLIPTextModelWithProjection),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_encoder(1, CLIPTextModelWithProjection),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(width=24),
        tokenizer_3=t5_tokenizer(),
    )


def flux_dev(seed: int = 0) -> FluxPipeline:
    """Its configuration states the size of its latents, as none of diffusers does."""
    transformer = flux(seed, in_channels=16, pooled_projection_dim=12)
    transformer.register_to_config(sample_size=8)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=autoencoder(shift_factor=0.1),
        text_encoder=clip_encoder(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
    )


PIPELINES: Mapping[str, Callable[[], DiffusionPipeline]] = {
    "sd": stable_diffusion,
    "sdxl": sdxl,
    "pixart": pixart_sigma,
    "sd3": stable_diffusion_3,
    "flux": flux_dev,
}
"""Of text."""
