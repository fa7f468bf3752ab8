"""U-Nets that attend to text or to the token of a class: Stable Diffusion, conditional LDM."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from dmqbench.models.config_values import NULL, Kind
from dmqbench.models.families.family import Condition, Family

CLIP_TOKENS = 77
"""Length of a prompt."""


@dataclass(frozen=True)
class UNet2DCondition(Family):
    """``UNet2DConditionModel``, conditioned on embeddings of a text."""

    network = "UNet2DConditionModel"
    reads_text = True
    kinds: ClassVar[Mapping[str, Kind]] = {
        key: NULL for key in ("class_embed_type", "addition_embed_type", "encoder_hid_dim_type")
    }

    @property
    def conditions(self) -> Mapping[str, Condition]:
        # The file of a shipped architecture says where it is not CLIP's.
        tokens = self.config.get("_context_tokens", CLIP_TOKENS)
        return {"encoder_hidden_states": Condition((tokens, self.required("cross_attention_dim")))}
