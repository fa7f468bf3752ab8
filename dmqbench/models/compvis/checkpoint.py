"""What is in an original checkpoint, read without executing anything of it."""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dmqbench.models.folders import ModelError

NETWORK, AUTOENCODER, CONDITION = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
"""What the names of the parts begin with."""
_AVERAGE = "model_ema."


class _Inert:
    """Stands for whatever a checkpoint names besides tensors and plain values: states of a trainer, most often.

    What such a name means is never looked up: objects of it are this, which takes everything and does nothing.
    """

    def __new__(cls, *_: Any) -> Any:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None: ...


class _InertMapping(_Inert):
    """The same for names whose objects are filled as dictionaries are."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()  # torch fills no class of one's own


_MAPPINGS = ("collections.defaultdict", "pytorch_lightning.utilities.parsing.AttributeDict")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by the original's names.

    Raises:
        ModelError: it cannot be read, or holds no network of latent diffusion.
    """
    try:
        content: Any = load_file(path) if path.suffix == ".safetensors" else _loaded(path)
    except Exception as error:  # of what kind torch's is, is no part of its interface
        reason = " ".join(str(error).rpartition("WeightsUnpickler error:")[2].split())[:160]
        raise ModelError(
            f"{path}: cannot be read as tensors ({type(error).__name__}: {reason}); where you trust it, "
            "torch.save its state_dict alone with a newer torch"
        ) from None
    state = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    tensors = {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not any(name.startswith(NETWORK) for name in tensors):
        raise ModelError(f"{path}: no checkpoint of latent diffusion: no tensor of it is called {NETWORK}…")
    return tensors


def _loaded(path: Path) -> Any:
    unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    stand_ins: list[Any] = [(_InertMapping if name in _MAPPINGS else _Inert, name) for name in unknown]
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def part_of(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def averaged(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the network's weights averaged over training; None where a checkpoint has no such.

    They are called as the network's are, without dots.

    Raises:
        ModelError: there are averages of some weights only.
    """
    if not any(name.startswith(_AVERAGE) for name in state):
        return None
    found: dict[str, Tensor] = {}
    for name in part_of(state, NETWORK):
        average = _AVERAGE + f"{NETWORK.removeprefix('model.')}{name}".replace(".", "")
        if average not in state:
            raise ModelError(f"there are averaged weights ({_AVERAGE}…), but {average} is not among them")
        found[name] = state[average]
    return found
