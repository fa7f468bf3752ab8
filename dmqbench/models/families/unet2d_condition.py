"""U-Nets that attend to text or to the token of a class: Stable Diffusion, conditional LDM."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dmqbench.models.class_table import ENTRIES
from dmqbench.models.config_values import COUNT, NULL, SIDES, Kind, either, list_of, words
from dmqbench.models.families.family import Condition, Conditioning, Family
from dmqbench.models.families.text import CLIP, CLIP_TOKENS, TextPart
from dmqbench.models.families.unet2d import halvings

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class UNet2DCondition(Family):
    """``UNet2DConditionModel``, conditioned on embeddings of a text, or on the token of a class where a table of them
    lies beside it."""

    network = "UNet2DConditionModel"
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline",)
    scheduling: ClassVar[Mapping[str, Any]] = {"steps_offset": 1, "clip_sample": False}
    text_parts: ClassVar[tuple[TextPart, ...]] = (CLIP,)
    kinds: ClassVar[Mapping[str, Kind]] = {
        **{key: NULL for key in ("class_embed_type", "addition_embed_type", "encoder_hid_dim_type")},
        **{key: NULL for key in ("num_class_embeds", "time_cond_proj_dim")},
        **{key: COUNT for key in ("in_channels", "out_channels", "cross_attention_dim")},
        "sample_size": SIDES,
        "block_out_channels": list_of(COUNT),
        "norm_num_groups": either(COUNT, NULL),
        "attention_head_dim": either(COUNT, list_of(COUNT)),
        "dual_cross_attention": words(False),
        "attention_type": words("default"),
    }

    @property
    def label_entries(self) -> int | None:
        return self.config.get(ENTRIES)

    @property
    def size_step(self) -> int:
        return halvings(self.config)

    @property
    def conditioning(self) -> Conditioning:
        return "text" if self.label_entries is None else "class"

    @property
    def conditions(self) -> Mapping[str, Condition]:
        tokens = CLIP_TOKENS if self.label_entries is None else 1
        return {"encoder_hidden_states": Condition((tokens, self.required("cross_attention_dim")))}

    def encoded(self, pipe: Any, prompt: str) -> dict[str, "Tensor"]:
        embeddings, _ = pipe.encode_prompt([prompt], pipe.device, 1, do_classifier_free_guidance=False)
        return {"encoder_hidden_states": embeddings}
