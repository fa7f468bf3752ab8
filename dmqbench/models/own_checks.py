"""Whether a denoiser of the user's own is one that can be calibrated; each refusal is one line."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dmqbench.models.adapter import IMAGE
from dmqbench.models.export import dtype_name
from dmqbench.models.folders import ModelError
from dmqbench.models.hooks import hooked
from dmqbench.models.own import Conditions, Denoiser, OwnCalling, copied, example_call
from dmqbench.models.precision import DTYPES
from dmqbench.models.sources import require_finite
from dmqbench.models.topology import is_layer
from dmqbench.quant.layers import QUANTIZABLE
from dmqbench.quant.serving import is_quantized
from dmqbench.store.files import safe_name

log = logging.getLogger(__name__)

PROBES = 2
"""Samples of the calls that are tried."""


def require_usable(denoiser: Denoiser) -> None:
    """Refuse what cannot be calibrated, and say which layers stay in full precision; the network is not touched.

    Raises:
        ModelError: in one line.
    """
    try:
        title = safe_name(denoiser.name)
    except ValueError as error:
        raise ModelError(f"a denoiser's name: {error}") from None
    _check_network(denoiser.network, title)
    _check_shape(denoiser.sample_shape, title)
    if not isinstance(getattr(denoiser.scheduler, "config", None), Mapping):
        raise ModelError(f"{title}: its scheduler is a {type(denoiser.scheduler).__name__}; give one of diffusers")
    _check_conditions(denoiser.conditions, title)
    network = copied(denoiser.network)
    _check_layers(denoiser, network, title)
    _say_left_out(network, title)


def _check_network(network: Any, title: str) -> None:
    if not isinstance(network, nn.Module) or is_layer(network):
        raise ModelError(f"{title}: its network is a {type(network).__name__}; give a module that has layers within")
    if is_quantized(network):
        raise ModelError(f"{title}: its network is quantized already; make the full-precision one again")
    if hasattr(network, "_orig_mod"):
        raise ModelError(f"{title}: its network is compiled; give the module that was compiled, network._orig_mod")
    if (dtype := dtype_name(network) or "no float at all") not in DTYPES:
        raise ModelError(f"{title}: its network is in {dtype} (allowed: {', '.join(DTYPES)}): load it in one of these")
    if len({tensor.device for tensor in network.parameters()}) > 1:
        raise ModelError(f"{title}: its network lies on several devices; quantization takes one")
    for name, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            raise ModelError(f"{title}: {name} in its state is a {type(value).__name__}, and only tensors are hashed")
    require_finite(network, title)


def _check_shape(shape: Any, title: str) -> None:
    fits = len(shape) == 3 and all(type(size) is int and size > 0 for size in shape)
    if not fits:
        raise ModelError(f"{title}: sample_shape {tuple(shape)}: allowed are three whole numbers (C, H, W)")


def _check_conditions(given: Conditions, title: str) -> None:
    tables = {"rows": given.rows, "evaluation": given.evaluation or {}}
    for which, table in tables.items():
        for name, values in table.items():
            if not isinstance(values, Tensor) or values.ndim == 0 or len(values) == 0:
                raise ModelError(f"{title}: conditions.{which} of {name} are no tensor [N, …] of 1 row and more")
        if len({len(values) for values in table.values()}) > 1:
            counts = ", ".join(f"{name} {len(values)}" for name, values in table.items())
            raise ModelError(f"{title}: conditions.{which} have other numbers of rows: {counts}")
    if IMAGE in given.rows:
        raise ModelError(f"{title}: a condition is called {IMAGE}, the name of what is joined to x: call it otherwise")
    shapes = {name: tuple(values.shape[1:]) for name, values in given.rows.items()}
    others = {"evaluation": given.evaluation, "null": given.null}
    for which, table in others.items():
        found = {name: tuple(values.shape[which == "evaluation" :]) for name, values in (table or {}).items()}
        if table is not None and found != shapes:
            raise ModelError(f"{title}: conditions.{which} are of {found}, and the rows of {shapes}")


def _check_layers(denoiser: Denoiser, network: nn.Module, title: str) -> None:
    """Call a copy of the network twice: it gives a prediction, the same again, and runs each of its layers once."""
    seen: dict[str, list[tuple[Tensor, int]]] = {}

    def see(name: str, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if name in seen:
            raise ModelError(f"{title}: {name} runs twice in one call; give each place a layer of its own")
        seen[name] = [(tensor, tensor._version) for tensor in (args[0], output)]

    with hooked({name: module for name, module in network.named_modules() if is_layer(module)}, see):
        first = _predicted(denoiser, network, title)
    if not seen:
        kinds = ", ".join(f"nn.{kind.__name__}" for kind in QUANTIZABLE)
        raise ModelError(f"{title}: its call runs no {kinds} of the network that it is given, so nothing is quantized")
    for name, tensors in seen.items():
        if any(tensor._version != version for tensor, version in tensors):
            problem = f"what {name} reads or puts out is changed in place after it"
            raise ModelError(f"{title}: {problem}: write x = x + y and relu(x), not x += y and relu_(x)")
    if not torch.equal(first, _predicted(denoiser, network, title)):
        raise ModelError(f"{title}: the same call predicts something else the second time")


@torch.no_grad()
def _predicted(denoiser: Denoiser, network: nn.Module, title: str) -> Tensor:
    args, kwargs = example_call(denoiser, PROBES)
    try:
        found = OwnCalling(denoiser.call).output(network, args, kwargs)
    except ModelError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{title}: a call of it fails: {type(error).__name__}: {reason}") from error
    channels, *size = denoiser.sample_shape
    allowed = [[PROBES, count, *size] for count in (channels, 2 * channels)]  # with a learned variance
    if not isinstance(found, Tensor):
        raise ModelError(f"{title}: a call of it returns a {type(found).__name__}; let call return the prediction")
    if list(found.shape) not in allowed or found.dtype != denoiser.dtype:
        given, own = (str(dtype).removeprefix("torch.") for dtype in (found.dtype, denoiser.dtype))
        shown = f"{given} {list(found.shape)}"
        raise ModelError(f"{title}: a call of it returns {shown}; allowed is {own} {allowed[0]} or {allowed[1]}")
    if not found.isfinite().all():
        raise ModelError(f"{title}: what it predicts is not finite")
    return found


def _say_left_out(network: nn.Module, title: str) -> None:
    """Say which layers compute something of their own, and are not quantized."""
    left = [
        (name, type(module).__name__)
        for name, module in network.named_modules()
        if isinstance(module, tuple(QUANTIZABLE)) and not is_layer(module)
    ]
    if left:
        kinds = ", ".join(sorted({kind for _, kind in left}))
        log.warning(
            "%s: layers that are not torch's own stay in full precision: %d of %s; the first is %s",
            *(title, len(left), kinds, left[0][0]),
        )
