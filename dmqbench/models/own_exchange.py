"""The layers of a user's own network exchanged for quantized ones, once it is calibrated."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dmqbench.models.exchange import Description, exchange_
from dmqbench.models.folders import ModelError
from dmqbench.models.hooks import hooked
from dmqbench.models.own import Denoiser, OwnCalling, call_all_layers_, copied, example_call
from dmqbench.quant.serving import Place


def exchange_own_(denoiser: Denoiser, description: Description, state: Mapping[str, Tensor], per_step: bool) -> None:
    """Exchange the layers of the user's network, after a copy of it was exchanged and called.

    Args:
        per_step: activation ranges are of single steps or groups of them, so that a call must tell its timestep.

    Raises:
        ModelError: the quantized network cannot be called as the user's function calls it; his is untouched.
    """
    places = _places(denoiser, per_step)
    trial = copied(denoiser.network)
    exchange_(trial, description, state, places)
    (x, _), cond = example_call(denoiser, 1)
    timestep = torch.tensor(description.timesteps[:1]).to(x.device)
    try:
        OwnCalling(denoiser.call).output(trial, (x, timestep), cond)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        problem = f"a call of the quantized network fails: {type(error).__name__}: {reason}"
        raise ModelError(f"{denoiser.name}: {problem}") from error
    exchange_(denoiser.network, description, state, places)
    call_all_layers_(denoiser.network)


@torch.no_grad()
def _places(denoiser: Denoiser, per_step: bool) -> tuple[Place, Place]:
    """Find where among its arguments the network has the sample, or what was made of it, and the timestep."""
    network, (args, cond) = copied(denoiser.network), example_call(denoiser, 2)
    x, timestep = args
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def see(_: str, __: nn.Module, own_args: tuple[Any, ...], own_kwargs: dict[str, Any]) -> None:
        found.append((own_args, own_kwargs))

    with hooked({"": network}, see, pre=True, with_kwargs=True):
        OwnCalling(denoiser.call).output(network, args, cond)
    if len(found) != 1:
        problem = f"calls the whole network {len(found)} times, and a quantized one is watched by its calls"
        raise ModelError(f"{denoiser.name}: its function {problem}: let it be once")
    given = _by_place(network, *found[0])
    samples = [place for place, value in given if value is x] + [
        place for place, value in given if isinstance(value, Tensor) and value.ndim > 1 and value.is_floating_point()
    ]
    times = [place for place, value in given if isinstance(value, Tensor) and _equal(value, timestep)]
    if not samples:
        raise ModelError(f"{denoiser.name}: its network is given no tensor [B, …] of floats")
    if per_step and not times:
        problem = "its network is not given the timestep as it is, which ranges per step need"
        raise ModelError(f"{denoiser.name}: {problem}: say ranges='shared'")
    return samples[0], (times or samples)[0]


def _equal(value: Tensor, timestep: Tensor) -> bool:
    return value.numel() == timestep.numel() and torch.equal(value.reshape(-1).double(), timestep.double())


def _by_place(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[Place, Any]]:
    """The arguments of a call with their places; one that was given by position may be given by name next time."""
    forward: Callable[..., Any] = network.forward
    parameters = list(inspect.signature(forward).parameters)
    names = [*parameters, *(name for name in kwargs if name not in parameters)]
    positional = [(Place(index, _name(names, index)), value) for index, value in enumerate(args)]
    return positional + [(Place(names.index(name), name), value) for name, value in kwargs.items()]


def _name(names: list[str], index: int) -> str:
    return names[index] if index < len(names) else ""
