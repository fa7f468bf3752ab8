"""Which parts a model's folder has, and what its files are called. Needs no torch.

A model is a diffusers folder: a pipeline (``unet/`` or ``transformer/``, ``scheduler/``, perhaps a decoder) or a bare
network. Weights are safetensors; pickles are never opened.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dmqbench.models.planted import Planted
from dmqbench.models.precision import FLOAT32
from dmqbench.store.files import load_json, safe_name

EMBEDDED = Path(__file__).parents[1] / "zoo" / "weights"
ARCHITECTURES = Path(__file__).parent / "architectures"
"""Full-size networks as a ``config.json`` each, without weights, for counting."""

CONVERTER = "python -m dmqbench.models.compvis"

OWN = "own"
"""Kind of the source of a denoiser that lives in a script; a folder says the rest of it."""

OWN_MARK = "_denoiser"
"""Key of that folder's ``config.json``: what its conditions are."""

SHIPPED = ("embedded", "architecture", "package")
"""Kinds of sources whose location is a name that this package knows."""
NETWORK_FOLDERS = ("unet", "transformer")
DECODER_FOLDERS = ("vqvae", "vae")
ENCODER_FOLDERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
TOKENIZER_FOLDERS = tuple(name.replace("text_encoder", "tokenizer") for name in ENCODER_FOLDERS)
CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
WEIGHTS_INDEX = f"{WEIGHTS}.index.json"
SHARDS = WEIGHTS.replace(".", "-*.")
SCHEDULER_CONFIG = Path("scheduler") / "scheduler_config.json"
_NAMED = {*NETWORK_FOLDERS, *DECODER_FOLDERS, *ENCODER_FOLDERS, *TOKENIZER_FOLDERS, SCHEDULER_CONFIG.parent.name}
SCHEDULER_CONFIGS = (SCHEDULER_CONFIG, Path(SCHEDULER_CONFIG.name))


class ModelError(Exception):
    """A model cannot be used as it is; the message says in one line where, what is wrong and what to do."""


@dataclass(frozen=True)
class ModelSource:
    """Which model to load.

    Args:
        kind: ``embedded`` (shipped with this package), ``local`` (a diffusers folder), ``hub`` (a repository) or
            ``architecture`` (shipped as shapes alone), ``package`` (inside another Python package); ``own`` (a
            denoiser in a script, described by a folder).
        location: the name of a model that this package knows, the folder's path, or ``owner/name``.
        revision: of a hub repository: the commit, so that the weights cannot change under a result.
        classes: number of real classes where the label table has one entry more, the null label of guidance.
        condition_channels: of an image that the network reads beside its state.
        scheduler: the file that states the noise schedule, or a folder that holds it; None: the model's own.
        dtype: of the network's weights and activations, by torch's name.
        size: height and width of images, in pixels; None: as the network's file says.
        planted: outliers that the network is given when its weights are loaded.
    """

    kind: Literal["embedded", "local", "hub", "architecture", "package", "own"]
    location: str
    revision: str | None = None
    classes: int | None = None
    condition_channels: int = 0
    scheduler: str | None = None
    dtype: str = FLOAT32
    size: tuple[int, int] | None = None
    planted: Planted = field(default_factory=Planted)

    def __post_init__(self) -> None:
        if self.kind not in (*SHIPPED, "local", "hub", OWN):
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
        if self.kind == "package":
            return "it is read from an installed package"
        if self.kind == OWN:
            return "it is given to dmqbench.api.evaluate or quantize_"
        if self.kind == "local":
            return f"give a folder that diffusers' save_pretrained wrote, or {CONVERTER} made of an original checkpoint"
        return f"fetch it once while online: hf download {self.location} --revision {self.revision}"


def network_folder(folder: Path, advice: str = "") -> Path:
    """Return the folder of the denoiser: a part of a pipeline, or ``folder`` itself.

    Raises:
        ModelError: neither holds a ``config.json``, or several hold a network.
    """
    parts = [folder / name for name in NETWORK_FOLDERS]
    bare = [folder] if (folder / WEIGHTS).is_file() else []
    found = _holding_config([*parts, *bare]) or _holding_config([folder])
    if found:
        return only_one(folder, found)
    if (found := next(folder.glob(LORAS), None)) is not None:
        raise ModelError(f"{folder}: {found.name} changes a network (LoRA) and is none; {FUSING}, then {SAVING}")
    raise ModelError(
        f"{folder}: no {CONFIG} there nor in {' or '.join(f'{name}/' for name in NETWORK_FOLDERS)}"
        f"{renamed(folder, *NETWORK_FOLDERS) or (f'; {advice}' if advice else '')}"
    )


LORAS = "*lora*.safetensors"
"""Files of low-rank changes to a network, by the name that diffusers gives them."""
FUSING = "fuse it: pipe.load_lora_weights(FILE), pipe.fuse_lora(), pipe.unload_lora_weights()"
SAVING = "pipe.save_pretrained(FOLDER)"


def renamed(folder: Path, *wanted: str) -> str:
    """Return what to do with a subfolder that is called like one that is missing; "" where there is none."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        for name in wanted:
            if path.is_dir() and path.name not in _NAMED and name in path.name.lower():
                return f"; if {path.name}/ is meant, call it {name}"
    return ""


def decoder_folder(folder: Path) -> Path | None:
    """Return the folder of a latent model's decoder; None for pixel models; ModelError if there are several."""
    found = _holding_config([folder / name for name in DECODER_FOLDERS])
    return only_one(folder, found) if found else None


def scheduler_file(folder: Path) -> Path | None:
    """Return the file that states the noise schedule: in its folder, or beside the network's, as the oldest
    repositories have it; None for a bare network; ModelError if there are both."""
    found = [path for path in (folder / name for name in SCHEDULER_CONFIGS) if path.is_file()]
    return only_one(folder, found) if found else None


def _holding_config(folders: Sequence[Path]) -> list[Path]:
    return [folder for folder in folders if (folder / CONFIG).is_file()]


def only_one(folder: Path, found: Sequence[Path]) -> Path:
    """Return the one path; ModelError for a ``folder`` of which nobody can say what is meant in it."""
    if len(found) > 1:
        first, other = (os.path.relpath(path, folder) for path in found[:2])
        raise ModelError(f"{folder}: holds both {first} and {other}, of which only one can be meant: take one away")
    return found[0]


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
