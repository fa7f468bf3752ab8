"""Loading networks from diffusers folders: one allow-list, one loader, one error."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch import Tensor, nn

from dmqbench.models.folders import (
    CONFIG,
    SCHEDULER_CONFIG,
    ModelError,
    ModelSource,
    decoder_folder,
    locate,
    network_folder,
    read_config,
)
from dmqbench.models.topology import Topology, trace
from dmqbench.models.weight_files import weight_files, weight_variant

NETWORKS = ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel")
DECODERS = ("AutoencoderKL", "VQModel")

CLIP_TOKENS = 77
"""Length of a prompt."""

Conditioning = Literal["none", "class", "text"]


@dataclass(frozen=True)
class NetworkSpec:
    """What a network's ``config.json`` says about its inputs and outputs.

    Args:
        condition_channels: how many of the input channels are an image that the network is conditioned on, and not
            the sampler's state. No ``config.json`` says so.

    Raises:
        ModelError: the class is not on the allow-list, or the network needs inputs that this project does not give.
    """

    config: Mapping[str, Any]
    condition_channels: int = 0

    def __post_init__(self) -> None:
        require_class(self.config, NETWORKS)
        for key in ("class_embed_type", "addition_embed_type", "encoder_hid_dim_type"):
            if self.config.get(key) is not None:
                raise ModelError(f"{self.class_name}: {key}={self.config[key]} is not supported")
        channels, *_ = self.sample_shape
        if self.output_channels not in (channels, 2 * channels):
            raise ModelError(
                f"{self.class_name}: {channels} input and {self.output_channels} output channels; a denoiser predicts "
                "as many channels as it reads, or twice as many with a learned variance; with a condition image it "
                "reads more, which model.condition and model.condition_channels say"
            )

    @property
    def class_name(self) -> str:
        return self.config["_class_name"]

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the sampler's state."""
        channels, size = self._required("in_channels") - self.condition_channels, self._required("sample_size")
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return channels, height, width

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of what the network reads: the sampler's state, and the condition image if there is one."""
        channels, height, width = self.sample_shape
        return channels + self.condition_channels, height, width

    @property
    def output_channels(self) -> int:
        out = self.config.get("out_channels")
        return self.sample_shape[0] if out is None else out

    @property
    def learned_variance(self) -> bool:
        """The second half of the output channels is a variance, which this project drops for a fixed one."""
        return self.output_channels != self.sample_shape[0]

    @property
    def conditioning(self) -> Conditioning:
        if self.class_name == "UNet2DConditionModel":
            return "text"
        return "none" if self.label_entries is None else "class"

    @property
    def label_entries(self) -> int | None:
        """Rows of the label table, the null label of guidance included; None without labels."""
        if self.class_name == "DiTTransformer2DModel":
            return self._required("num_embeds_ada_norm") + 1  # diffusers appends the null label itself
        return self.config.get("num_class_embeds")

    @property
    def context_tokens(self) -> int:
        """Tokens of a text condition: those of CLIP, unless the file of a shipped architecture says otherwise."""
        return self.config.get("_context_tokens", CLIP_TOKENS)

    @property
    def context_width(self) -> int:
        """Length of one token of a text condition."""
        return self._required("cross_attention_dim")

    def _required(self, key: str) -> Any:
        value = self.config.get(key)
        if value is None:
            raise ModelError(f"{self.class_name}: {CONFIG} has no {key}")
        return value


@dataclass(frozen=True)
class LoadedModel:
    """A network in evaluation mode with frozen float32 weights, and what belongs to it."""

    network: nn.Module
    spec: NetworkSpec
    folder: Path
    scheduler: Mapping[str, Any] | None
    """The diffusers scheduler's configuration; None where the folder holds a bare network."""
    classes: int | None
    """Number of real classes; None unless conditioned on classes."""

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        return self.spec.sample_shape

    @property
    def prediction_type(self) -> str:
        """What the network predicts: ``epsilon``, ``v_prediction`` or ``sample``."""
        return (self.scheduler or {}).get("prediction_type", "epsilon")

    @property
    def kind(self) -> Conditioning:
        return self.spec.conditioning

    @property
    def null_label(self) -> int | None:
        """The label that means "no class"; None where the model has none and guidance is impossible."""
        entries = self.spec.label_entries
        return self.classes if entries is not None and self.classes is not None and entries > self.classes else None


