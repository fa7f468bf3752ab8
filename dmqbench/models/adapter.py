"""One way to call any denoiser: conditions, guidance, learned variance and the step that quantizers read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmqbench.data.noise import Stream
from dmqbench.models.class_table import class_table_folder, load_class_table
from dmqbench.models.conditioning import (
    ClassConditioner,
    ClassTokenConditioner,
    Conditioner,
    Decoder,
    LatentDecoder,
    PixelDecoder,
    Unconditional,
)
from dmqbench.models.families.family import GUIDANCE, Calling
from dmqbench.models.folders import SCHEDULER_CONFIG, ModelError, ModelSource, read_config
from dmqbench.models.own import Denoiser, OwnCalling, OwnConditioner, blocks_of, copied, lent_denoiser
from dmqbench.models.planting import plant_
from dmqbench.models.portions import WHOLE, Portions, in_portions
from dmqbench.models.sources import LoadedModel, blocks_of_family, dtype_of, load_decoder_network, load_model
from dmqbench.models.topology import Topology, trace
from dmqbench.quant.context import StepContext
from dmqbench.samplers.schedule import Schedule, read_schedule

IMAGE = "image"
"""The condition that a network reads as further channels of its input; the others are arguments of their own."""

Start = Callable[[Stream, Sequence[int]], Tensor]
"""(stream, sample indices) → the clean states [B, C, H, W] that trajectories start from, noised."""


@dataclass(eq=False, repr=False)
class Adapter:
    """A denoiser with everything that sampling from it needs."""

    network: nn.Module
    _: KW_ONLY
    sample_shape: tuple[int, int, int]
    """(C, H, W) of the sampler's state."""
    schedule: Schedule
    """That the network was trained with."""
    prediction: str
    """What it predicts: ``epsilon``, ``v_prediction`` or ``sample``; see ``SamplerSpec``."""
    conditioner: Conditioner
    decoder: Decoder
    context: StepContext = field(default_factory=StepContext)
    """Shared by all quantizers of this network."""
    calling: Calling = field(default_factory=Calling)
    """How the network is called; a condition image lies behind x."""
    start: Start | None = None
    """Of editing; None: trajectories start from noise alone."""
    portions: Portions = WHOLE
    """How much of a network call is computed at once."""
    blocks: frozenset[str] = frozenset()
    """What is reconstructed as a block beside the blocks of diffusers."""
    planted: Mapping[str, int] = field(default_factory=dict)
    """Channels of places that outliers were planted into."""
    dtype: torch.dtype = torch.float32
    """Of the network's weights and activations; what it is given and what it predicts are float32."""

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def denoise(
        self,
        x: Tensor,
        timestep: Tensor | float,
        cond: Mapping[str, Tensor],
        step: Tensor,
        guidance: float = 1.0,
    ) -> Tensor:
        """Return the network's prediction [B, C, H, W].

        With guidance g ≠ 1 it is e_u + g (e_c − e_u) (Ho & Salimans 2021), from *one* network call on the batch
        [null conditions; conditions]; a network that embeds g is called once on x. Channels beyond C, a learned
        variance, are dropped.

        Args:
            x: state [B, C, H, W], scaled as the sampler says.
            timestep: diffusion time, [B] or one number for all; whole, or real over noise levels.
            cond: conditions, each of leading size B.
            step: index of the network call in the sampler's plan, int64 [B].
        """
        timestep = torch.as_tensor(timestep, device=x.device).expand(len(x))
        if self.calling.embeds_guidance:
            return self._call(x, timestep, {**cond, GUIDANCE: x.new_full((len(x),), guidance)}, step)
        if guidance == 1.0:
            return self._call(x, timestep, cond, step)
        null = self.conditioner.null(cond)
        both = {name: torch.cat([null[name], cond[name]]) for name in cond}
        unguided, guided = self._call(
            torch.cat([x, x]), torch.cat([timestep, timestep]), both, torch.cat([step, step])
        ).chunk(2)
        return unguided + guidance * (guided - unguided)

    def _call(self, x: Tensor, timestep: Tensor, cond: Mapping[str, Tensor], step: Tensor) -> Tensor:
        if step.shape != (len(x),):
            raise ValueError(f"step must have shape [{len(x)}], one call index per sample, not {list(step.shape)}")
        batched = (x, timestep, dict(cond), step)
        return in_portions(self.portions, self.context, self.network, lambda part: self._portion(*part), batched)

    def _portion(self, x: Tensor, timestep: Tensor, cond: Mapping[str, Tensor], step: Tensor) -> Tensor:
        inputs, named = self._inputs(x, cond)
        args, kwargs = self.calling.arguments(inputs, timestep, named)
        with self.context.at(step):
            output = self.calling.output(self.network, args, kwargs)
        return self.calling.prediction(output, inputs)[:, : self.sample_shape[0]].to(x.dtype)

    def _inputs(self, x: Tensor, cond: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """What the network reads, [B, C + C', H, W] with a condition image of C' channels, and its other conditions,
        in its own precision; times keep theirs, as in diffusers' pipelines."""
        own = {name: self._own(value) for name, value in cond.items()}
        image = own.pop(IMAGE, None)
        return self._own(x) if image is None else torch.cat([self._own(x), image], dim=1), own

    def _own(self, value: Tensor) -> Tensor:
        return value.to(self.dtype) if value.dtype == torch.float32 else value

    def example_inputs(
        self, batch: int = 1, device: torch.device | str | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return (args, kwargs) of a network call for probing, by default on the network's device."""
        device = self.device if device is None else device
        x = torch.zeros(batch, *self.sample_shape, device=device)
        return self.arguments(x, torch.zeros(batch, dtype=torch.long, device=device))

    def arguments(self, x: Tensor, timestep: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return (args, kwargs) of a network call for probing, under conditions that are none."""
        cond = self.conditioner.example(len(x), x.device)
        if self.calling.embeds_guidance:
            cond[GUIDANCE] = x.new_ones(len(x))
        inputs, named = self._inputs(x, cond)
        return self.calling.arguments(inputs, timestep, named)

    def topology(self) -> Topology:
        """Probe the network once and return what it is made of."""
        args, kwargs = self.example_inputs()
        with self.context.at(torch.zeros(1, dtype=torch.long, device=self.device)):
            return trace(self.network, args, kwargs, self.calling.output, self.blocks)

    @contextmanager
    def computing(self, portions: Portions) -> Iterator[None]:
        """Compute network calls in ``portions`` for a while."""
        before, self.portions = self.portions, portions
        try:
            yield
        finally:
            self.portions = before


def load_adapter(
    source: ModelSource,
    device: torch.device | str = "cpu",
    *,
    schedule: Schedule | None = None,
    conditioner: Conditioner | None = None,
) -> Adapter:
    """Load a model and everything around it.

    Args:
        device: where the network is put.
        schedule: of a bare network, whose folder has no scheduler; otherwise read from the folder.
        conditioner: of a model conditioned on text; otherwise made from what the network says.

    Raises:
        ModelError: the model cannot be loaded, or one of these is needed and not given.
    """
    if (denoiser := lent_denoiser(source)) is not None:
        own = _own_adapter(denoiser, read_config(Path(source.location) / SCHEDULER_CONFIG), device)
        own.planted = plant_(own.network, source.planted)
        return own
    model = load_model(source)
    decoder = load_decoder_network(model.folder)
    planted = plant_(model.network, source.planted)
    return Adapter(
        model.network.to(device),
        sample_shape=model.sample_shape,
        schedule=schedule or schedule_of(model),
        prediction=model.prediction_type,
        conditioner=conditioner or _conditioner_of(model),
        calling=model.family,
        decoder=PixelDecoder() if decoder is None else _latent_decoder(decoder),
        blocks=blocks_of_family(model.network, type(model.family)),
        planted=planted,
        dtype=dtype_of(source),
    )


def _own_adapter(denoiser: Denoiser, scheduler: Mapping[str, Any], device: torch.device | str) -> Adapter:
    network = copied(denoiser.network)
    return Adapter(
        network.to(device),
        sample_shape=denoiser.sample_shape,
        schedule=read_schedule(scheduler),
        prediction=scheduler["prediction_type"],
        conditioner=OwnConditioner(denoiser.conditions),
        calling=OwnCalling(denoiser.call),
        decoder=PixelDecoder(),
        blocks=blocks_of(denoiser, network),
        dtype=denoiser.dtype,
    )


def _latent_decoder(network: Any) -> LatentDecoder:
    return LatentDecoder(network, network.config.scaling_factor, network.config.get("shift_factor") or 0.0)


def schedule_of(model: LoadedModel) -> Schedule:
    """Return the noise schedule that the model's folder states; ModelError without one or with an unknown form."""
    config = model.scheduler
    if config is None:
        raise ModelError(f"{model.folder}: no scheduler there; give the noise schedule of a bare network")
    try:
        return read_schedule(config)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{model.folder}: its scheduler configuration cannot be used ({error})") from error


def _conditioner_of(model: LoadedModel) -> Conditioner:
    if model.kind == "text":
        raise ModelError(f"{model.folder}: conditioned on text; give the embeddings of the prompts")
    if model.classes is None:
        return Unconditional()
    part = class_table_folder(model.folder)
    if part is None:
        return ClassConditioner(model.classes, model.null_label)
    return ClassTokenConditioner(model.classes, model.null_label, table=load_class_table(part))
