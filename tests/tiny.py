"""Tiny random networks of the real classes, and diffusers folders of them; built in milliseconds, no downloads."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    ModelMixin,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from safetensors.torch import save_file

CLASSES = 10
TOKENS = 5
CONTEXT, POOLED = 12, 6
"""Widths of a text: of each token, and of the whole."""


def build(cls: type[ModelMixin], seed: int, **config) -> ModelMixin:
    """A network with random weights that depend on ``seed`` alone, in evaluation mode and frozen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = cls(**config)
        for parameter in network.parameters():  # zero initialisation would hide whole branches
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    return network.eval().requires_grad_(False)


def unet(seed: int = 0, *, class_entries: int | None = CLASSES + 1, size: int = 8, **config) -> UNet2DModel:
    """Class-conditional pixel U-Net with attention at two resolutions and a null label."""
    settings = {
        "sample_size": size,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
        "norm_num_groups": 8,
        "num_class_embeds": class_entries,
    }
    return build(UNet2DModel, seed, **{**settings, **config})


def small_unet(seed: int = 0, **config) -> UNet2DModel:
    """The same with one resolution, a third of the layers: for what is carried out many times."""
    blocks = {"down_block_types": ("AttnDownBlock2D",), "up_block_types": ("AttnUpBlock2D",)}
    return unet(seed, **{"block_out_channels": (8,), "norm_num_groups": 4, **blocks, **config})


def smallest_unet(seed: int = 0, **config) -> UNet2DModel:
    """The same with attention in its middle alone: every kind of layer, each as few times as it goes."""
    return small_unet(seed, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), **config)


def text_unet(seed: int = 0, **config) -> UNet2DConditionModel:
    """U-Net with self- and cross-attention over 5 tokens of width 12."""
    settings = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": CONTEXT,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    }
    return build(UNet2DConditionModel, seed, **{**settings, **config})


def sdxl_unet(seed: int = 0, **config) -> UNet2DConditionModel:
    """The same at one resolution with SDXL's added conditions: a pooled text, and sizes of 8 sines each."""
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    entries = {"projection_class_embeddings_input_dim": POOLED + 6 * 8, "use_linear_projection": True}
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    settings = {**added, **entries, **blocks, "block_out_channels": (16,), "transformer_layers_per_block": 2}
    return text_unet(seed, **{**settings, **config})


def dit(seed: int = 0, classes: int = CLASSES, layers: int = 2) -> DiTTransformer2DModel:
    """Diffusion transformer that predicts a variance in the second half of its output channels."""
    return build(
        DiTTransformer2DModel,
        seed,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=layers,
        sample_size=8,
        num_embeds_ada_norm=classes,
    )


def pixart(seed: int = 0, layers: int = 2, heads: int = 2, size: int = 8) -> PixArtTransformer2DModel:
    """PixArt, which predicts a variance, over 4 × 4 patches."""
    return build(
        PixArtTransformer2DModel,
        seed,
        num_attention_heads=heads,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=layers,
        cross_attention_dim=8 * heads,
        sample_size=size,
        caption_channels=CONTEXT,
    )


def sd3(seed: int = 0, **config) -> SD3Transformer2DModel:
    """SD3 as its later versions are: a second attention in a block, normed queries and keys."""
    settings = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": CONTEXT,
        "caption_projection_dim": 16,
        "pooled_projection_dim": POOLED,
        "pos_embed_max_size": 8,
        "dual_attention_layers": (0,),
        "qk_norm": "rms_norm",
    }
    return build(SD3Transformer2DModel, seed, **{**settings, **config})


def flux(seed: int = 0, **config) -> FluxTransformer2DModel:
    """Flux with a block of two streams and one of a single stream."""
    settings = {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": CONTEXT,
        "pooled_projection_dim": POOLED,
        "guidance_embeds": True,
        "axes_dims_rope": (2, 2, 4),
    }
    network = build(FluxTransformer2DModel, seed, **{**settings, **config})
    network.register_to_config(sample_size=8)  # of its latents, which none of diffusers' files states
    return network


