"""Quantized pipelines as folders: integer codes in safetensors, the rest as diffusers keeps it. No pickles."""

import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor, nn

from dmqbench.models.attention import set_heads_
from dmqbench.models.exchange import Description, exchange_, network_name
from dmqbench.models.export import dtype_name, untied, without_origin
from dmqbench.models.families import families, kind_of, own_families
from dmqbench.models.folders import CONFIG, ModelError, only_one, read_config
from dmqbench.models.own import Denoiser
from dmqbench.models.precision import FLOAT32
from dmqbench.models.quantized_file import packed, unpacked
from dmqbench.models.sources import network_class, only_errors_logged
from dmqbench.quant.modes import own_modes, undisturbed
from dmqbench.quant.plan import PrecisionPlan
from dmqbench.store.files import TEMPORARY_PREFIX, save_atomic, save_json, short_hash, sync
from dmqbench.store.manifest import Entry, Verifier, safe_file_name
from dmqbench.tracking.environment import environment

DESCRIPTION = "dmqbench.json"
FORMAT, FORMAT_VERSION = "dmqbench quantized pipeline", 2
PLAIN_CODES = 1
"""The version in which every code took a byte; it is still read."""

WEIGHTS = "quantized.safetensors"
"""Of the network, in its folder. Not the name that diffusers looks for: a loader that knows no codes finds nothing,
rather than half a network."""

