"""The embedded model ``digits_sr``: super-resolution of digits from 4×4 to 16×16 pixels.

How it is made: ``python -m dmqbench.zoo.digits_sr train --seed 0``. It sees the training split of the scans alone; what
it restores of the held-out ones stands in its record.
"""

import argparse
from dataclasses import asdict, replace
from functools import partial
from statistics import fmean
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from dmqbench.data.degradation import super_resolution_condition
from dmqbench.data.digits import load_split
from dmqbench.data.image_streams import ImageStreams, own_streams
from dmqbench.data.images import to_signed, to_uint8
from dmqbench.eval.paired import psnr
from dmqbench.models.adapter import load_adapter
from dmqbench.models.folders import ModelSource
from dmqbench.models.image_tasks import restore_images_
from dmqbench.models.rollout import Denoising, chunk_count
from dmqbench.samplers.plan import build_plan
from dmqbench.samplers.spec import SamplerSpec
from dmqbench.zoo.denoiser import WEIGHTS, Trained, build_scheduler, publish, run_training
from dmqbench.zoo.ladder import SHAPE as LADDER_SHAPE
from dmqbench.zoo.training import Optimizer, RestorationTraining

NAME = "digits_sr"
FACTOR = 4
SHAPE = replace(LADDER_SHAPE, labels=None, condition_channels=1)
OPTIMIZER = Optimizer(4e-3)
STEPS, BATCH = 4000, 32
CHUNK = 32

degrade = partial(super_resolution_condition, factor=FACTOR)
"""Images [N, 1, 16, 16] → the low-resolution ones, enlarged bilinearly: what the network reads and has to beat."""


def train_restorer(seed: int, steps: int = STEPS) -> Trained:
    """Train on the training split; the labels are not looked at."""
    pl.seed_everything(seed)
    (images, labels), _ = load_split()
    module = RestorationTraining(SHAPE.build(), build_scheduler().alphas_cumprod, steps, OPTIMIZER, degrade)
    return run_training(module, images, labels, batch=BATCH, seed=seed)


def load_restorer(images: ImageStreams) -> Denoising:
    """Return the shipped network, restoring ``images`` as it is measured, with DDIM in 20 steps."""
    adapter = load_adapter(ModelSource("embedded", NAME, condition_channels=SHAPE.condition_channels))
    restore_images_(adapter, images, FACTOR)
    return Denoising(adapter, build_plan(SamplerSpec("ddim", 20), adapter.schedule))


def restored(count: int) -> Tensor:
    """Return what the network makes of the first ``count`` held-out digits, uint8 [count, 1, 16, 16]."""
    restorer = load_restorer(own_streams("digits"))
    chunks = range(chunk_count(count, CHUNK))
    images = [restorer.sample_chunk(number, chunk=CHUNK, seed=0).images for number in chunks]
    return torch.cat(images)[:count]


def measure() -> dict[str, Any]:
    """Return the mean PSNR to the ground truth over all held-out digits, in dB, and that of bilinear enlargement."""
    truth = own_streams("digits").images["eval"]
    bilinear = to_uint8(degrade(to_signed(truth)))
    decibels = {
        name: fmean(value for value in psnr(images, truth) if value is not None)
        for name, images in (("psnr_truth", restored(len(truth))), ("psnr_truth_bilinear", bilinear))
    }
    return {"held_out": len(truth), **{name: round(mean, 2) for name, mean in decibels.items()}}


def train(seed: int) -> None:
    """Train, write the folder, then load it as anybody would and add what it restores to its record."""
    facts = {
        "command": f"python -m dmqbench.zoo.{NAME} train --seed {seed}",
        "seed": seed,
        "steps": STEPS,
        "batch": BATCH,
        "optimizer": asdict(OPTIMIZER),
    }
    measured = publish(WEIGHTS / NAME, train_restorer(seed), facts, measure)
    print(f"{NAME}: {measured['psnr_truth']} dB, bilinear {measured['psnr_truth_bilinear']} dB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("train",))
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args().seed)


if __name__ == "__main__":
    main()
