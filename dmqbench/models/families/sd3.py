"""Transformers in which picture and text attend to each other: Stable Diffusion 3 and 3.5."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dmqbench.models.config_values import COUNT, NULL, Kind, either, words
from dmqbench.models.families.family import Condition, Family, Problem, patch_problem
from dmqbench.models.families.text import CLIP_TOKENS, FIRST, SECOND, THIRD, pooling_clip, t5

if TYPE_CHECKING:
    from torch import Tensor

_T5_TOKENS = 256
_POSITIONS = 96
"""Of patches along a side, where the file states none."""


@dataclass(frozen=True)
class SD3(Family):
    """``SD3Transformer2DModel``."""

    network = "SD3Transformer2DModel"
    part = "transformer"
    pipelines = ("StableDiffusion3Pipeline",)
    text_parts = (pooling_clip(FIRST), pooling_clip(SECOND), t5(THIRD, optional=True))
    kinds: ClassVar[Mapping[str, Kind]] = {
        **{key: COUNT for key in ("sample_size", "patch_size", "in_channels", "num_layers", "out_channels")},
        **{key: COUNT for key in ("attention_head_dim", "num_attention_heads", "joint_attention_dim")},
        **{key: COUNT for key in ("caption_projection_dim", "pooled_projection_dim", "pos_embed_max_size")},
        "qk_norm": either(words("rms_norm"), NULL),
    }

    @classmethod
    def problem(cls, config: Mapping[str, Any]) -> Problem | None:
        return patch_problem(config, 128)

    @property
    def size_step(self) -> int:
        return self.required("patch_size")

    @property
    def largest_side(self) -> int:
        return self.config.get("pos_embed_max_size", _POSITIONS) * self.required("patch_size")

    @property
    def image_tokens(self) -> int:
        _, height, width = self.sample_shape
        return (height // self.required("patch_size")) * (width // self.required("patch_size"))

    @property
    def conditions(self) -> Mapping[str, Condition]:
        text = (CLIP_TOKENS + _T5_TOKENS, self.required("joint_attention_dim"))
        pooled = (self.required("pooled_projection_dim"),)
        return {"encoder_hidden_states": Condition(text), "pooled_projections": Condition(pooled)}

    def encoded(self, pipe: Any, prompt: str) -> dict[str, "Tensor"]:
        text, _, pooled, _ = pipe.encode_prompt(
            prompt, None, None, device=pipe.device, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": text, "pooled_projections": pooled}

    def arguments(
        self, x: "Tensor", timestep: "Tensor", cond: Mapping[str, "Tensor"]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (x,), {**cond, "timestep": timestep, "return_dict": False}
