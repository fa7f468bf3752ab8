"""How an embedded denoiser is described, trained and saved: a class-conditional pixel ``UNet2DModel`` of digits.

It is saved as an ordinary diffusers folder, so that embedded models go through the same loader as anybody's.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from dmqbench.data.digits import CLASSES, IMAGE_SIZE, load_digits
from dmqbench.zoo.training import Curve, DenoiserTraining, Optimizer, fit, save_curve

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

WEIGHTS = Path(__file__).parent / "weights"
RECORD = "training.json"
NULL_LABEL = CLASSES


@dataclass(frozen=True)
class UNetShape:
    """The architecture of an embedded denoiser.

    Args:
        channels: width of each resolution, from 16×16 down.
        layers: residual blocks per resolution on the way down; one more on the way up.
        attention: whether each resolution has attention; the middle block has it where any has.
        groups: of every group normalisation; divides all widths.
        modulation: the time and the label scale and shift what a block's second norm gives; otherwise they are added
            before it, and a norm of few channels takes most of them away again.
        head_dim: channels of one attention head.
        labels: rows of the label table, by default one more than there are classes, for guidance; None: no labels.
        condition_channels: of an image that is read beside the state.
    """

    channels: tuple[int, ...]
    layers: int
    attention: tuple[bool, ...]
    groups: int
    modulation: bool = False
    head_dim: int = 16
    labels: int | None = CLASSES + 1
    condition_channels: int = 0

    def __post_init__(self) -> None:
        if len(self.attention) != len(self.channels):
            raise ValueError(f"attention has {len(self.attention)} entries, channels {len(self.channels)}")

    def build(self) -> "UNet2DModel":
        """Return the untrained network."""
        from diffusers.models.unets.unet_2d import UNet2DModel

        down = tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in self.attention)
        up = tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(self.attention))
        return UNet2DModel(
            sample_size=IMAGE_SIZE,
            in_channels=1 + self.condition_channels,
            out_channels=1,
            layers_per_block=self.layers,
            block_out_channels=self.channels,
            down_block_types=down,
            up_block_types=up,
            add_attention=any(self.attention),
            attention_head_dim=self.head_dim,
            norm_num_groups=self.groups,
            resnet_time_scale_shift="scale_shift" if self.modulation else "default",
            num_class_embeds=self.labels,
        )


@dataclass(frozen=True)
class Trained:
    """The averaged network and how it came about."""

    network: Any
    curve: Curve
    seconds: float


def build_scheduler():
    """Return the linear schedule of DDPM, as the diffusers folder will carry it."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(num_train_timesteps=1000, beta_schedule="linear", clip_sample=False)


def train_denoiser(shape: UNetShape, optimizer: Optimizer, *, steps: int, batch: int, seed: int) -> Trained:
    """Train a class-conditional denoiser of ``shape`` on all scans."""
    pl.seed_everything(seed)
    module = DenoiserTraining(shape.build(), build_scheduler().alphas_cumprod, NULL_LABEL, steps, optimizer)
    return run_training(module, *load_digits(), batch=batch, seed=seed)


def run_training(module: DenoiserTraining, images: Tensor, labels: Tensor, *, batch: int, seed: int) -> Trained:
    """Train ``module`` on images [N, C, H, W] in [-1, 1] and their labels [N]."""
    started = time.perf_counter()
    fit(module, images, labels, batch=batch, seed=seed)
    return Trained(module.average.eval(), module.curve, time.perf_counter() - started)


def save_denoiser(folder: Path, trained: Trained, **facts: object) -> None:
    """Write the diffusers folder, and its training record with ``facts`` and the loss averaged over 50 steps each."""
    trained.network.save_pretrained(folder / "unet")
    build_scheduler().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DDIMPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    facts |= {"seconds": round(trained.seconds), "torch": torch.__version__}
    save_curve(folder / RECORD, trained.curve, every=50, **facts)


def publish(
    folder: Path, trained: Trained, facts: dict[str, Any], measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Write the diffusers folder, let ``measure`` load it as anybody would, and add what it returns to the record."""
    save_denoiser(folder, trained, **facts)
    measured = measure()
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps({**facts, "measured": measured, **record}, indent=1) + "\n")
    return measured
