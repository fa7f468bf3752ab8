"""A denoiser of the user's own: any module with a function that calls it, and all that sampling from it needs."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dmqbench.data.noise import Stream, draw_labels
from dmqbench.models.families.family import Calling
from dmqbench.models.folders import OWN, ModelError, ModelSource
from dmqbench.models.own_blocks import own_blocks
from dmqbench.models.topology import Topology, trace

Call = Callable[[Any, Tensor, Tensor, Mapping[str, Tensor]], Tensor]
"""(network, x [B, C, H, W], timestep [B], conditions by name) → what it predicts, [B, C, H, W]."""


def call_by_names(network: Any, x: Tensor, timestep: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
    """Return what a network predicts that takes its conditions by their names."""
    return network(x, timestep, **cond)


@dataclass(frozen=True, eq=False)
class Conditions:
    """What a network is conditioned on, as tensors: each sample has one row of all of them.

    Args:
        rows: name → tensor [N, …]. Rows are drawn while calibrating, and taken in turn by the samples.
        evaluation: the rows of the samples, [M, …] by the same names; None: the same rows.
        null: what the unguided branch is given, […] by the same names; None: it cannot be guided.
    """

    rows: Mapping[str, Tensor] = field(default_factory=dict)
    evaluation: Mapping[str, Tensor] | None = None
    null: Mapping[str, Tensor] | None = None

    def of(self, stream: Stream) -> Mapping[str, Tensor]:
        """The rows of the samples of a stream."""
        return self.rows if stream != "eval" or self.evaluation is None else self.evaluation


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A denoiser of your own.

    Args:
        name: how it is called in the run store, where it is told from others by the hash of its weights too.
        network: any module, in float32 or bfloat16. Its convolutions and linear layers are quantized.
        sample_shape: (C, H, W) of the sampler's state.
        scheduler: a diffusers scheduler, which states the noise schedule and the kind of prediction.
        call: calls the network that it is given, a copy of yours: (network, x, timestep, conditions) → prediction; all
            of these are of the network's precision, but for whole numbers and timesteps.
        conditions: what it is conditioned on.
    """

    name: str
    network: nn.Module
    sample_shape: tuple[int, int, int]
    scheduler: Any
    call: Call = call_by_names
    conditions: Conditions = field(default_factory=Conditions)

    @property
    def dtype(self) -> torch.dtype:
        """That the network is in."""
        return next(tensor.dtype for tensor in self.network.parameters() if tensor.is_floating_point())


@dataclass(frozen=True, eq=False)
class OwnCalling(Calling):
    """How the user's function calls a network."""

    call: Call

    def arguments(
        self, x: Tensor, timestep: Tensor, cond: Mapping[str, Tensor]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (x, timestep), dict(cond)

    def output(self, network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        x, timestep = args
        return self.call(network, x, timestep, kwargs)

    def prediction(self, output: Any, x: Tensor) -> Tensor:
        return output


@dataclass(frozen=True, eq=False)
class OwnConditioner:
    """Rows of the user's tensors."""

    given: Conditions

    def conditions(self, stream: Stream, seed: int, indices: Sequence[int]) -> dict[str, Tensor]:
        rows = self.given.of(stream)
        if not rows:
            return {}
        index = draw_labels(stream, seed, indices, len(next(iter(rows.values()))))
        return {name: values.detach().cpu()[index] for name, values in rows.items()}

    def null(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.given.null is None:
            raise ValueError("guidance: this model has no null conditions (allowed: sampler.guidance=1)")
        return {name: self.given.null[name].to(values).expand_as(values) for name, values in cond.items()}

    def example(self, batch: int, device: torch.device | str) -> dict[str, Tensor]:
        return {name: value.to(device) for name, value in self.conditions("eval", 0, range(batch)).items()}


def copied(network: nn.Module) -> nn.Module:
    """Return a copy to work on: frozen, in evaluation mode, and no output of a module is changed by the next one."""
    try:
        own = copy.deepcopy(network)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{type(network).__name__}: cannot be copied ({type(error).__name__}: {reason})") from error
    for module in own.modules():
        if getattr(module, "inplace", None) is True:
            module.inplace = False  # type: ignore[assignment]
    call_all_layers_(own)
    return own.eval().requires_grad_(False)


def call_all_layers_(network: nn.Module) -> None:
    """Let torch's transformer layers call their linear layers, which their fused kernel passes by."""
    for module in network.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0


def own_topology(denoiser: Denoiser) -> tuple[Topology, int]:
    """Return what the user's network is made of, and the number of its parameters."""
    network = copied(denoiser.network)
    args, kwargs = example_call(denoiser, 1)
    topology = trace(network, args, kwargs, OwnCalling(denoiser.call).output, blocks_of(denoiser, network))
    return topology, sum(parameter.numel() for parameter in network.parameters())


def blocks_of(denoiser: Denoiser, network: nn.Module) -> frozenset[str]:
    """Return what of a copy of the user's network is reconstructed as a block."""
    device = next(network.parameters()).device

    def call(network: nn.Module, batch: int) -> None:
        args, kwargs = example_call(denoiser, batch, device)
        OwnCalling(denoiser.call).output(network, args, kwargs)

    return own_blocks(network, call)


def example_call(
    denoiser: Denoiser, batch: int, device: torch.device | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return (args, kwargs) of a call at random states, from the first timestep on, by default where the network is."""
    device = next(denoiser.network.parameters()).device if device is None else device
    own, timestep = denoiser.dtype, torch.arange(batch, device=device)
    x = torch.randn(batch, *denoiser.sample_shape, generator=torch.Generator().manual_seed(0)).to(device, own)
    cond = OwnConditioner(denoiser.conditions).example(batch, device)
    cond = {name: value.to(own) if value.dtype == torch.float32 else value for name, value in cond.items()}
    return OwnCalling(denoiser.call).arguments(x, timestep, cond)


# ---- where a source finds it

_LENT: dict[str, Denoiser] = {}
"""By the folder that describes it."""


@contextmanager
def lent(folder: str, denoiser: Denoiser) -> Iterator[None]:
    """Let the source of ``folder`` stand for a denoiser for a while."""
    _LENT[folder] = denoiser
    try:
        yield
    finally:
        del _LENT[folder]


def lent_denoiser(source: ModelSource) -> Denoiser | None:
    """Return the denoiser that a source stands for; None for one that is a folder alone.

    Raises:
        ModelError: it stands for none any more.
    """
    if source.kind != OWN:
        return None
    if source.location not in _LENT:
        raise ModelError(f"{source.location}: a denoiser of one's own lives in a script: {source.advice}")
    return _LENT[source.location]
