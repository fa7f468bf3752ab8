"""Transformers over packed latents, with blocks of two streams and of one: FLUX.1."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dmqbench.models.config_values import COUNT, FLAG, NULL, SIDES, Kind, either
from dmqbench.models.families.family import GUIDANCE, Condition, Family, Problem
from dmqbench.models.families.text import CLIP, SECOND, t5

if TYPE_CHECKING:
    from torch import Tensor

_TOKENS = 512
_SIDE = 128
"""Of latents, where the file states none, as diffusers' never does: pictures of 1024 by 1024."""
_NEIGHBOURS = 2
_PACKED = _NEIGHBOURS**2
"""Two by two neighbours are one token."""


@dataclass(frozen=True)
class Flux(Family):
    """``FluxTransformer2DModel``. Where it was distilled under guidance, the scale is a condition of its own."""

    network = "FluxTransformer2DModel"
    part = "transformer"
    time_unit = 1000.0
    pipelines = ("FluxPipeline",)
    text_parts = (CLIP, t5(SECOND))
    kinds: ClassVar[Mapping[str, Kind]] = {
        **{key: COUNT for key in ("in_channels", "attention_head_dim", "num_attention_heads")},
        **{key: COUNT for key in ("joint_attention_dim", "pooled_projection_dim", "num_layers", "num_single_layers")},
        "out_channels": either(COUNT, NULL),
        "guidance_embeds": FLAG,
        "sample_size": SIDES,
    }

    @classmethod
    def problem(cls, config: Mapping[str, Any]) -> Problem | None:
        if config.get("in_channels", 64) % _PACKED:
            return "in_channels", f"is not divisible by {_PACKED}, the latents that are one token"
        size = config.get("sample_size", _SIDE)
        odd = any(side % 2 for side in (size if isinstance(size, list) else [size]))
        return ("sample_size", "is odd, and two by two latents are one token") if odd else None

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        return (self.required("in_channels") // _PACKED, *self.sides)

    @property
    def stated_size(self) -> Any:
        return self.config.get("sample_size", _SIDE)

    @property
    def size_step(self) -> int:
        return _NEIGHBOURS

    @property
    def output_channels(self) -> int:
        return (self.config.get("out_channels") or self.required("in_channels")) // _PACKED

    @property
    def image_tokens(self) -> int:
        _, height, width = self.sample_shape
        return height * width // _PACKED

    @property
    def embeds_guidance(self) -> bool:
        return bool(self.config.get("guidance_embeds"))

    @property
    def conditions(self) -> Mapping[str, Condition]:
        text = (_TOKENS, self.required("joint_attention_dim"))
        pooled = (self.required("pooled_projection_dim"),)
        return {"encoder_hidden_states": Condition(text), "pooled_projections": Condition(pooled)}

    def encoded(self, pipe: Any, prompt: str) -> dict[str, "Tensor"]:
        text, pooled, _ = pipe.encode_prompt(prompt, None, device=pipe.device)
        return {"encoder_hidden_states": text, "pooled_projections": pooled}

    def arguments(
        self, x: "Tensor", timestep: "Tensor", cond: Mapping[str, "Tensor"]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        places = {"img_ids": _places(x), "txt_ids": x.new_zeros(cond["encoder_hidden_states"].shape[1], 3)}
        named = {GUIDANCE: None, **cond, **places}
        return (_packed(x),), {**named, "timestep": timestep / self.time_unit, "return_dict": False}

    def prediction(self, output: Any, x: "Tensor") -> "Tensor":
        return _unpacked(output[0], x)


def _packed(x: "Tensor") -> "Tensor":
    """Tokens [B, H/2 · W/2, 4C] of a state [B, C, H, W]."""
    batch, channels, height, width = x.shape
    squares = x.view(batch, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // _PACKED, channels * _PACKED)


def _unpacked(tokens: "Tensor", x: "Tensor") -> "Tensor":
    """The state of the shape of ``x`` whose tokens these are."""
    batch, channels, height, width = x.shape
    squares = tokens.reshape(batch, height // 2, width // 2, channels, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


def _places(x: "Tensor") -> "Tensor":
    """Where every token lies, [H/2 · W/2, 3]: nothing, row, column."""
    height, width = x.shape[2] // 2, x.shape[3] // 2
    places = x.new_zeros(height, width, 3)
    places[..., 1] += x.new_ones(height).cumsum(0)[:, None] - 1
    places[..., 2] += x.new_ones(width).cumsum(0)[None, :] - 1
    return places.reshape(height * width, 3)
