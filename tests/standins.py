"""Made-up weights of the right interface, so that tests run the real metric code where the real weights cannot be had.

``stand_in_folder`` is what ``metrics.weights`` may name; everything computed with it is called ``stand-in-…``. All its
files together are a few megabytes: weights are overlapping windows of a few thousand random numbers.
"""

import io
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmqbench.eval.inception import POOL_DIMENSION
from dmqbench.eval.weights import INCEPTION_SCRIPT, INCEPTION_STATE, LPIPS_BACKBONE_FILES, STAND_IN_MARKER

CLIP_NAME = "clip-vit-large-patch14"
CLIP_IMAGE_SIZE = 32
SPATIAL_DIMENSION = 63
"""Of "spatial" features at the input size that stand-ins use: 3×3 places, 7 channels."""


def stand_in_folder(folder: Path, clip: bool = True, backbones: tuple[str, ...] = ("alex", "squeeze")) -> Path:
    """Write stand-ins for all weights into ``folder`` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STAND_IN_MARKER).write_text("The weights in this folder are random numbers.\n")
    save_inception_script(folder / INCEPTION_SCRIPT.name)
    torch.save(inception_state(), folder / INCEPTION_STATE.name)
    for backbone in backbones:
        torch.save(backbone_state(backbone), folder / LPIPS_BACKBONE_FILES[backbone].name)
    if clip:
        save_clip(folder / CLIP_NAME)
    return folder


class _Layers(nn.Module):
    """[N, 3, 299, 299] in (-1, 1) → [N, 2048]: a random projection of a coarse copy of the image."""

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(POOL_DIMENSION, 3 * 6 * 6, generator=generator) / 6)

    def forward(self, images: Tensor) -> Tensor:
        return torch.tanh(F.linear(F.adaptive_avg_pool2d(images, 6).flatten(1), self.weight))


class InceptionScript(nn.Module):
    """The two ways in which clean-fid calls NVIDIA's TorchScript network."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = _Layers()

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        images = F.interpolate(images, size=(299, 299), mode="bilinear", align_corners=False)
        features = self.layers((images - 128) / 128)
        return features if return_features else features.softmax(1)


def save_inception_script(path: Path) -> None:
    torch.jit.script(InceptionScript().eval()).save(str(path))


def windows(shape: torch.Size | tuple[int, ...], scale: float = 1.0, seed: int = 0) -> Tensor:
    """Random numbers of ``shape`` whose rows overlap in memory: large weights that make small files."""
    rows, columns, step = shape[0], math.prod(shape[1:]), 7
    pool = torch.randn(columns + step * rows, generator=torch.Generator().manual_seed(seed)) * scale
    return pool.as_strided((rows, columns), (step, 1)).unflatten(1, shape[1:])


def inception_state() -> dict[str, Tensor]:
    """A state for torch-fidelity's and pytorch-fid's Inception, of the scale of a trained one."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, *args, **kwargs):
            """Keep the shapes, which are all that is asked of it."""

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    with torch.device("meta"):
        network = Unloaded("inception", ["2048"], feature_extractor_weights_path=nothing)
    state = _state(network.state_dict())
    return {**state, "fc.weight": windows(state["fc.weight"].shape, scale=30)}  # classes differ between images


def _entry(name: str, shape: torch.Size, seed: int) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if name.endswith(("running_var", "bn.weight")):
        return torch.ones(shape)
    if len(shape) < 2:
        return torch.zeros(shape)
    return windows(shape, math.sqrt(2 / math.prod(shape[1:])), seed)


def backbone_state(backbone: str) -> dict[str, Tensor]:
    """A state for the features of one of torchvision's classifiers, which is all that LPIPS uses."""
    import torchvision

    names = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
    with torch.device("meta"):
        network = getattr(torchvision.models, names[backbone])(weights=None)
    return _state({name: value for name, value in network.state_dict().items() if name.startswith("features.")})


def _state(like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: _entry(name, value.shape, seed) for seed, (name, value) in enumerate(like.items())}


def save_clip(folder: Path, layers: int = 1) -> None:
    """Write a CLIP of two small towers that spells prompts out, as the hub's folders hold them."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers, "num_attention_heads": 2}
    ends = {"bos_token_id": len(vocabulary) - 2, "eos_token_id": len(vocabulary) - 1}
    config = CLIPConfig(
        text_config={**tower, **ends, "vocab_size": len(vocabulary), "max_position_embeddings": 77},
        vision_config={**tower, "image_size": CLIP_IMAGE_SIZE, "patch_size": 8},
        projection_dim=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    tokenizer = CLIPTokenizer(vocab={token: number for number, token in enumerate(vocabulary)}, merges=[])
    side = {"height": CLIP_IMAGE_SIZE, "width": CLIP_IMAGE_SIZE}
    images = CLIPImageProcessor(size={"shortest_edge": CLIP_IMAGE_SIZE}, crop_size=side)
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)


def save_statistics(path: Path, seed: int = 0, spatial: int | None = SPATIAL_DIMENSION) -> Path:
    """Write mean and covariance of Inception features, those of the ADM suite if ``spatial`` is their dimension."""
    generator = np.random.default_rng(seed)
    arrays = {}
    for dimension, names in ((POOL_DIMENSION, ("mu", "sigma")), (spatial, ("mu_s", "sigma_s"))):
        if dimension is not None:
            values = generator.normal(size=dimension), np.diag(generator.uniform(0.5, 1.5, size=dimension))
            arrays |= dict(zip(names, values, strict=True))
    np.savez_compressed(path, **arrays)
    return path
