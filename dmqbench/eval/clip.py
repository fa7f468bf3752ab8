"""CLIP score (Hessel et al. 2021): how well an image fits its prompt, 100 max(cos, 0)."""

import hashlib
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmqbench.config.names import STAND_IN
from dmqbench.config.schema import MetricsConfig
from dmqbench.data.images import require_images
from dmqbench.eval.paired import PairedMetric, PerImage
from dmqbench.eval.protocol import FeatureNetwork, WeightsMissing
from dmqbench.eval.resizing import as_rgb
from dmqbench.eval.weights import STAND_IN_MARKER, digest, download_forbidden, is_stand_in
from dmqbench.store.downloads import in_one_line, unanswered

WEIGHTS = "model.safetensors"
_NEEDED = ("config.json", WEIGHTS)
_PATTERNS = ("*.json", "*.txt", WEIGHTS)
_IMAGES_AT_ONCE = 32


@dataclass(frozen=True)
class ClipScore:
    """The score of images uint8 [N, C, H, W] and their N prompts, in one CLIP model."""

    model: Any
    processor: Any

    def __call__(self, images: Tensor, captions: Sequence[str]) -> PerImage:
        """Return 100 max(cos, 0) of each image and its prompt, in [0, 100].

        Prompts are cut by the tokenizer at the length of the model (77 tokens for OpenAI's), their end mark kept;
        grey images are repeated to three channels.
        """
        require_images(images)
        if len(images) != len(captions):
            raise ValueError(f"clip: {len(images)} images and {len(captions)} prompts do not pair one to one")
        values: PerImage = []
        for start in range(0, len(images), _IMAGES_AT_ONCE):
            part = slice(start, start + _IMAGES_AT_ONCE)
            values += self._scores(as_rgb(images[part]), list(captions[part])).tolist()
        return values

    @torch.no_grad()
    def _scores(self, images: Tensor, captions: list[str]) -> Tensor:
        device = self.model.device
        pixels = self.processor.image_processor(images=list(images.cpu()), return_tensors="pt")
        tokens = self.processor.tokenizer(
            captions,
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
        )
        seen = self.model.get_image_features(pixels["pixel_values"].to(device)).pooler_output
        read = self.model.get_text_features(
            tokens["input_ids"].to(device), tokens["attention_mask"].to(device)
        ).pooler_output
        return 100 * torch.cosine_similarity(seen.float(), read.float(), dim=-1).clamp(min=0)


def clip_metric(settings: MetricsConfig, device: str | torch.device) -> PairedMetric:
    """Return the metric with the model ``metrics.clip``: a folder, or a repository on the hub or in its cache.

    Raises:
        MetricUnavailable: the model is not to be had; one line says where it was looked for and how to get it.
    """
    folder = locate_clip(settings)
    marked = (folder / STAND_IN_MARKER).exists()
    stand_in = marked or (is_stand_in(settings) and folder.parent == Path(settings.weights or ""))
    name = re.sub(r"[\s=#]", "-", Path(settings.clip).name)
    return _metric(f"{STAND_IN if stand_in else ''}{name}", folder, _hash(folder), str(device))


@cache
def _metric(name: str, folder: Path, content: str, device: str) -> PairedMetric:
    model, processor = _load(folder)
    model.requires_grad_(False).eval().to(device)
    resize = f"clip-processor-{model.config.vision_config.image_size}+grey-to-rgb"
    network = FeatureNetwork(name, content, resize)
    return PairedMetric("clip", True, "images", "transformers", ClipScore(model, processor), network, "prompts")


def _load(folder: Path) -> tuple[Any, Any]:
    """The model and its processor; ``MetricUnavailable``, one line, unless every weight is in the folder."""
    from transformers import CLIPModel, CLIPProcessor

    problem = f"metrics.clip: {folder} does not load as CLIP"
    try:
        loaded: Any = CLIPModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
    except RuntimeError:
        raise WeightsMissing(f"{problem}: its weights are not of the shapes that its config.json says") from None
    except (OSError, ValueError) as error:
        raise WeightsMissing(f"{problem}: {in_one_line(error)}") from None
    model, report = loaded
    # transformers fills what is missing with random numbers.
    if missing := sorted(report["missing_keys"]):
        raise WeightsMissing(f"{problem}: {WEIGHTS} holds no {missing[0]}, the first of {len(missing)} missing weights")
    return model, processor


def locate_clip(settings: MetricsConfig) -> Path:
    """Return the folder of the model: ``metrics.clip`` itself, of that name in ``metrics.weights``, or from the hub."""
    named = Path(settings.clip)
    for folder in (named, *([Path(settings.weights) / named.name] if settings.weights else [])):
        if folder.is_dir():
            if absent := _absent(folder):
                raise WeightsMissing(f"metrics.clip: {folder} holds no {absent}")
            return folder
    with suppress(_NotFetched):
        return _snapshot(settings.clip, local_files_only=True)
    try:
        if forbidden := download_forbidden(settings):
            raise _NotFetched(forbidden)
        return _snapshot(settings.clip, local_files_only=False)
    except _NotFetched as reason:
        raise WeightsMissing(
            f"needs the CLIP model {settings.clip}, which is not in the hub's cache and was not downloaded: {reason}; "
            f"get it with 'hf download {settings.clip}', or name a folder that holds it with metrics.clip"
        ) from None


class _NotFetched(Exception):
    """The hub, or its cache, has no such model; the message says why in one line."""


def _snapshot(repository: str, local_files_only: bool) -> Path:
    """The folder of a repository in the hub's cache; nothing that is a pickle is fetched."""
    from huggingface_hub import hf_hub_url, snapshot_download

    # That of the client it is built on, which differs between versions.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        # The hub's own client waits for a silent server and asks again, for many minutes.
        if not local_files_only and (silence := unanswered(hf_hub_url(repository, _NEEDED[0]))):
            raise _NotFetched(silence)
        folder = Path(snapshot_download(repository, allow_patterns=[*_PATTERNS], local_files_only=local_files_only))
    except (OSError, ValueError, HTTPError) as error:
        raise _NotFetched(in_one_line(error)) from None
    if absent := _absent(folder):
        raise _NotFetched(f"it holds no {absent}")
    return folder


def _absent(folder: Path) -> str:
    return ", ".join(name for name in _NEEDED if not (folder / name).is_file())


def _hash(folder: Path) -> str:
    """sha256 over the names and digests of the model's files."""
    listed = hashlib.sha256()
    for path in sorted({path for pattern in _PATTERNS for path in folder.glob(pattern)}):
        listed.update(f"{path.name} {digest(path)}\n".encode())
    return listed.hexdigest()
