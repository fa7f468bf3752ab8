"""Lightning modules that train the embedded models, and the curve that is shipped beside their weights."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Curve = list[tuple[int, float]]
"""(step, loss)"""

LABEL_DROPOUT = 0.1
EMA_DECAY = 0.999
CLASSIFIER_RATE = 2e-3


@dataclass(frozen=True)
class Optimizer:
    """Adam (Kingma & Ba 2015), with L2 regularisation of the convolution kernels.

    Args:
        learning_rate: at its peak.
        weight_decay: λ; λ times the kernel is added to its gradient, which Adam then divides by its size. So kernels
            with small gradients shrink as fast as others, and channels become unequal. Norms, biases and embeddings
            have no decay: each label is seen in one of ten samples, and decay would take it out of the network first.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.0

    def build(self, network: nn.Module) -> torch.optim.Optimizer:
        if not self.weight_decay:  # one group, in the network's order: gradients are clipped to the same last bit
            return torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        kernels = [parameter for parameter in network.parameters() if parameter.ndim == 4]
        others = [parameter for parameter in network.parameters() if parameter.ndim != 4]
        groups = [{"params": kernels, "weight_decay": self.weight_decay}, {"params": others}]
        return torch.optim.Adam(groups, lr=self.learning_rate)


class Training(pl.LightningModule):
    """Trains a network for some steps, and keeps the curve of its loss."""

    def __init__(self, network: nn.Module, steps: int) -> None:
        super().__init__()
        self.network = network
        self.steps = steps
        self.curve: Curve = []

    def noted(self, loss: Tensor) -> Tensor:
        """Put the loss of a step onto the curve and the bar."""
        self.log("loss", loss, prog_bar=True)
        self.curve.append((self.global_step, round(float(loss.detach()), 6)))
        return loss

    def one_cycle(self, optimizer: torch.optim.Optimizer, peak: float, rising: float) -> dict:
        """Return the optimizer with a rate that rises to its ``peak`` over a share of the steps, then falls."""
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peak, total_steps=self.steps, pct_start=rising)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class DenoiserTraining(Training):
    """Train a class-conditional noise predictor by ε-matching (DDPM, Ho et al. 2020, eq. 14).

    The label is replaced by ``null_label`` with probability ``LABEL_DROPOUT``, so that the same network serves
    classifier-free guidance. What is kept is an exponential moving average of the weights.
    """

    alphas_cumprod: Tensor

    def __init__(
        self,
        network: nn.Module,
        alphas_cumprod: Tensor,
        null_label: int,
        steps: int,
        optimizer: Optimizer,
    ) -> None:
        super().__init__(network, steps)
        self.average = copy.deepcopy(network).requires_grad_(False)
        self.register_buffer("alphas_cumprod", alphas_cumprod)
        self.null_label = null_label
        self.optimizer = optimizer

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        images, labels = batch
        noise = torch.randn_like(images)
        timesteps = torch.randint(len(self.alphas_cumprod), (len(images),), device=images.device)
        signal = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * images + (1 - signal).sqrt() * noise
        return self.noted(F.mse_loss(self.predict(noisy, timesteps, images, labels), noise))

    def predict(self, noisy: Tensor, timesteps: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Return the predicted noise, the network knowing of ``images`` what it is conditioned on."""
        dropped = torch.rand(len(labels), device=labels.device) < LABEL_DROPOUT
        labels = labels.masked_fill(dropped, self.null_label)
        return self.network(noisy, timesteps, class_labels=labels).sample

    def on_train_batch_end(self, outputs: object, batch: object, batch_index: int) -> None:
        # A short warm-up of the average: early weights are far from the late ones.
        decay = min(EMA_DECAY, (1 + self.global_step) / (10 + self.global_step))
        with torch.no_grad():
            for kept, live in zip(self.average.parameters(), self.network.parameters(), strict=True):
                kept.lerp_(live, 1 - decay)

    def configure_optimizers(self) -> dict:
        return self.one_cycle(self.optimizer.build(self.network), self.optimizer.learning_rate, rising=0.05)


class RestorationTraining(DenoiserTraining):
    """Train a noise predictor that reads a degraded image as further channels of its input (Saharia et al. 2021, SR3).

    Args:
        degrade: images [B, C, H, W] in [-1, 1] → what is known of them, [B, C', H, W].
    """

    def __init__(
        self,
        network: nn.Module,
        alphas_cumprod: Tensor,
        steps: int,
        optimizer: Optimizer,
        degrade: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__(network, alphas_cumprod, 0, steps, optimizer)
        self.degrade = degrade

    def predict(self, noisy: Tensor, timesteps: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return self.network(torch.cat([noisy, self.degrade(images)], dim=1), timesteps).sample


class ClassifierTraining(Training):
    """Train a digit classifier by cross entropy on shifted and slightly noisy images."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        images, labels = batch
        shifts = torch.randint(-1, 2, (2,)).tolist()
        images = torch.roll(images, shifts, dims=(2, 3)) + 0.1 * torch.randn_like(images)
        return self.noted(F.cross_entropy(self.network(images), labels, label_smoothing=0.05))

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=CLASSIFIER_RATE, weight_decay=1e-3)
        return self.one_cycle(optimizer, CLASSIFIER_RATE, rising=0.1)


def fit(module: Training, images: Tensor, labels: Tensor, *, batch: int, seed: int) -> None:
    """Run ``module.steps`` steps of batches drawn with replacement, on the accelerator that is there."""
    dataset = torch.utils.data.TensorDataset(images, labels)
    sampler = torch.utils.data.RandomSampler(
        dataset,
        replacement=True,
        num_samples=batch * module.steps,
        generator=torch.Generator().manual_seed(seed),
    )
    loader = torch.utils.data.DataLoader(dataset, batch_size=batch, sampler=sampler)
    trainer = pl.Trainer(
        max_steps=module.steps,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
    )
    trainer.fit(module, loader)


def save_curve(path: Path, curve: Curve, every: int, **facts: object) -> None:
    """Write a training record: ``facts`` (command, seed, results) and the loss averaged over ``every`` steps."""
    losses = [loss for _, loss in curve]
    means = [
        [start + every, round(sum(losses[start : start + every]) / every, 6)]
        for start in range(0, len(losses) - every + 1, every)
    ]
    path.write_text(json.dumps({**facts, "loss": means}, indent=1) + "\n")
