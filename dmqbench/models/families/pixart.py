"""Diffusion transformers that attend to a text: PixArt-α and PixArt-Σ."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dmqbench.models.config_values import COUNT, FLAG, NULL, Kind, either, words
from dmqbench.models.families.family import Condition, Family, Problem, patch_problem
from dmqbench.models.families.text import FIRST, t5

if TYPE_CHECKING:
    from torch import Tensor

_TOLD_SIZES_AT = 128
"""The size of latents at which PixArt-α is told the sizes of the picture, where its configuration leaves it open."""


@dataclass(frozen=True)
class PixArt(Family):
    """``PixArtTransformer2DModel``, which predicts a variance too; the files on the hub have its class' older name."""

    network = "PixArtTransformer2DModel"
    aliases = ("Transformer2DModel",)
    norm_type = "ada_norm_single"
    part = "transformer"
    pipelines = ("PixArtSigmaPipeline", "PixArtAlphaPipeline")
    text_parts = (t5(FIRST),)
    kinds: ClassVar[Mapping[str, Kind]] = {
        **{key: COUNT for key in ("num_attention_heads", "attention_head_dim", "in_channels", "num_layers")},
        **{key: COUNT for key in ("sample_size", "patch_size", "caption_channels", "cross_attention_dim")},
        "out_channels": either(COUNT, NULL),
        "norm_type": words(norm_type),
        "use_additional_conditions": either(FLAG, NULL),
    }

    @classmethod
    def problem(cls, config: Mapping[str, Any]) -> Problem | None:
        return patch_problem(config, _TOLD_SIZES_AT)

    @property
    def size_step(self) -> int:
        return self.config.get("patch_size", 2)

    @classmethod
    def is_told_sizes(cls, config: Mapping[str, Any]) -> bool:
        """Whether the height, the width and their ratio are conditions too."""
        stated = config.get("use_additional_conditions")
        return config.get("sample_size") == _TOLD_SIZES_AT if stated is None else stated

    @property
    def conditions(self) -> Mapping[str, Condition]:
        tokens = 300  # of PixArt-Σ
        text = {
            "encoder_hidden_states": Condition((tokens, self.required("caption_channels"))),
            "encoder_attention_mask": Condition((tokens,)),
        }
        sizes = {"resolution": Condition((2,)), "aspect_ratio": Condition((1,))}
        return {**text, **sizes} if self.is_told_sizes(self.config) else text

    def encoded(self, pipe: Any, prompt: str) -> dict[str, "Tensor"]:
        text, mask, *_ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False, device=pipe.device)
        cond = {"encoder_hidden_states": text, "encoder_attention_mask": mask.to(text.dtype)}
        if self.is_told_sizes(self.config):
            _, height, width = (side * pipe.vae_scale_factor for side in self.sample_shape)
            cond |= {
                "resolution": text.new_tensor([[height, width]]),
                "aspect_ratio": text.new_tensor([[height / width]]),
            }
        return cond

    def arguments(
        self, x: "Tensor", timestep: "Tensor", cond: Mapping[str, "Tensor"]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        named = dict(cond)
        sizes = {name: named.pop(name, None) for name in ("resolution", "aspect_ratio")}
        return (x,), {**named, "timestep": timestep, "added_cond_kwargs": sizes, "return_dict": False}
