"""U-Nets that are told a pooled text and the sizes of the picture besides: SDXL."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dmqbench.models.config_values import COUNT, NULL, Kind, words
from dmqbench.models.families.family import Condition
from dmqbench.models.families.text import CLIP, SECOND, pooling_clip
from dmqbench.models.families.unet2d_condition import UNet2DCondition

if TYPE_CHECKING:
    from torch import Tensor

_ADDED = "text_time"
_SIZES = 6
"""Height and width of the original, where it was cropped, height and width of what is drawn."""


@dataclass(frozen=True)
class SDXL(UNet2DCondition):
    """``UNet2DConditionModel`` with ``addition_embed_type=text_time``."""

    pipelines = ("StableDiffusionXLPipeline",)
    scheduling: ClassVar[Mapping[str, Any]] = {}
    text_parts = (CLIP, pooling_clip(SECOND))
    kinds: ClassVar[Mapping[str, Kind]] = {
        **{key: NULL for key in ("class_embed_type", "encoder_hid_dim_type")},
        **{key: COUNT for key in ("addition_time_embed_dim", "projection_class_embeddings_input_dim")},
        "addition_embed_type": words(_ADDED),
    }

    @classmethod
    def is_of(cls, config: Mapping[str, Any]) -> bool:
        return config.get("_class_name") == cls.network and config.get("addition_embed_type") == _ADDED

    @classmethod
    def is_told_sizes(cls, config: Mapping[str, Any]) -> bool:
        return True

    @property
    def conditions(self) -> Mapping[str, Condition]:
        sines = _SIZES * self.required("addition_time_embed_dim")
        pooled = self.required("projection_class_embeddings_input_dim") - sines
        return {**super().conditions, "text_embeds": Condition((pooled,)), "time_ids": Condition((_SIZES,))}

    def encoded(self, pipe: Any, prompt: str) -> dict[str, "Tensor"]:
        text, _, pooled, _ = pipe.encode_prompt(prompt, device=pipe.device, do_classifier_free_guidance=False)
        return self._named(pipe, text, pooled)

    def encoded_null(self, pipe: Any, negative: str | None) -> dict[str, "Tensor"]:
        _, text, _, pooled = pipe.encode_prompt("", device=pipe.device, negative_prompt=negative)
        return self._named(pipe, text, pooled)

    def _named(self, pipe: Any, text: "Tensor", pooled: "Tensor") -> dict[str, "Tensor"]:
        _, height, width = (side * pipe.vae_scale_factor for side in self.sample_shape)
        sizes = text.new_tensor([[height, width, 0, 0, height, width]])
        return {"encoder_hidden_states": text, "text_embeds": pooled, "time_ids": sizes}

    def arguments(
        self, x: "Tensor", timestep: "Tensor", cond: Mapping[str, "Tensor"]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        named = dict(cond)
        added = {name: named.pop(name) for name in ("text_embeds", "time_ids")}
        return (x, timestep), {**named, "added_cond_kwargs": added, "return_dict": False}