_INDEX = "model_index.json"
_LIBRARIES = ("diffusers", "transformers")
_NARROW = ("bfloat16", "float16")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@own_modes()
def save(pipe: DiffusionPipeline, folder: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Write a quantized pipeline as safetensors and JSON, whole or not at all; return the folder.

    Quantized weights are stored as integer codes, packed to the bits of their rows, with their scales and zero-points,
    never in full precision.

    Args:
        pipe: a pipeline whose network ``quantize_`` quantized.
        folder: where it is written.
        overwrite: replace a pipeline that was saved there before.

    Raises:
        ModelError: the pipeline was not quantized by ``quantize_``, or a part of it cannot be saved.
        FileExistsError: the folder is not empty; with ``overwrite``, if it is not a saved pipeline.
    """
    if isinstance(pipe, Denoiser):
        advice = "quantize_ takes what is in the run store and computes nothing again"
        raise ModelError(f"{pipe.name}: a network of your own has no class that load could find: {advice}")
    network: Any = getattr(pipe, network_name(pipe), None)
    description = getattr(network, "dmqbench", None)
    if not isinstance(description, Description):
        raise ModelError(f"{type(pipe).__name__} is not quantized; call quantize_ first, or its own save_pretrained")
    target = Path(folder).expanduser().absolute()
    _check_target(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=target.parent) as name:
        fresh, replaced = Path(name) / "fresh", Path(name) / "replaced"
        _write(pipe, network, description, fresh)
        if target.exists():
            os.rename(target, replaced)
        try:
            os.rename(fresh, target)
        except BaseException:
            if replaced.exists():
                os.rename(replaced, target)  # or it would go with the temporary folder
            raise
    sync(target.parent)
    return target


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{target} exists and is not empty: name another folder, or say overwrite=True")
    if not (target / DESCRIPTION).is_file():
        raise FileExistsError(f"{target} is not a saved pipeline (no {DESCRIPTION}): it is not overwritten")


def _write(pipe: Any, network: Any, description: Description, folder: Path) -> None:
    own = network_name(pipe)
    for name, part in pipe.components.items():
        if name != own and part is not None:
            if not hasattr(part, "save_pretrained"):
                raise ModelError(f"{type(pipe).__name__}.{name} is a {type(part).__name__}, which cannot be saved")
            part.save_pretrained(folder / name)
    pipe.save_config(folder)
    network.save_config(folder / own)
    without_origin(folder / own / CONFIG)
    tensors = untied(network.state_dict())
    save_atomic(folder / own / WEIGHTS, serialize(packed(tensors, PrecisionPlan.from_json(description.plan))))
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    for path in files.values():
        if path.suffix in _PICKLES:
            raise ModelError(f"{type(pipe).__name__}: {path.name} would be a pickle, which is never written")
        sync(path)
    facts = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "dmqbench": version("dmqbench"),
        "environment": environment(network.device.type),
        "bytes": {
            "quantized": files[f"{own}/{WEIGHTS}"].stat().st_size,
            "full_precision": _full_precision_bytes(tensors, description.dtype),
        },
        **_precisions(pipe, own),
        "files": {safe_file_name(name): asdict(Entry.of(path)) for name, path in files.items()},
        "quantization": asdict(description),
    }
    save_json(folder / DESCRIPTION, {**facts, "digest": short_hash(facts)})


def _full_precision_bytes(tensors: Mapping[str, Tensor], dtype: str) -> int:
    """What the network's own parameters take unquantized: each code is one of them, quantizers' parameters are none."""
    own = [tensor for name, tensor in tensors.items() if "quantizer" not in name or name.endswith(".codes")]
    return getattr(torch, dtype).itemsize * sum(tensor.numel() for tensor in own)


def _precisions(pipe: Any, own: str) -> dict[str, Any]:
    """What parts of a pipeline are in that are not in float32, and which tables of its network ``own`` then still are.

    Tables that are computed, and not loaded, stay in float32 or follow the network, as it was loaded or cast.
    """
    network, parts = getattr(pipe, own), pipe.components.items()
    narrow = {name: dtype_name(part) for name, part in parts if isinstance(part, nn.Module) and name != own}
    narrow = {name: dtype for name, dtype in narrow.items() if dtype in _NARROW}
    facts: dict[str, Any] = {"parts": narrow} if narrow else {}
    if network.dmqbench.dtype != FLOAT32:
        facts["float32_tables"] = [name for name, table in network.named_buffers() if table.dtype == torch.float32]
    return facts


# ---- loading


@undisturbed()
def load(
    folder: str | os.PathLike[str],
    device: torch.device | str = "cpu",
    pipeline: type[DiffusionPipeline] | None = None,
) -> Any:
    """Return the pipeline that ``save`` wrote: on the same device it computes the same bits. Needs no run store.

    Args:
        folder: where ``save`` wrote it.
        device: where the pipeline is put.
        pipeline: the class, where it is not one of diffusers' own.

    Raises:
        ModelError: the folder is not a saved pipeline, or a file of it is missing, damaged, unknown or a pickle.
    """
    folder = Path(folder).expanduser().absolute()
    try:
        description, facts = _read_description(folder)
        index = read_config(folder / _INDEX)
        kind = _pipeline_class(folder, index, pipeline)
        part = only_one(folder, [path.parent for path in sorted(folder.glob(f"*/{WEIGHTS}"))])
        network = _rebuilt(part, description, facts)
        # diffusers takes a part that the index states to be none for missing, unless it is told so.
        given: dict[str, Any] = {name: None for name, value in index.items() if value == [None, None]}
        given[part.name] = network
        if "parts" in facts:
            given["torch_dtype"] = {name: getattr(torch, dtype) for name, dtype in facts["parts"].items()}
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of diffusers 0.42: called dtype, too
            pipe: Any = kind.from_pretrained(folder, **given, use_safetensors=True, local_files_only=True)
        return pipe.to(device)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError, AssertionError) as error:
        raise ModelError(f"{folder}: cannot be loaded ({' '.join(str(error).split())[:200]})") from error


def _read_description(folder: Path) -> tuple[Description, dict[str, Any]]:
    """The description of a folder whose files are all as they were written, and what else is said of them."""
    if not (folder / DESCRIPTION).is_file():
        raise ModelError(f"{folder}: no {DESCRIPTION} there; give a folder that dmqbench.api.save wrote")
    facts = read_config(folder / DESCRIPTION)
    if facts.get("format") != FORMAT or facts.get("version") not in (PLAIN_CODES, FORMAT_VERSION):
        known = f"{FORMAT} {PLAIN_CODES}, {FORMAT_VERSION}"
        raise ModelError(
            f"{folder}: format {facts.get('format')} {facts.get('version')} is not known here (allowed: {known})"
        )
    if facts.pop("digest", None) != short_hash(facts):
        raise ModelError(f"{folder}: {DESCRIPTION} was changed after it was written")
    for path in folder.rglob("*"):
        if path.suffix in _PICKLES:
            raise ModelError(f"{folder}: {path.relative_to(folder)} is a pickle, which is never opened: remove it")
    verifier = Verifier()
    for name, entry in facts["files"].items():
        problem = verifier.problem(folder, safe_file_name(name), Entry.parse(entry))
        if problem is not None:
            raise ModelError(f"{folder}: {name} {problem}; save it again")
    values = facts["quantization"]
    tuples = {key: tuple(values[key]) for key in ("attentions", "timesteps")}
    return Description(**{**values, **tuples}), facts


def _pipeline_class(folder: Path, index: Mapping[str, Any], given: type[Any] | None) -> type[Any]:
    """The class of the pipeline, of diffusers or ``given``; parts may come from known libraries only."""
    # Those that bring families are installed, declared as plug-ins, and have been imported by now.
    packages = {family.__module__.partition(".")[0] for family in families() if family not in own_families()}
    for name, part in index.items():
        if not isinstance(part, list) or part[0] in (*_LIBRARIES, None) or part[0].partition(".")[0] in packages:
            continue
        raise ModelError(f"{folder}: {name} is of {part[0]} (allowed: {', '.join((*_LIBRARIES, *sorted(packages)))})")
    name = str(index.get("_class_name"))
    kind = getattr(diffusers, name, None) if given is None else given
    if not (isinstance(kind, type) and issubclass(kind, DiffusionPipeline) and kind.__name__ == name):
        raise ModelError(
            f"{folder}: its pipeline {name} is not diffusers' own; give the class: load(..., pipeline={name})"
        )
    return kind


def _rebuilt(folder: Path, description: Description, facts: Mapping[str, Any]) -> nn.Module:
    """The quantized network from its configuration, its codes and its other parameters."""
    config = read_config(folder / CONFIG)
    with only_errors_logged():
        network: Any = network_class(kind_of(config)).from_config(dict(config))
    set_heads_(network)
    _cast_(network, description.dtype, facts.get("float32_tables", ()))
    tensors = load_file(folder / WEIGHTS)
    plan = PrecisionPlan.from_json(description.plan)
    coded = [layer.name for layer in plan.layers if layer.quantizes_weight]
    full = network.state_dict()
    if facts["version"] != PLAIN_CODES:
        shapes = {name.removesuffix(".weight"): tuple(value.shape) for name, value in full.items()}
        try:
            tensors = unpacked(tensors, plan, shapes)
        except ValueError as error:
            raise ModelError(f"{folder}: {WEIGHTS} {error}") from None
    own = {name: value for name, value in full.items() if name.removesuffix(".weight") not in coded}
    needed = {name: list(value.shape) for name, value in own.items()}
    for name in (*needed, *(f"{layer}.weight_quantizer.codes" for layer in coded)):
        if name not in tensors:
            raise ModelError(f"{folder}: {WEIGHTS} lacks {name}")
    for name, shape in needed.items():
        if list(tensors[name].shape) != shape:
            raise ModelError(f"{folder}: {name} has shape {list(tensors[name].shape)}, and the network's is {shape}")
    # Weights that are codes in the file are replaced with their layers below.
    network.load_state_dict(full | {name: tensors.pop(name) for name in needed})
    exchange_(network, description, tensors)
    return network


def _cast_(network: nn.Module, dtype: str, tables: Sequence[str]) -> None:
    """Bring a network to its precision, but for some of its tables."""
    kept = {name: network.get_buffer(name) for name in tables}
    if dtype != FLOAT32:
        with only_errors_logged():
            network.to(getattr(torch, dtype))
    for name, table in kept.items():
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, table)
