"""Where a model's files lie, and whether they are whole. Reads headers only and needs no torch.

A model is a diffusers folder: a pipeline (``unet/`` or ``transformer/``, ``scheduler/``, perhaps a decoder) or a bare
network. Weights are safetensors; pickles are never opened.
"""

import json
import re
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dmqbench.store.downloads import unanswered
from dmqbench.store.files import load_json, safe_name

EMBEDDED = Path(__file__).parents[1] / "zoo" / "weights"
ARCHITECTURES = Path(__file__).parent / "architectures"
"""Full-size networks as a ``config.json`` each, without weights, for counting."""

SHIPPED = ("embedded", "architecture")
"""Kinds of sources that come with this package."""
NETWORK_FOLDERS = ("unet", "transformer")
DECODER_FOLDERS = ("vqvae", "vae")
CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
WEIGHTS_INDEX = f"{WEIGHTS}.index.json"
SCHEDULER_CONFIG = Path("scheduler") / "scheduler_config.json"

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_LARGEST_HEADER = 100 * 2**20


class ModelError(Exception):
    """A model cannot be used as it is; the message says in one line where, what is wrong and what to do."""


@dataclass(frozen=True)
class ModelSource:
    """Which model to load.

    Args:
        kind: ``embedded`` (shipped with this package), ``local`` (a diffusers folder), ``hub`` (a repository) or
            ``architecture`` (shipped as shapes alone).
        location: the shipped model's name, the folder's path, or ``owner/name``.
        revision: of a hub repository: the commit, so that the weights cannot change under a result.
        classes: number of real classes where the label table has one entry more, the null label of guidance.
        condition_channels: of an image that the network reads beside its state.
    """

    kind: Literal["embedded", "local", "hub", "architecture"]
    location: str
    revision: str | None = None
    classes: int | None = None
    condition_channels: int = 0

    def __post_init__(self) -> None:
        if self.kind not in (*SHIPPED, "local", "hub"):
            raise ValueError(f"model source kind={self.kind} is not known (allowed: {', '.join(SHIPPED)}, local, hub)")
        if self.kind in SHIPPED:
            safe_name(self.location)
        if (self.kind == "hub") != (self.revision is not None):
            raise ValueError(
                f"model source {self.kind} {self.location}: a hub repository needs its revision, others have none"
            )

    @property
    def advice(self) -> str:
        """How to get the files, for error messages."""
        if self.kind == "embedded":
            maker = re.sub(r"_\d+$", "", self.location)
            return f"it is shipped with dmqbench and made by python -m dmqbench.zoo.{maker}"
        if self.kind == "architecture":
            return "it is shipped as shapes alone, for task=cost and task=plan"
        if self.kind == "local":
            return "give a folder that diffusers' save_pretrained wrote"
        return f"fetch it once while online: hf download {self.location} --revision {self.revision}"


def locate(source: ModelSource) -> Path:
    """Return the model's folder, downloading a hub repository unless it is cached or ``HF_HUB_OFFLINE`` is set.

    Raises:
        ModelError: there is no such folder, or the repository cannot be had.
    """
    if source.kind == "hub":
        return _snapshot(source)
    places = {"embedded": EMBEDDED, "architecture": ARCHITECTURES, "local": Path()}
    folder = places[source.kind] / source.location
    if not folder.is_dir():
        raise ModelError(f"model {source.location}: there is no folder {folder}; {source.advice}")
    return folder


_silence = cache(unanswered)


def _snapshot(source: ModelSource) -> Path:
    from huggingface_hub import constants, hf_hub_url, snapshot_download

    shards = WEIGHTS.replace(".", "-*.")
    parts = ("", *(f"{name}/" for name in (*NETWORK_FOLDERS, *DECODER_FOLDERS)))
    wanted = [f"{part}{name}" for part in parts for name in (CONFIG, WEIGHTS, WEIGHTS_INDEX, shards)]
    try:
        # The hub's own client waits for a silent server and asks again, for many minutes.
        alone = constants.HF_HUB_OFFLINE or _silence(hf_hub_url(source.location, SCHEDULER_CONFIG.as_posix()))
        folder = snapshot_download(
            source.location,
            revision=source.revision,
            local_files_only=bool(alone),
            allow_patterns=[*wanted, "model_index.json", SCHEDULER_CONFIG.as_posix()],
        )
    except (OSError, ValueError) as error:  # the hub's own errors derive from these two
        raise ModelError(
            f"model {source.location} at revision {source.revision} is neither cached nor to be had from the hub "
            f"({type(error).__name__}); {source.advice}"
        ) from error
    return Path(folder)