def load_model(source: ModelSource) -> LoadedModel:
    """Load a network, checking that every one of its weights is in the checkpoint.

    Raises:
        ModelError: anything is missing, damaged, of another shape or of a class that is not on the allow-list.
    """
    folder = locate(source)
    part = network_folder(folder, source.advice)
    spec = NetworkSpec(read_config(part / CONFIG), source.condition_channels)
    network = _load_weights(part, spec.config, NETWORKS, source.advice)
    scheduler = folder / SCHEDULER_CONFIG
    return LoadedModel(
        network=network,
        spec=spec,
        folder=folder,
        scheduler=read_config(scheduler) if scheduler.is_file() else None,
        classes=_classes(spec, source),
    )


def load_decoder_network(folder: Path) -> Any:
    """Return the decoder (``AutoencoderKL`` or ``VQModel``) of a latent model's folder; None for a pixel model."""
    part = decoder_folder(folder)
    return None if part is None else _load_weights(part, read_config(part / CONFIG), DECODERS)


def meta_model(config: Mapping[str, Any]) -> nn.Module:
    """Build the network of ``config`` (with ``_class_name``) on the meta device: shapes without weights."""
    cls = require_class(config, NETWORKS)
    with torch.device("meta"):
        return cls.from_config(dict(config)).eval().requires_grad_(False)


def example_inputs(
    spec: NetworkSpec, batch: int = 1, device: torch.device | str = "cpu", tokens: int | None = None
) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
    """Return (args, kwargs) of a network call, for probing; ``tokens`` is the length of a text condition, if it is
    another than usual."""
    kwargs: dict[str, Any] = {"return_dict": False}
    if spec.conditioning == "class":
        kwargs["class_labels"] = torch.zeros(batch, dtype=torch.long, device=device)
    elif spec.conditioning == "text":
        length = spec.context_tokens if tokens is None else tokens
        kwargs["encoder_hidden_states"] = torch.zeros(batch, length, spec.context_width, device=device)
    timestep = torch.zeros(batch, dtype=torch.long, device=device)
    return (torch.zeros(batch, *spec.input_shape, device=device), timestep), kwargs


def _classes(spec: NetworkSpec, source: ModelSource) -> int | None:
    entries = spec.label_entries
    if spec.conditioning != "class" or entries is None:
        return None
    if source.classes is None:
        return entries - 1 if spec.class_name == "DiTTransformer2DModel" else entries
    if not 0 < source.classes <= entries:
        raise ModelError(f"model {source.location}: classes={source.classes}, but its label table has {entries} rows")
    return source.classes


def require_class(config: Mapping[str, Any], allowed: tuple[str, ...]) -> Any:
    name = config.get("_class_name")
    if name not in allowed:
        raise ModelError(f"model class {name} cannot be loaded (allowed: {', '.join(allowed)})")
    return getattr(diffusers, name)


def _load_weights(folder: Path, config: Mapping[str, Any], allowed: tuple[str, ...], advice: str = "") -> nn.Module:
    cls = require_class(config, allowed)
    weight_files(folder, advice)
    try:
        with only_errors_logged():
            network, loading = cls.from_pretrained(
                folder,
                torch_dtype=torch.float32,
                use_safetensors=True,
                variant=weight_variant(folder),
                local_files_only=True,
                # The fast path leaves weights that the checkpoint lacks on the meta device.
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{folder}: the weights do not fit {CONFIG} ({reason[:200]})") from error
    for what, say in (
        ("missing_keys", "lacks"),
        ("unexpected_keys", "has unknown"),
        ("mismatched_keys", "misfits"),
    ):
        if loading[what]:
            first = min(str(key) for key in loading[what])
            raise ModelError(
                f"{folder}: the checkpoint {say} {len(loading[what])} of the network's weights, the first is {first}"
                f"{f'; {advice}' if advice else ''}"
            )
    require_finite(network, str(folder))
    return network.eval().requires_grad_(False)


def require_finite(network: nn.Module, title: str) -> None:
    """Refuse weights that are infinite or no numbers; ``title`` says whose, in the message."""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ModelError(f"{title}: the values of {name} are not all finite")


@contextmanager
def only_errors_logged() -> Iterator[None]:
    """What diffusers would warn about while loading is an error here, said once."""
    before = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(before)


def meta_topology(source: ModelSource) -> tuple[Topology, int]:
    """Return the topology and the number of parameters of a model from its configuration alone, no weights read."""
    config = read_config(network_folder(locate(source), source.advice) / CONFIG)
    spec = NetworkSpec(config, source.condition_channels)
    network = meta_model(spec.config)
    args, kwargs = example_inputs(spec, device="meta")
    return trace(network, args, kwargs), sum(parameter.numel() for parameter in network.parameters())
