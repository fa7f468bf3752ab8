"""The safetensors files of a network: all that diffusers reads, and no other. Reads headers only and needs no torch."""

import fnmatch
import json
import re
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dmqbench.models.folders import ENCODER_FOLDERS, SHARDS, WEIGHTS_INDEX, ModelError, only_one, read_config
from dmqbench.store.files import once_per_state, safe_name

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_LARGEST_HEADER = 100 * 2**20


def weight_files(folder: Path, advice: str = "") -> tuple[Path, ...]:
    """Return the safetensors files of one component, each of them whole: all that diffusers reads, and no other.

    Raises:
        ModelError: a file is absent or truncated, there are only pickles, or several files can be meant.
    """
    hint = f"; {advice}" if advice else ""
    head = _head(folder, hint)
    files = (head,) if head.suffix == ".safetensors" else shards_of(head)
    for path in files:
        _require_named(path, _require_whole(path, hint))
    return files


def weight_variant(folder: Path) -> str | None:
    """Return what diffusers calls the variant of a component's weights (``fp16``); None for weights without one."""
    return _variant(_head(folder, ""))


_HEAD = re.compile(r"(?:diffusion_pytorch_)?model\.(?:(.+)\.)?safetensors(?:\.index\.(?:(.+)\.)?json)?")
"""A single file or an index of several, perhaps with a variant."""
_SHARD = re.compile(r".*-\d+-of-\d+\.safetensors")


def _variant(head: Path) -> str | None:
    found = _HEAD.fullmatch(head.name)
    return None if found is None else found[1] or found[2]


def _head(folder: Path, hint: str) -> Path:
    """The file that leads to all weights of a component."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return folder / leading_file(folder, names, hint)


def leading_file(folder: Path, names: Collection[str], hint: str = "") -> str:
    """Return which of the ``names`` in a component's folder leads to all its weights: a file, or an index of several.

    Those without a variant come before others. The folder itself is only named in messages.

    Raises:
        ModelError: there is none, or several can be meant; ``hint`` says how to get one.
    """
    names = sorted(names)
    stem = "model." if folder.name in ENCODER_FOLDERS else "diffusion_pytorch_model."
    wanted = f"{stem}safetensors"
    own = [name for name in names if name.startswith(stem)]
    heads = [folder / name for name in own if _HEAD.fullmatch(name) and not _SHARD.fullmatch(name)]
    found = [head for head in heads if _variant(head) is None] or heads
    if found:
        return only_one(folder, found).name
    if pickles := [name for name in names if name.endswith(_PICKLES)]:
        raise ModelError(
            f"{folder}: only pickled weights ({pickles[0]}), which are never opened; convert them to "
            f"{wanted} with save_pretrained(safe_serialization=True)"
        )
    if shards := fnmatch.filter(names, SHARDS):
        raise ModelError(f"{folder}: {shards[0]} is a part of weights whose index {WEIGHTS_INDEX} is missing{hint}")
    others = [name for name in names if name.endswith(".safetensors")]
    there = f"; {others[0]} is of no name that diffusers reads" if others else ""
    raise ModelError(f"{folder}: weights file {wanted} is missing{there or hint}")


def shards_of(index: Path) -> tuple[Path, ...]:
    """Return the files that an index names; ModelError if it names none."""
    try:
        names = sorted(set(read_config(index)["weight_map"].values()))
        return tuple(index.parent / safe_name(name) for name in names)
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(f"{index}: has no weight_map from tensors to the names of files ({reason})") from None


_WRAPPERS = {
    "module": "DistributedDataParallel",
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    **dict.fromkeys(("ema", "ema_model", "model_ema", "shadow_params"), "an average of weights"),
    **dict.fromkeys(("model", "unet", "net", "network"), "a trainer"),
}
_WRAPPED = re.compile(rf"({'|'.join(_WRAPPERS)})\.|.*\.(_orig_mod|_fsdp_wrapped_module)\.")


def _require_named(path: Path, names: Iterable[str]) -> None:
    """Refuse weights that were saved with a wrapper around the network, or of an average beside it."""
    for name in names:
        if (found := _WRAPPED.match(name)) is not None:
            wrapper = _WRAPPERS[found[1] or found[2]]
            raise ModelError(
                f"{path}: its weights have names such as {name}, as {wrapper} gives them: save_pretrained of the "
                "network inside it writes those that are read"
            )


def refuse_misfits(
    folder: Path,
    missing: Iterable[Any],
    unknown: Iterable[Any],
    misfitting: Iterable[Any],
    advice: str = "",
) -> None:
    """Raise ModelError if any weight of the network is missing, unknown, or of another shape; the first is named."""
    for names, say in ((missing, "lacks"), (unknown, "has unknown"), (misfitting, "misfits")):
        if found := sorted(map(str, names)):
            raise ModelError(
                f"{folder}: the checkpoint {say} {len(found)} of the network's weights, the first is {found[0]}"
                f"{f'; {advice}' if advice else ''}"
            )


def tensor_shapes(folder: Path, advice: str = "") -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of one component by the name that diffusers gives it, from headers alone.

    Raises:
        ModelError: a file is absent or truncated, or there are only pickles.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder, advice):
        shapes |= {_PROJECTION.sub(_modern, name): shape for name, shape in _read_header(path).shapes.items()}
    return shapes


def stored_bytes(folder: Path) -> dict[str, int]:
    """Return the bytes of all tensors of one component by their type, as safetensors calls it (``F32``), from headers
    alone.

    Raises:
        ModelError: a file is absent or truncated, or there are only pickles.
    """
    total: Counter[str] = Counter()
    for path in weight_files(folder):
        total.update(_read_header(path).sizes)
    return dict(total)


_MODERN = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_PROJECTION = re.compile(rf"(?<=\.)({'|'.join(_MODERN)})(?=\.(weight|bias)$)")
"""Projections of attentions in old checkpoints, whose names diffusers changes when it loads them."""


def _modern(found: re.Match[str]) -> str:
    return _MODERN[found[1]]


class _Header(NamedTuple):
    """Of a safetensors file: how long the file should be, the shapes of its tensors by name, and the bytes of all of
    them by type."""

    length: int
    shapes: dict[str, tuple[int, ...]]
    sizes: Mapping[str, int]


@once_per_state
def _read_header(path: Path) -> _Header:
    size = path.stat().st_size
    with open(path, "rb") as file:
        (header_size,) = struct.unpack("<Q", file.read(8))
        if header_size > min(size, _LARGEST_HEADER):
            raise ValueError("header longer than the file")
        header = json.loads(file.read(header_size))
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    sizes: Counter[str] = Counter()
    for entry in entries.values():
        start, stop = entry["data_offsets"]
        sizes[entry["dtype"]] += stop - start
    return _Header(8 + header_size + end, {name: tuple(entry["shape"]) for name, entry in entries.items()}, sizes)


def _require_whole(path: Path, hint: str) -> Collection[str]:
    """Compare a safetensors file's length with what its header announces; return the names of its tensors."""
    try:
        header, size = _read_header(path), path.stat().st_size
    except FileNotFoundError:
        raise ModelError(f"{path}: this part of the weights is missing{hint}") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}){hint}") from None
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: truncated or not a safetensors file{hint}") from error
    if size != header.length:
        raise ModelError(f"{path}: truncated, {size} of {header.length} bytes{hint}")
    return header.shapes
