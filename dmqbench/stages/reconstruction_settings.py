"""Settings of block reconstruction: of rounding, and of activation steps."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ReconstructionSettings:
    """How the parameters of one unit are trained."""

    iterations: int
    """Adam steps of every unit."""
    batch: int
    """Samples in one step."""
    samples: int
    """Bank points whose inputs and targets are kept."""
    learning_rate: float
    """Of Adam; for activation steps, in units of the smallest of a quantizer's steps."""
    capture_mib: int
    """Bound in MiB on the targets of several units that are kept from one pass; changes no number."""


@dataclass(frozen=True, kw_only=True)
class WeightReconstructionSettings(ReconstructionSettings):
    """And how rounding is driven to 0 or 1 (AdaRound, Nagel et al. 2020, eq. 24)."""

    regularization: float
    """λ, the weight of the regularizer beside the output error."""
    warmup: float
    """Share of the iterations before the regularizer sets in, 0 to 1."""
    beta_start: float
    """The regularizer's exponent where it sets in; it goes on linearly."""
    beta_end: float
    """The regularizer's exponent at the end."""
    counted_from: int = 0
    """What the first iteration counts as where the regularizer's exponent is looked up; the published codes say 1."""
    regularized_groups: str = "all"
    """Input groups of a split layer that are regularized: ``all``, or the ``first`` as in DMQ's published code."""


@dataclass(frozen=True, kw_only=True)
class ActivationReconstructionSettings(ReconstructionSettings):
    """And under which error."""

    clipping: str = "before_rounding"
    """Which values count as inside the grid when gradients are taken: see ``functional.CLIPPINGS``."""
    exponent: float
    """p of the output error |error|^p; Q-Diffusion has 2.4."""
