"""The text encoder of Stable Diffusion 1.x, which the original keeps under the names of transformers' own."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dmqbench.models.compvis.checkpoint import part_of

_MODEL, _EMBEDDINGS = "transformer.text_model.", "transformer.text_model.embeddings."
_HEAD_WIDTH = 64
"""Of every CLIP."""


def text_encoder_config(tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return transformers' configuration of CLIP's text encoder; None for another way of making conditions."""
    if f"{_EMBEDDINGS}token_embedding.weight" not in tensors:
        return None
    words, width = tensors[f"{_EMBEDDINGS}token_embedding.weight"].shape
    first = f"{_MODEL}encoder.layers.0.mlp.fc1.weight"
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": len(tensors[first]),
        "num_hidden_layers": 1 + max(int(name.split(".")[4]) for name in tensors if ".encoder.layers." in name),
        "num_attention_heads": width // _HEAD_WIDTH,
        "max_position_embeddings": len(tensors[f"{_EMBEDDINGS}position_embedding.weight"]),
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": width,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }


def converted_text_encoder(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return its weights by transformers' names; the positions, which are counted, are no weights."""
    model = part_of(tensors, "transformer.")
    return {name: tensor for name, tensor in model.items() if not name.endswith("position_ids")}