def autoencoder(seed: int = 0, **config) -> AutoencoderKL:
    """Autoencoder from 3×16×16 images to 4×8×8 latents."""
    return build(
        AutoencoderKL,
        seed,
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(8, 16),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.5,
        **config,
    )


def vq_autoencoder(seed: int = 0) -> VQModel:
    """Vector-quantizing autoencoder from 3×16×16 images to 4×8×8 latents."""
    return build(
        VQModel,
        seed,
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(8, 16),
        latent_channels=4,
        num_vq_embeddings=16,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.5,
    )


def save_pipeline(folder: Path, network: ModelMixin, decoder: ModelMixin | None = None, **scheduler) -> Path:
    """Write a diffusers pipeline folder and return it."""
    part = "transformer" if isinstance(network, DiTTransformer2DModel) else "unet"
    network.save_pretrained(folder / part)
    DDIMScheduler(clip_sample=False, **scheduler).save_pretrained(folder / "scheduler")
    if decoder is not None:
        decoder.save_pretrained(folder / ("vqvae" if isinstance(decoder, VQModel) else "vae"))
    return folder


def save_class_table(folder: Path, rows: int = CLASSES + 1, width: int = 12) -> torch.Tensor:
    """Write the table of a model whose classes are tokens into its folder, and return it."""
    table = torch.randn(rows, width, generator=torch.Generator().manual_seed(7))
    part = folder / "class_embedder"
    part.mkdir()
    save_file({"embedding.weight": table}, part / "diffusion_pytorch_model.safetensors")
    (part / "config.json").write_text('{"_class_name": "ClassEmbedder"}')
    return table


def inputs(network: ModelMixin, batch: int = 2, seed: int = 0) -> tuple[tuple[torch.Tensor, ...], dict]:
    """(args, kwargs) of a random call of one of the networks above."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=generator)

    config = network.config
    size = config.sample_size // (2 if isinstance(network, FluxTransformer2DModel) else 1)  # two by two are a token
    x = draw(config.in_channels, size, size)
    timestep = torch.randint(1000, (batch,), generator=generator)
    kwargs: dict = {"return_dict": False}
    if "cross_attention_dim" in config and not isinstance(network, PixArtTransformer2DModel):
        kwargs["encoder_hidden_states"] = draw(TOKENS, config.cross_attention_dim)
        if config.addition_embed_type is not None:
            kwargs["added_cond_kwargs"] = {"text_embeds": draw(POOLED), "time_ids": draw(6)}
    elif isinstance(network, DiTTransformer2DModel) or config.get("num_class_embeds") is not None:
        kwargs["class_labels"] = torch.randint(CLASSES, (batch,), generator=generator)
    elif not isinstance(network, UNet2DModel):
        return _text_transformer_inputs(network, x, timestep, draw)
    return (x, timestep), kwargs


def _text_transformer_inputs(network: ModelMixin, x, timestep, draw) -> tuple[tuple[torch.Tensor, ...], dict]:
    """Of PixArt, with prompts of 1, 2, … words, of SD3, or of Flux."""
    kwargs = {"encoder_hidden_states": draw(TOKENS, CONTEXT), "timestep": timestep, "return_dict": False}
    if isinstance(network, PixArtTransformer2DModel):
        words = 1 + torch.arange(len(x))[:, None] % TOKENS
        mask = (torch.arange(TOKENS) < words).float()
        sizes = {"resolution": None, "aspect_ratio": None}
        return (x,), {**kwargs, "encoder_attention_mask": mask, "added_cond_kwargs": sizes}
    kwargs["pooled_projections"] = draw(POOLED)
    if isinstance(network, SD3Transformer2DModel):
        return (x,), kwargs
    places = torch.cartesian_prod(torch.zeros(1), *(torch.arange(float(side)) for side in x.shape[2:]))
    ids = {"img_ids": places, "txt_ids": torch.zeros(TOKENS, 3), "guidance": torch.full((len(x),), 3.5)}
    return (x.flatten(2).transpose(1, 2),), {**kwargs, **ids, "timestep": timestep / 1000}
