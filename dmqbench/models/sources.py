"""Loading networks from diffusers folders: one allow-list, one loader, one error."""

import gc
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch import nn

from dmqbench.models.attention import set_heads_
from dmqbench.models.families import family_of, kind_of
from dmqbench.models.families.family import GUIDANCE, Conditioning, Family
from dmqbench.models.folders import (
    CONFIG,
    ModelError,
    ModelSource,
    decoder_folder,
    network_folder,
    read_config,
)
from dmqbench.models.location import locate, locate_scheduler
from dmqbench.models.own import copied, lent_denoiser, own_topology
from dmqbench.models.shape_memo import ShapeMemo
from dmqbench.models.sizes import sized_config
from dmqbench.models.topology import Topology, trace
from dmqbench.models.weight_files import refuse_misfits, weight_files, weight_variant

DECODERS = ("AutoencoderKL", "VQModel")


@dataclass(frozen=True)
class LoadedModel:
    """A network in evaluation mode with frozen weights of the source's precision, and what belongs to it."""

    network: nn.Module
    family: Family
    folder: Path
    scheduler: Mapping[str, Any] | None
    """The diffusers scheduler's configuration; None where the folder holds a bare network."""
    classes: int | None
    """Number of real classes; None unless conditioned on classes."""

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        return self.family.sample_shape

    @property
    def prediction_type(self) -> str:
        """What the network predicts: ``epsilon``, ``v_prediction`` or ``sample``."""
        return (self.scheduler or {}).get("prediction_type", "epsilon")

    @property
    def kind(self) -> Conditioning:
        return self.family.conditioning

    @property
    def null_label(self) -> int | None:
        """The label that means "no class"; None where the model has none and guidance is impossible."""
        entries = self.family.label_entries
        return self.classes if entries is not None and self.classes is not None and entries > self.classes else None


def load_model(source: ModelSource) -> LoadedModel:
    """Load a network, checking that every one of its weights is in the checkpoint.

    Raises:
        ModelError: anything is missing, damaged, of another shape or of a class that is not on the allow-list.
    """
    folder = locate(source)
    part = network_folder(folder, source.advice)
    family = family_of(sized_config(source), source.condition_channels)
    network = _load_weights(part, network_class(type(family)), source.advice, dtype_of(source))
    scheduler = locate_scheduler(source)
    return LoadedModel(
        network=network,
        family=family,
        folder=folder,
        scheduler=None if scheduler is None else read_config(scheduler),
        classes=_classes(family, source),
    )


def dtype_of(source: ModelSource) -> torch.dtype:
    """Return what the network of a model is held in, and computes in."""
    return getattr(torch, source.dtype)


def load_decoder_network(folder: Path) -> Any:
    """Return the decoder (``AutoencoderKL`` or ``VQModel``) of a latent model's folder in float32; None for a pixel
    model."""
    part = decoder_folder(folder)
    return None if part is None else _load_weights(part, _decoder_class(read_config(part / CONFIG)))


def network_class(family: type[Family]) -> Any:
    """Return the class of the networks of a family; ModelError if diffusers is asked for it and has none."""
    found = family.network_class() or getattr(diffusers, family.network, None)
    if found is None:
        raise ModelError(f"diffusers {diffusers.__version__} has no {family.network}")
    return found


def blocks_of_family(network: nn.Module, family: type[Family]) -> frozenset[str]:
    """Return the names of what is a block of a network by its family alone."""
    return frozenset(name for name, module in network.named_modules() if type(module).__name__ in family.blocks)


def meta_model(config: Mapping[str, Any]) -> nn.Module:
    """Build the network or decoder of ``config`` (with ``_class_name``) on the meta device: shapes without weights."""
    name = config.get("_class_name")
    cls = getattr(diffusers, name) if name in DECODERS else network_class(kind_of(config))
    with torch.device("meta"), only_errors_logged():
        network = cls.from_config(dict(config))
    set_heads_(network)
    return network.eval().requires_grad_(False)


def meta_network(source: ModelSource) -> nn.Module:
    """Return the network of a model on the meta device."""
    if (denoiser := lent_denoiser(source)) is not None:
        return copied(denoiser.network).to("meta")
    with only_errors_logged():
        return meta_model(sized_config(source)).to(dtype_of(source))


def example_inputs(
    family: Family,
    batch: int = 1,
    device: torch.device | str = "cpu",
    tokens: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return (args, kwargs) of a call of a network of ``dtype``, for probing; ``tokens`` is the length of a text
    condition, if it is another than usual."""
    cond = {}
    for name, (shape, whole) in family.conditions.items():
        shape = shape if tokens is None or len(shape) < 2 else (tokens, *shape[1:])
        cond[name] = torch.zeros(batch, *shape, dtype=torch.long if whole else dtype, device=device)
    if family.embeds_guidance:
        cond[GUIDANCE] = torch.ones(batch, dtype=dtype, device=device)
    timestep = torch.zeros(batch, dtype=torch.long, device=device)
    return family.arguments(torch.zeros(batch, *family.input_shape, dtype=dtype, device=device), timestep, cond)


def _classes(family: Family, source: ModelSource) -> int | None:
    entries = family.label_entries
    if entries is None or source.classes is None:
        return family.classes
    if not 0 < source.classes <= entries:
        raise ModelError(f"model {source.location}: classes={source.classes}, but its label table has {entries} rows")
    return source.classes


def _decoder_class(config: Mapping[str, Any]) -> Any:
    name = config.get("_class_name")
    if name not in DECODERS:
        raise ModelError(f"model class {name} cannot be loaded (allowed: {', '.join(DECODERS)})")
    return getattr(diffusers, name)


def _load_weights(folder: Path, cls: Any, advice: str = "", dtype: torch.dtype = torch.float32) -> nn.Module:
    weight_files(folder, advice)
    try:
        with only_errors_logged():
            network, loading = cls.from_pretrained(
                folder,
                torch_dtype=dtype,
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
    refuse_misfits(folder, loading["missing_keys"], loading["unexpected_keys"], loading["mismatched_keys"], advice)
    require_finite(network, str(folder))
    set_heads_(network)
    if dtype != torch.float32 or weight_variant(folder) is not None:
        gc.collect()  # a cycle of the loader holds the file that these are copies of
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
    if (denoiser := lent_denoiser(source)) is not None:
        return own_topology(denoiser)
    config = sized_config(source)
    return _meta_topology(json.dumps(config), source.condition_channels)


@lru_cache(maxsize=16)
def _meta_topology(config: str, condition_channels: int) -> tuple[Topology, int]:
    """Trace a network once a process: the jobs of a sweep share a few."""
    known = json.loads(config)
    network, family = meta_model(known), family_of(known, condition_channels)
    args, kwargs = example_inputs(family, device="meta")
    with ShapeMemo():
        topology = trace(network, args, kwargs, family.output, blocks_of_family(network, type(family)))
    return topology, sum(parameter.numel() for parameter in network.parameters())