def network_folder(folder: Path, advice: str = "") -> Path:
    """Return the folder of the denoiser: a part of a pipeline, or ``folder`` itself.

    Raises:
        ModelError: neither holds a ``config.json``.
    """
    for candidate in (*(folder / name for name in NETWORK_FOLDERS), folder):
        if (candidate / CONFIG).is_file():
            return candidate
    raise ModelError(
        f"{folder}: no {CONFIG} there nor in {' or '.join(f'{name}/' for name in NETWORK_FOLDERS)}"
        f"{f'; {advice}' if advice else ''}"
    )


def decoder_folder(folder: Path) -> Path | None:
    """Return the folder of a latent model's decoder; None for pixel models."""
    return next((folder / name for name in DECODER_FOLDERS if (folder / name / CONFIG).is_file()), None)


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON object; ModelError when it is absent or something else.

    diffusers writes infinities, which JSON does not have (``lambda_min_clipped`` of DPM-Solver).
    """
    try:
        config = load_json(path, finite=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({type(error).__name__})") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(config).__name__}")
    return config


def weight_files(folder: Path, advice: str = "") -> tuple[Path, ...]:
    """Return the safetensors files of one component, each of them whole.

    Raises:
        ModelError: a file is absent or truncated, or there are only pickles.
    """
    hint = f"; {advice}" if advice else ""
    if (folder / WEIGHTS).is_file():
        files: tuple[Path, ...] = (folder / WEIGHTS,)
    elif (folder / WEIGHTS_INDEX).is_file():
        shards = read_config(folder / WEIGHTS_INDEX).get("weight_map", {}).values()
        files = tuple(folder / safe_name(name) for name in sorted(set(shards)))
    else:
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickles:
            raise ModelError(
                f"{folder}: only pickled weights ({pickles[0]}), which are never opened; convert them to "
                f"{WEIGHTS} with save_pretrained(safe_serialization=True)"
            )
        raise ModelError(f"{folder}: weights file {WEIGHTS} is missing{hint}")
    for path in files:
        _require_whole(path, hint)
    return files


def tensor_shapes(folder: Path, advice: str = "") -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of one component by the name that diffusers gives it, from headers alone.

    Raises:
        ModelError: a file is absent or truncated, or there are only pickles.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder, advice):
        shapes |= {_PROJECTION.sub(_modern, name): shape for name, shape in _read_header(path).shapes.items()}
    return shapes


_MODERN = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_PROJECTION = re.compile(rf"(?<=\.)({'|'.join(_MODERN)})(?=\.(weight|bias)$)")
"""Projections of attentions in old checkpoints, whose names diffusers changes when it loads them."""


def _modern(found: re.Match[str]) -> str:
    return _MODERN[found[1]]


class _Header(NamedTuple):
    """Of a safetensors file: how long the file should be, and the shapes of its tensors by name."""

    length: int
    shapes: dict[str, tuple[int, ...]]


def _read_header(path: Path) -> _Header:
    size = path.stat().st_size
    with open(path, "rb") as file:
        (header_size,) = struct.unpack("<Q", file.read(8))
        if header_size > min(size, _LARGEST_HEADER):
            raise ValueError("header longer than the file")
        header = json.loads(file.read(header_size))
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    return _Header(8 + header_size + end, {name: tuple(entry["shape"]) for name, entry in entries.items()})


def _require_whole(path: Path, hint: str) -> None:
    """Compare a safetensors file's length with what its header announces."""
    try:
        expected = _read_header(path).length
    except FileNotFoundError:
        raise ModelError(f"{path}: this part of the weights is missing{hint}") from None
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: truncated or not a safetensors file{hint}") from error
    size = path.stat().st_size
    if size != expected:
        raise ModelError(f"{path}: truncated, {size} of {expected} bytes{hint}")
