"""What a network is conditioned on, and how its samples become images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dmqbench.data.images import to_uint8
from dmqbench.data.noise import Stream, draw_labels


class Conditioner(Protocol):
    """Conditions as keyword arguments of the network, a function of (stream, seed, indices)."""

    def conditions(self, stream: Stream, seed: int, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return the conditions of the given sample indices, each with leading size B, on the CPU."""
        ...

    def null(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the conditions of the unguided branch, with the shapes and device of ``cond``.

        Raises:
            ValueError: the model cannot be guided.
        """
        ...

    def example(self, batch: int, device: torch.device | str) -> dict[str, Tensor]:
        """Return conditions of the right shapes for probing the network."""
        ...


class Unconditional:
    """No condition at all."""

    def conditions(self, stream: Stream, seed: int, indices: Sequence[int]) -> dict[str, Tensor]:
        return {}

    def null(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise ValueError("guidance: this model is unconditional (allowed: sampler.guidance=1)")

    def example(self, batch: int, device: torch.device | str) -> dict[str, Tensor]:
        return {}


@dataclass(frozen=True)
class ClassConditioner:
    """Class labels 0..classes−1; ``null_label`` means "no class", where the model was trained with one.

    Where ``balanced``, samples of the evaluation have them in turn.
    """

    classes: int
    null_label: int | None = None
    balanced: bool = True

    def conditions(self, stream: Stream, seed: int, indices: Sequence[int]) -> dict[str, Tensor]:
        return self.of_labels(draw_labels(stream, seed, indices, self.classes, self.balanced))

    def of_labels(self, labels: Tensor) -> dict[str, Tensor]:
        """Return the conditions of labels, int64 [B]."""
        return {"class_labels": labels}

    def null(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.null_label is None:
            raise ValueError("guidance: this model has no null label (allowed: sampler.guidance=1)")
        given = next(iter(cond.values()))
        labels = torch.full((len(given),), self.null_label)
        return {name: value.to(given.device) for name, value in self.of_labels(labels).items()}

    def example(self, batch: int, device: torch.device | str) -> dict[str, Tensor]:
        examples = self.of_labels(torch.zeros(batch, dtype=torch.long))
        return {name: value.to(device) for name, value in examples.items()}


@dataclass(frozen=True, eq=False)
class ClassTokenConditioner(ClassConditioner):
    """Classes to a network that reads each as one token of context, a row of ``table`` [rows, width]."""

    _: KW_ONLY
    table: Tensor

    def of_labels(self, labels: Tensor) -> dict[str, Tensor]:
        return {"encoder_hidden_states": self.table[labels][:, None]}


PromptConditions = Callable[[Stream, Sequence[int]], dict[str, Tensor]]
"""(stream, sample indices) → the conditions of their prompts, each with leading size B, on the CPU."""


@dataclass(frozen=True)
class TextConditioner:
    """Conditions that text encoders made of prompts.

    Args:
        prompts: gives those of samples.
        unguided: those of the unguided branch, of the empty or a negative prompt, without leading size.
    """

    prompts: PromptConditions
    unguided: Mapping[str, Tensor]

    def conditions(self, stream: Stream, seed: int, indices: Sequence[int]) -> dict[str, Tensor]:
        return self.prompts(stream, indices)

    def null(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(cond[name]).expand_as(cond[name]) for name, value in self.unguided.items()}

    def example(self, batch: int, device: torch.device | str) -> dict[str, Tensor]:
        return {
            name: torch.zeros_like(value, device=device).expand(batch, *value.shape)
            for name, value in self.unguided.items()
        }


class Decoder(Protocol):
    """From the sampler's final state to images, and back."""

    def decode(self, state: Tensor) -> Tensor:
        """Return uint8 images [N, C, H, W] of a state [N, …]."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Return the state [N, …] of images [N, C, H, W] in [−1, 1]."""
        ...


class PixelDecoder:
    """The state is the image, in [−1, 1]."""

    def decode(self, state: Tensor) -> Tensor:
        return to_uint8(state)

    def encode(self, images: Tensor) -> Tensor:
        return images


@dataclass(frozen=True)
class LatentDecoder:
    """The state is a latent, scaled and shifted back as the autoencoder says before it is decoded."""

    network: Any
    scaling_factor: float
    shift_factor: float = 0.0
    """What is taken from a latent before it is scaled."""

    @torch.no_grad()
    def decode(self, state: Tensor) -> Tensor:
        network = self.network.to(state.device)  # calibration never moves it there
        return to_uint8(network.decode(state / self.scaling_factor + self.shift_factor, return_dict=False)[0])

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Of an encoder that gives a distribution (``AutoencoderKL``), its mode: nothing is drawn."""
        network = self.network
        encoded = network.encode(images.to(next(network.parameters()).device), return_dict=False)[0]
        latent = encoded if isinstance(encoded, Tensor) else encoded.mode()
        return (latent - self.shift_factor) * self.scaling_factor
