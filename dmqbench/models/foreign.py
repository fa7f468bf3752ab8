"""Networks that another program quantized or changed, saved as diffusers folders; they are sampled as ours are.

What a quantization library wrote is read back through diffusers' own quantizers. Nothing at the top imports torch: ids
and refusals need what the files say, not the network.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmqbench.models.families import family_of, kind_of
from dmqbench.models.families.family import Family
from dmqbench.models.folders import CONFIG, ModelError, network_folder, read_config
from dmqbench.models.precision import FLOAT32
from dmqbench.models.weight_files import refuse_misfits, weight_files, weight_variant
from dmqbench.store.files import sha256_once

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dmqbench.models.adapter import Adapter

QUANTIZERS = {"quanto": "optimum.quanto", "torchao": "torchao", "bitsandbytes": "bitsandbytes"}
"""What a ``config.json`` may name as its quantizer, and the module that this needs. Others that diffusers knows run
code fetched from elsewhere, or write no safetensors."""

_PACKAGES = {"optimum.quanto": "optimum-quanto"}

_MUST_FIT = (
    *("_class_name", "in_channels", "out_channels", "sample_size"),
    *("num_class_embeds", "num_embeds_ada_norm", "cross_attention_dim"),
)
"""Entries of ``config.json`` that say what a network reads and writes; old files leave out those at their default."""

_ADVICE = "give a folder that diffusers' save_pretrained wrote"


@dataclass(frozen=True)
class ForeignFacts:
    """What the files of a network say of themselves.

    quantizer: the library that quantized it, ``None`` for ordinary weights; bits: as "w8a32", ``None`` unless the
    configuration says so; of the layers that the library quantizes, which are rarely all.
    """

    weight_bytes: int
    quantizer: str | None
    bits: str | None

    @property
    def packed_mib(self) -> float:
        return self.weight_bytes / 2**20


def foreign_hash(path: str | Path) -> str:
    """Return the sha256 over a network's configuration and safetensors.

    Raises:
        ModelError: a file is missing or not whole.
    """
    folder = network_folder(Path(path), _ADVICE)
    try:
        listing = {file.name: sha256_once(file) for file in (folder / CONFIG, *weight_files(folder, _ADVICE))}
    except OSError as error:
        raise ModelError(f"{error.filename}: cannot be read ({error.strerror})") from None
    return hashlib.sha256(json.dumps(listing, sort_keys=True).encode()).hexdigest()


def foreign_facts(path: str | Path) -> ForeignFacts:
    """Return what the files say; ModelError if they are missing, not whole, or of a quantizer that is not read."""
    folder = network_folder(Path(path), _ADVICE)
    settings = _quantization(folder)
    size = sum(file.stat().st_size for file in weight_files(folder, _ADVICE))
    if settings is None:
        return ForeignFacts(size, None, None)
    name = settings["quant_method"]
    return ForeignFacts(size, name, _BITS[name](settings))


def ordinary_folder(path: str | Path) -> Path | None:
    """Return the folder of a network whose weights are those of its ``config.json``; None where a library's are."""
    folder = network_folder(Path(path), _ADVICE)
    return folder if _quantization(folder) is None else None


def require_fit(path: str | Path, base: Mapping[str, Any]) -> None:
    """Check without loading that the network can stand in for the one whose ``config.json`` is ``base``.

    Raises:
        ModelError: it is of another class or shape, its files are missing or not whole, or what would read them is
            not installed.
    """
    folder = network_folder(Path(path), _ADVICE)
    config = read_config(folder / CONFIG)
    for key in (key for key in _MUST_FIT if key in base and key in config):
        _require_same(folder, key, base[key], config[key])
    weight_files(folder, _ADVICE)
    settings = _quantization(folder)
    if settings is not None and not _is_installed(module := QUANTIZERS[settings["quant_method"]]):
        package = _PACKAGES.get(module, module)
        raise ModelError(f"{folder}: quantized by {settings['quant_method']}; to read it, pip install {package}")


def load_foreign_network(path: str | Path, like: Family, dtype: str = FLOAT32) -> "nn.Module":
    """Load a network of ``dtype`` that stands in for one that ``like`` describes, in evaluation mode and frozen.

    Raises:
        ModelError: as ``require_fit``; or weights are missing or unknown; or a call of it fails or is not finite.
    """
    require_fit(path, like.config)
    folder = network_folder(Path(path), _ADVICE)
    family = family_of(read_config(folder / CONFIG), like.condition_channels)
    for name in ("network", "sample_shape", "output_channels", "conditioning", "label_entries"):
        _require_same(folder, name, getattr(like, name), getattr(family, name))
    network = _load(folder, dtype)
    _require_call(folder, network, like, dtype)
    return network


