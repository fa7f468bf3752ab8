"""Diffusion transformers conditioned on a class: DiT."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from dmqbench.models.config_values import COUNT, FLAG, NULL, Kind, either, number, words
from dmqbench.models.families.family import Family, Problem

_NORM = "ada_norm_zero"


@dataclass(frozen=True)
class DiT(Family):
    """``DiTTransformer2DModel``; the label behind the last class, which diffusers appends itself, means "no class"."""

    network = "DiTTransformer2DModel"
    aliases = ("Transformer2DModel",)
    part = "transformer"
    layers_version = 2  # modulations count as layers of their blocks, and no longer as embeddings
    kinds: ClassVar[Mapping[str, Kind]] = {
        **{key: COUNT for key in ("num_attention_heads", "attention_head_dim", "in_channels", "num_layers")},
        **{key: COUNT for key in ("sample_size", "patch_size", "num_embeds_ada_norm")},
        "out_channels": either(COUNT, NULL),
        "dropout": number(0, 1),
        "attention_bias": FLAG,
        "norm_type": words(_NORM),
        "activation_fn": words("gelu", "gelu-approximate", "geglu"),
    }

    @classmethod
    def is_of(cls, config: Mapping[str, Any]) -> bool:
        alias = config.get("_class_name") in cls.aliases
        return config.get("norm_type") == _NORM if alias else super().is_of(config)

    @classmethod
    def problem(cls, config: Mapping[str, Any]) -> Problem | None:
        size, patch = config.get("sample_size", 32), config.get("patch_size", 2)
        return ("sample_size", f"is not divisible by patch_size={patch}") if size % patch else None

    @property
    def label_entries(self) -> int:
        return self.classes + 1

    @property
    def classes(self) -> int:
        return self.required("num_embeds_ada_norm")
