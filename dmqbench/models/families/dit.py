"""Diffusion transformers conditioned on a class: DiT."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from dmqbench.models.config_values import COUNT, FLAG, NULL, Kind, either, number, words
from dmqbench.models.families.family import Family, Problem, patch_problem


@dataclass(frozen=True)
class DiT(Family):
    """``DiTTransformer2DModel``; the label behind the last class, which diffusers appends itself, means "no class"."""

    network = "DiTTransformer2DModel"
    aliases = ("Transformer2DModel",)
    norm_type = "ada_norm_zero"
    part = "transformer"
    layers_version = 2  # modulations count as layers of their blocks, and no longer as embeddings
    kinds: ClassVar[Mapping[str, Kind]] = {
        **{key: COUNT for key in ("num_attention_heads", "attention_head_dim", "in_channels", "num_layers")},
        **{key: COUNT for key in ("sample_size", "patch_size", "num_embeds_ada_norm")},
        "out_channels": either(COUNT, NULL),
        "dropout": number(0, 1),
        "attention_bias": FLAG,
        "norm_type": words(norm_type),
        "activation_fn": words("gelu", "gelu-approximate", "geglu"),
    }

    @classmethod
    def problem(cls, config: Mapping[str, Any]) -> Problem | None:
        return patch_problem(config, 32)

    @property
    def label_entries(self) -> int:
        return self.classes + 1

    @property
    def classes(self) -> int:
        return self.required("num_embeds_ada_norm")