def load_foreign_adapter(path: str | Path, base: "Adapter") -> "Adapter":
    """Return an adapter like ``base`` around the network in ``path``, on the same device."""
    from dmqbench.quant.context import StepContext

    network: Any = base.network
    condition_channels = network.config.in_channels - base.sample_shape[0]
    family = family_of({**network.config, "_class_name": type(network).__name__}, condition_channels)
    dtype = str(base.dtype).removeprefix("torch.")
    return replace(base, network=load_foreign_network(path, family, dtype).to(base.device), context=StepContext())


def _require_same(folder: Path, what: str, wanted: Any, given: Any) -> None:
    wanted, given = (tuple(value) if isinstance(value, list) else value for value in (wanted, given))
    if wanted != given:
        raise ModelError(f"{folder}: {what} is {given}, and {wanted} in the model it is compared with")


# ---- what a configuration says


def _quantization(folder: Path) -> dict[str, Any] | None:
    """The quantizer's settings with a ``quant_method`` that is read here; ``None`` for ordinary weights."""
    settings = read_config(folder / CONFIG).get("quantization_config")
    if settings is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if method not in QUANTIZERS:
        allowed = ", ".join(QUANTIZERS)
        raise ModelError(f"{folder}: quantized by {method!r}, which is not read here (allowed: {allowed})")
    return settings


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent package
        return False


def _quanto_bits(settings: Mapping[str, Any]) -> str | None:
    weight = re.fullmatch(r"(?:int|float)(\d+)", str(settings.get("weights_dtype")))
    return f"w{weight[1]}a32" if weight else None


def _bitsandbytes_bits(settings: Mapping[str, Any]) -> str | None:
    if settings.get("load_in_4bit"):
        return "w4a32"
    return "w8a8" if settings.get("load_in_8bit") else None  # LLM.int8 rounds activations too


def _torchao_bits(settings: Mapping[str, Any]) -> str | None:
    """From a class name such as Int8DynamicActivationInt4WeightConfig."""
    kind = settings.get("quant_type")
    name = kind.get("default", {}).get("_type") if isinstance(kind, dict) else None
    weight = re.search(r"(?:Int|UInt|Float)(\d+)Weight", str(name))
    if weight is None:
        return None
    activation = re.match(r"(?:Int|Float)(\d+)(?:Dynamic|Static)Activation", str(name))
    return f"w{weight[1]}a{activation[1] if activation else 32}"


_BITS = {"quanto": _quanto_bits, "torchao": _torchao_bits, "bitsandbytes": _bitsandbytes_bits}


# ---- loading


def _load(folder: Path, dtype: str) -> "nn.Module":
    """Load through diffusers, and find out whether every weight was there."""
    import torch
    from safetensors import SafetensorError

    from dmqbench.models.attention import set_heads_
    from dmqbench.models.sources import network_class, only_errors_logged

    config = read_config(folder / CONFIG)
    quantized = _quantization(folder) is not None
    try:
        with only_errors_logged():
            network, loading = network_class(kind_of(config)).from_pretrained(
                folder,
                torch_dtype=getattr(torch, dtype),
                use_safetensors=True,
                variant=weight_variant(folder),
                local_files_only=True,
                # diffusers' quantizers need the fast path, in which weights that are missing stay on the meta device.
                low_cpu_mem_usage=quantized,
                output_loading_info=True,
            )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{folder}: cannot be loaded ({reason[:200]})") from error
    lacking = {*map(str, loading["missing_keys"]), *(name for name, part in _leaves(network) if part.is_meta)}
    refuse_misfits(folder, lacking, loading["unexpected_keys"], loading["mismatched_keys"])
    set_heads_(network)
    return network.eval().requires_grad_(False)


def _leaves(network: "nn.Module") -> Iterator[tuple[str, "Tensor"]]:
    """The plain tensors that hold the values of all parameters and buffers.

    A quantized weight is a wrapper: what it says of itself holds even where its codes were never read.
    """
    for tensors in (network.named_parameters(), network.named_buffers()):
        for name, tensor in tensors:
            yield from ((name, leaf) for leaf in _inner(tensor))


def _inner(tensor: Any) -> Iterator["Tensor"]:
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from _inner(getattr(tensor, name))


def _require_call(folder: Path, network: "nn.Module", like: Family, dtype: str) -> None:
    """Call the network once on zeros, where a bad file is an error of one line and not of a whole job."""
    import torch

    from dmqbench.models.sources import example_inputs

    args, kwargs = example_inputs(like, dtype=getattr(torch, dtype))
    try:
        with torch.no_grad():
            output = network(*args, **kwargs)[0]
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError) as error:
        raise ModelError(f"{folder}: a call of the network fails ({' '.join(str(error).split())[:200]})") from error
    expected = (1, like.output_channels, *like.sample_shape[1:])
    if tuple(output.shape) != expected:
        raise ModelError(f"{folder}: predicts {list(output.shape)} where {list(expected)} is expected")
    if not torch.isfinite(output).all():
        raise ModelError(f"{folder}: predicts values that are not finite")
