"""Adapters and workbenches around the networks of ``tiny``: what a calibration stage works on, in milliseconds."""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from callings import JOINT, SDXL, STREAMS, TEXT, RandomConditions
from diffusers import (
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from tiny import CLASSES, TOKENS, dit, smallest_unet, text_unet, unet

from dmqbench.calibration.stage import Workbench
from dmqbench.data.bank import TrajectoryBank
from dmqbench.models.adapter import Adapter
from dmqbench.models.conditioning import ClassConditioner, PixelDecoder, TextConditioner
from dmqbench.models.families import family_of
from dmqbench.models.portions import Portions
from dmqbench.models.rollout import Denoising
from dmqbench.models.topology import Topology
from dmqbench.quant.functional import affine_parameters
from dmqbench.quant.layers import quant_layers, quantization, quantize_layers_
from dmqbench.quant.plan import uniform_plan
from dmqbench.quant.spec import COMMON_SCOPE, BitWidth, Scope, StepGroups
from dmqbench.samplers.plan import SamplerPlan, build_plan
from dmqbench.samplers.schedule import NoiseSchedule
from dmqbench.samplers.spec import SamplerSpec

W3A6 = BitWidth(3, 6)
SCHEDULE = NoiseSchedule(1000, 1e-4, 0.02, "linear")


class Log:
    """Keeps what is recorded."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def log(self, event: str, **values: Any) -> None:
        self.events.append((event, values))

    def of(self, event: str) -> list[dict[str, Any]]:
        return [values for name, values in self.events if name == event]


def text_conditioner(prompts: Mapping[str, torch.Tensor], null: torch.Tensor) -> TextConditioner:
    """What embeddings [P, tokens, width] of prompts and one without give where they are handed over."""

    def conditions(stream: str, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        return {"encoder_hidden_states": prompts[stream][list(indices)]}

    return TextConditioner(conditions, {"encoder_hidden_states": null})


def conditions_of(network) -> Any:
    """Class labels with a null label, or random texts of the kind that the network attends to."""
    if isinstance(network, SD3Transformer2DModel | FluxTransformer2DModel):
        return RandomConditions(JOINT)
    if isinstance(network, PixArtTransformer2DModel):
        return RandomConditions(TEXT | {"encoder_attention_mask": (TOKENS,)})
    if isinstance(network, UNet2DConditionModel) and network.config.addition_embed_type is not None:
        return RandomConditions(SDXL)
    if "cross_attention_dim" in network.config:
        generator = torch.Generator().manual_seed(5)
        shape = (TOKENS, network.config.cross_attention_dim)
        prompts: Any = {stream: torch.randn(16, *shape, generator=generator) for stream in STREAMS}
        return text_conditioner(prompts, torch.randn(shape, generator=generator))
    return ClassConditioner(CLASSES, null_label=CLASSES)


def adapter_of(network) -> Adapter:
    """An adapter with random conditions, called as its family says."""
    family = family_of({**network.config, "_class_name": type(network).__name__})
    return Adapter(
        network,
        sample_shape=family.sample_shape,
        schedule=SCHEDULE,
        prediction="epsilon",
        conditioner=conditions_of(network),
        decoder=PixelDecoder(),
        calling=family,
    )


BUILDERS = {"unet": unet, "text_unet": text_unet, "dit": dit}


def sampler(kind: str = "ddim", steps: int = 4, **settings: Any) -> SamplerPlan:
    return build_plan(SamplerSpec(kind, steps, **settings), SCHEDULE)


_traced: dict[str, Topology] = {}


def topology_of(adapter: Adapter) -> Topology:
    """What a trace finds, which follows from the architecture alone and takes longer than many a stage here."""
    architecture = adapter.network.to_json_string()
    if architecture not in _traced:
        _traced[architecture] = adapter.topology()
    return _traced[architecture]


def recompute_blocks_(adapter: Adapter) -> Portions:
    """Let all units be computed again in backward passes."""
    adapter.portions = Portions(recomputed=tuple(unit.name for unit in topology_of(adapter).units))
    return adapter.portions


_followed: dict[tuple, TrajectoryBank] = {}


def bank_of(denoising: Denoising, trajectories: int, seed: int) -> TrajectoryBank:
    """Trajectories of full precision, which are those of any network with the same weights: followed once."""
    network = denoising.adapter.network
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    weights = b"".join(tensor.numpy().tobytes() for tensor in network.state_dict().values())
    sampler, guidance = denoising.sampler, denoising.guidance
    key = (type(network), network.to_json_string(), hashlib.sha256(weights).hexdigest(), sampler, guidance)
    key = (*key, trajectories, seed)
    if key not in _followed:
        cal = denoising.follow(stream="cal", seed=seed, indices=range(trajectories))
        val = denoising.follow(stream="val", seed=seed, indices=range(4))
        _followed[key] = TrajectoryBank(cal, val, seed)
    return copy.deepcopy(_followed[key])


def workbench(
    bits: BitWidth = W3A6,
    *,
    network=None,
    scope: Scope = COMMON_SCOPE,
    steps: StepGroups | None = None,
    trajectories: int = 8,
    guidance: float = 1.0,
    seed: int = 0,
    plan: SamplerPlan | None = None,
    granularity: str = "tensor",
) -> Workbench:
    """A network with quantizable layers, all switched off, and a bank of its trajectories, four-step by default."""
    adapter = adapter_of(smallest_unet() if network is None else network)
    plan, topology = plan or sampler(), topology_of(adapter)
    denoising = Denoising(adapter, plan, guidance)
    bank = bank_of(denoising, trajectories, seed)
    steps = steps or StepGroups.shared()
    precision = uniform_plan(topology.layers, bits, scope, granularity)
    quantize_layers_(adapter.network, precision, adapter.context, steps)
    return Workbench(denoising, topology, bank, steps, seed, Log())


@torch.no_grad()
def set_min_max_ranges_(adapter: Adapter, x, timestep, cond, step) -> None:
    """Min-max ranges of weights, and of activations in one full-precision call, the same for every step."""
    layers = quant_layers(adapter.network)
    seen: dict[str, torch.Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
        for name, layer in layers.items()
    ]
    with quantization(adapter.network, weight=False, activation=False):
        adapter.denoise(x, timestep, cond, step)
    for handle in handles:
        handle.remove()
    for name, layer in layers.items():
        weights, activation = layer.weight_quantizer, layer.activation_quantizer
        grids = [affine_parameters(r.amin(1), r.amax(1), weights.levels) for r in weights.rows(layer.weight)]
        weights.set_parameters_(*(torch.stack(tables, 1) for tables in zip(*grids, strict=True)))
        channels = seen[name].movedim(layer.channel_axis, 0).flatten(1)
        parts = [channels[part] for part in activation.groups.slices]
        low, high = (torch.stack([getattr(part, end)() for part in parts]) for end in ("amin", "amax"))
        scale, zero_point = affine_parameters(low, high, activation.levels)
        rows = len(activation.scale)
        activation.set_parameters_(scale.repeat(rows, 1), zero_point.repeat(rows, 1))


MSE = {"observer": "mse", "candidates": 20, "exponent": 2.4}
WEIGHT_RECONSTRUCTION = {
    "iterations": 6,
    "batch": 8,
    "learning_rate": 3e-2,
    "samples": 24,
    "capture_mib": 1,
    "regularization": 0.01,
    "warmup": 0.2,
    "beta_start": 20.0,
    "beta_end": 2.0,
}
ACTIVATION_RANGE = {**MSE, "samples": 24, "batch": 8, "values_per_row": 100_000}
ACTIVATION_RECONSTRUCTION = {
    "iterations": 6,
    "batch": 8,
    "learning_rate": 2e-2,
    "samples": 24,
    "capture_mib": 1,
    "exponent": 2.4,
}
EQUIVALENT_SCALING = {
    "iterations": 8,
    "batch": 8,
    "samples": 24,
    "travel": 0.2,
    "ranges": "batch",
    "zero_in_range": True,
    "weighting": "adaptive",
    "strength": 20.0,
    "momentum": 0.95,
    "bins": 0,
    "bin_error": "mean",
    "patience": 0,
    "schedule": "joint",
    "memory_mib": 512,
}
