"""A frozen network as a program of one's own uses it: without its old weights, moved, copied and called at will."""

import math
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dmqbench.quant.attention import AttentionQuantizers
from dmqbench.quant.context import StepContext, Toward
from dmqbench.quant.frozen import FrozenLayer, freeze_layer, has_integer_form
from dmqbench.quant.functional import is_narrow
from dmqbench.quant.layer import QuantLayer
from dmqbench.quant.layers import freeze_, quant_layers
from dmqbench.quant.modes import own_modes
from dmqbench.quant.spec import StepGroups, nearest_calls, neighbouring_calls
from dmqbench.quant.state import activation_quantizers, tensors_of

Run = Callable[[Tensor], Tensor]


class Place(NamedTuple):
    """Where an argument of a network is, at a position or by its name, and what one of it is worth here."""

    position: int
    name: str
    unit: float = 1.0

    def of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = args[self.position] if len(args) > self.position else kwargs[self.name]
        return value if self.unit == 1 else value * self.unit


ROUNDED = 2.0**-7
"""By how much of themselves timesteps differ at most that a pipeline has rounded to bfloat16 up to three times."""

SAMPLE, TIMESTEP = Place(0, "sample"), Place(1, "timestep")
"""Of diffusers' U-Nets."""


class ServingError(RuntimeError):
    """A served network was called in a way that it does not answer; one line."""


class Lowered:
    """What an engine makes of a layer, made again wherever the layer was moved or copied to.

    An engine's callable holds tensors that neither ``Module.to`` nor ``deepcopy`` reaches.
    """

    def __init__(self, layer: QuantLayer, engine: Callable[[FrozenLayer], Run]) -> None:
        self.layer = layer
        self.engine = engine
        self._run: Run | None = None
        self._device: torch.device | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self._run is None or x.device != self._device:
            self._run, self._device = self.engine(freeze_layer(self.layer)), x.device
        return self._run(x)

    def __getstate__(self) -> dict[str, Any]:
        return {"layer": self.layer, "engine": self.engine, "_run": None, "_device": None}


class _InFlight(threading.local):
    """What the call of a network has entered in a thread, to be left with it."""

    def __init__(self) -> None:
        self.entered = ExitStack()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """A copy is of no call."""
        return type(self), ()


class CallWatch:
    """Hooks of one network: they tell its quantizers the step of every call, keep the caller's modes out of it, and
    refuse calls that make no sense.

    Args:
        context: the one that the quantizers read.
        timesteps: of the calibrated network calls, in their order; None where quantizers are the same at every step.
        match: what a call at another timestep does: ``refuse``, take the ``nearest`` calibrated call, or
            ``interpolate`` between the two around it.
        places: of the sample and the timestep among the network's arguments.
        dtype: that the network computes in.
    """

    def __init__(
        self,
        context: StepContext,
        timesteps: Sequence[float] | None,
        match: str = "refuse",
        places: tuple[Place, Place] = (SAMPLE, TIMESTEP),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.context = context
        self.sample, self.timestep = places
        self.timesteps = None if timesteps is None else tuple(timesteps)
        self.match = match
        self.dtype = dtype
        self._call = _InFlight()

    def before(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called with what the network is called with: sample [B, …] and timestep, one number or one per sample."""
        sample = self.sample.of(args, kwargs)
        if sample.dtype != self.dtype:
            own, given = _named(self.dtype), _named(sample.dtype)
            raise ServingError(f"this quantized network computes in {own}, and its input is {given}")
        if sample.requires_grad and torch.is_grad_enabled():
            raise ServingError("this quantized network is frozen and has no gradients: call it under torch.no_grad()")
        with ExitStack() as entered:
            entered.enter_context(own_modes(gradients=False))
            if self.timesteps is not None:
                step, toward = self.steps(self.timestep.of(args, kwargs), len(sample), sample.device)
                entered.enter_context(self.context.at(step, toward))
            self._call.entered = entered.pop_all()

    def after(self, network: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Called when the network has returned or failed."""
        self._call.entered.close()

    def steps(
        self, timestep: Tensor | float, batch: int, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Toward | None]:
        """Return the index of the calibrated call at each sample's timestep, int64 [batch], or the nearest call and
        what lies between it and the next.

        Raises:
            ServingError: there is none, and nothing else was asked for.
        """
        known = self.timesteps or ()
        given = torch.as_tensor(timestep).reshape(-1)
        values, tolerance = given.tolist(), ROUNDED if is_narrow(given) else 1e-6
        strange = [value for value in values if not any(_same(value, timestep, tolerance) for timestep in known)]
        if strange and self.match == "refuse":
            allowed = ", ".join(map(str, dict.fromkeys(known)))
            raise ServingError(
                f"timestep {strange[0]} was not calibrated, and ranges are kept per step or group of steps: quantize "
                f"with match='nearest' to take the nearest one's, or match='interpolate' (allowed: {allowed})"
            )
        if strange and self.match == "interpolate":
            between = tensors_of(neighbouring_calls(known, values))
            near, far, share = (values_of.to(device).expand(batch) for values_of in between)
            return near, Toward(far, share)
        return torch.tensor(nearest_calls(known, values), device=device).expand(batch), None


def _same(timestep: float, other: float, tolerance: float) -> bool:
    """Real timesteps are computed in ways that round differently."""
    return math.isclose(timestep, other, rel_tol=tolerance, abs_tol=1e-6)


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@torch.no_grad()
def serve_(
    network: nn.Module,
    engine: Callable[[FrozenLayer], Run],
    context: StepContext,
    timesteps: Sequence[float],
    match: str = "refuse",
    places: tuple[Place, Place] = (SAMPLE, TIMESTEP),
    dtype: torch.dtype = torch.float32,
) -> None:
    """Freeze a calibrated network and let it go: it needs neither its old weights nor the adapter any more.

    Weights that are quantized are dropped, their codes stay; nothing has gradients; modules are in evaluation mode.

    Args:
        engine: computes layers whose weights and activations are both quantized.
        timesteps: of the calibrated network calls, in their order.
        match, places, dtype: see ``CallWatch``.

    Raises:
        RuntimeError: an activation range was never calibrated.
        ValueError: two calls have the same timestep and other ranges, so that they could not be told apart.
    """
    tables = [quantizer.row_of_call.tolist() for quantizer in activation_quantizers(network).values()]
    per_step = any(len(set(rows)) > 1 for rows in tables)
    for rows in filter(None, tables):
        twice = StepGroups(tuple(rows)).divided(timesteps)
        if twice is not None:
            raise ValueError(f"ranges per step need one network call per timestep, and there are several at {twice}")
    freeze_(network)
    for layer in quant_layers(network).values():
        if layer.weight_quantizer is not None:
            if has_integer_form(layer):
                layer.lowered, layer.fixed_weight = Lowered(layer, engine), None
            layer.register_parameter("weight", None)
            layer.adapter_down, layer.adapter_up = None, None
        layer.absorbed_scale = None  # its parameters hold it
    network.eval().requires_grad_(False)
    watch = CallWatch(context, timesteps if per_step else None, match, places, dtype)
    network.register_forward_pre_hook(watch.before, with_kwargs=True)
    network.register_forward_hook(watch.after, always_call=True)


def is_quantized(network: nn.Module) -> bool:
    """Whether any layer or attention of the network has quantizers of this package."""
    return any(isinstance(module, QuantLayer | AttentionQuantizers) for module in network.modules())
