"""How the embedded model ``digits`` and its classifier are made: ``python -m dmqbench.zoo.digits --help``.

A class-conditional pixel ``UNet2DModel`` over 16×16 digits, saved as an ordinary diffusers folder, so that the
embedded model goes through the same loader as anybody's.
"""

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from safetensors.torch import load_file, save_file

from dmqbench.zoo.classifier import DigitClassifier, load_classifier, recognised
from dmqbench.zoo.digits_data import CLASSES, IMAGE_SIZE, load_digits, load_split
from dmqbench.zoo.training import ClassifierTraining, DenoiserTraining, fit, save_curve

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

WEIGHTS = Path(__file__).parent / "weights"
MODEL = WEIGHTS / "digits"
CLASSIFIER = WEIGHTS / "digits_classifier.safetensors"
NULL_LABEL = CLASSES


def build_unet() -> "UNet2DModel":
    """Return the untrained network: three resolutions, attention at 8×8 and 4×4, one extra label for guidance."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    return UNet2DModel(
        sample_size=IMAGE_SIZE,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(32, 48, 80),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=16,
        norm_num_groups=8,
        num_class_embeds=CLASSES + 1,
    )


def build_scheduler():
    """Return the linear schedule of DDPM, as the diffusers folder will carry it."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(num_train_timesteps=1000, beta_schedule="linear", clip_sample=False)


def train_classifier(steps: int, seed: int) -> None:
    """Train on four fifths of the scans, and record the accuracy on the rest."""
    pl.seed_everything(seed)
    (images, labels), held_out = load_split()
    module = ClassifierTraining(DigitClassifier(), steps)
    fit(module, images, labels, batch=128, seed=seed)
    weights = {name: value.contiguous() for name, value in module.network.state_dict().items()}
    accuracy = recognised(load_classifier(weights), *held_out).float().mean().item()
    WEIGHTS.mkdir(exist_ok=True)
    save_file(weights, CLASSIFIER)
    save_curve(
        WEIGHTS / "digits_classifier.json",
        module.curve,
        every=20,
        command=f"python -m dmqbench.zoo.digits classifier --steps {steps} --seed {seed}",
        seed=seed,
        steps=steps,
        held_out_accuracy=accuracy,
    )
    print(f"held-out accuracy {accuracy:.4f}")


def train_denoiser(steps: int, seed: int, batch: int) -> None:
    """Train on all scans and write the diffusers folder and its curve."""
    pl.seed_everything(seed)
    images, labels = load_digits()
    scheduler = build_scheduler()
    module = DenoiserTraining(build_unet(), scheduler.alphas_cumprod, NULL_LABEL, steps)
    started = time.perf_counter()
    fit(module, images, labels, batch=batch, seed=seed)
    seconds = time.perf_counter() - started
    average: Any = module.average
    average.save_pretrained(MODEL / "unet")
    scheduler.save_pretrained(MODEL / "scheduler")
    index = {
        "_class_name": "DDIMPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    (MODEL / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    save_curve(
        MODEL / "training.json",
        module.curve,
        every=50,
        command=f"python -m dmqbench.zoo.digits denoiser --steps {steps} --batch {batch} --seed {seed}",
        seed=seed,
        steps=steps,
        batch=batch,
        seconds=round(seconds),
        torch=torch.__version__,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("classifier", "denoiser"))
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.what == "classifier":
        train_classifier(arguments.steps, arguments.seed)
    else:
        train_denoiser(arguments.steps, arguments.seed, arguments.batch)


def digit_classifier() -> DigitClassifier:
    """Return the shipped classifier."""
    return load_classifier(load_file(CLASSIFIER))


if __name__ == "__main__":
    main()
