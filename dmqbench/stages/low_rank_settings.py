"""Settings of fine-tuning with low-rank adapters."""

from dataclasses import dataclass

WEIGHT_SCALES, ACTIVATION_SCALES = "weight scales", "activation scales"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is trained by the network's predictions, and by which loss."""

    iterations: int
    """Optimizer steps."""
    batch: int
    """Samples of an iteration; whole windows, at least one."""
    rank: int
    """Of the adapters, at most."""
    adapters: str = "shared"
    """``shared``: one product for the flattened weight, its outer factor shared by the taps of a kernel (EfficientDM);
    ``per_tap``: one for every tap (MPQ-DM's published code)."""
    adapter_decay: float = 0.0
    """Weight decay of the adapters (AdamW); MPQ-DM's published code has 0.01."""
    adapter_travel: float
    """Adam's first rate times iterations, in steps of the layer's weight (its mean scale). The published rate,
    step/2500 over 16,000 iterations, is 6.4."""
    weight_scale_travel: float
    """The same for weight scales, in logarithms."""
    activation_scale_travel: float
    """The same for activation scales, in logarithms."""
    distillation: str
    """``relation`` of positions to each other (TRD), plain ``feature`` error, or ``none``."""
    distillation_weight: float
    """λ."""
    loss: str
    """``normalised``: the error of every call, and what is distilled, are divided by their held-out values before
    training, so that λ is the ratio of the two parts there; ``published``: sums of squared errors, which the last calls
    dominate, and of the rows of the relation map times λ."""
    clipping: str = "before_rounding"
    """Which values count as inside the grid when gradients are taken: see ``functional.CLIPPINGS``."""
    window: int
    """Consecutive calls that are computed together, and whose features are averaged."""
    checks: int
    """How often the held-out error of predictions is looked at; the best state is kept."""

    @property
    def distils(self) -> bool:
        return self.distillation != "none"

    @property
    def normalised(self) -> bool:
        return self.loss == "normalised"

    @property
    def scale_travels(self) -> dict[str, float]:
        return {WEIGHT_SCALES: self.weight_scale_travel, ACTIVATION_SCALES: self.activation_scale_travel}
