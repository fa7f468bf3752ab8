"""What a sampler does: a frozen, validated description that needs no torch."""

from dataclasses import dataclass
from typing import Literal

from dmqbench.samplers.timesteps import KINDS, SPACINGS, SettingError, require_one_of, require_strength

PREDICTIONS = ("epsilon", "v_prediction", "sample")
SAMPLER_VERSION = 1
"""Raised whenever the numbers of any sampler change; part of every id that depends on a sampler."""

Kind = Literal["ddim", "ddpm", "dpmpp", "pndm"]
Spacing = Literal["leading", "trailing", "linspace"]
Prediction = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True)
class SamplerSpec:
    """One sampler with its settings.

    Attributes:
        kind: "ddim" (Song et al. 2021), "ddpm" (ancestral, the smaller fixed variance, Ho et al. 2020),
            "dpmpp" (DPM-Solver++ 2M, midpoint, Lu et al. 2022) or "pndm" (Liu et al. 2022).
        steps: sampler steps, at least 1; see ``plan_timesteps`` for the number of network calls.
        eta: in [0, 1], DDIM only: 0 is deterministic, 1 adds as much noise as DDPM.
        spacing: how the timesteps are spread over the training timesteps.
        steps_offset: added to the timesteps of "leading" spacing.
        clip_sample: None for off, else the predicted clean sample is clipped to ±this value; only "ddim"
            and "ddpm" have it, as it breaks the linear recursion that the other two rely on.
        skip_prk: "pndm" only: no Runge-Kutta start (Stable Diffusion's setting).
        final_alpha_one: "ddim" and "pndm" only: the last step goes to ᾱ = 1 instead of the ᾱ of timestep 0
            (``set_alpha_to_one`` in diffusers). The other two always go to 1.
        prediction: what the network's output means: the noise, v = √ᾱ ε - √(1-ᾱ) x0, or the clean sample x0.
        strength: in (0, 1], the share of the steps that is taken, up to the last one: what editing an image does
            after noising it (SDEdit, Meng et al. 2022). Multi-step samplers begin their history there.
        version: ``SAMPLER_VERSION``; any other is refused: an old configuration cannot name new numbers.

    Raises:
        SettingError: a value or a combination that the sampler does not have.
    """

    kind: Kind
    steps: int
    eta: float = 0.0
    spacing: Spacing = "leading"
    steps_offset: int = 0
    clip_sample: float | None = None
    skip_prk: bool = True
    final_alpha_one: bool = True
    prediction: Prediction = "epsilon"
    strength: float = 1.0
    version: int = SAMPLER_VERSION

    def __post_init__(self) -> None:
        require_one_of("sampler kind", self.kind, KINDS)
        require_one_of("spacing", self.spacing, SPACINGS)
        require_one_of("prediction", self.prediction, PREDICTIONS)
        if self.steps < 1:
            raise SettingError("steps", f"{self.steps}: allowed are 1 and more")
        if not 0 <= self.eta <= 1:
            raise SettingError("eta", f"{self.eta}: allowed are 0 to 1")
        if self.eta > 0 and self.kind != "ddim":
            raise SettingError("eta", f"{self.eta} with {self.kind}: allowed is 0, only ddim has an eta")
        require_strength(self.strength, self.kind, self.skip_prk)
        if self.clip_sample is not None:
            self._check_clip(self.clip_sample)
        if self.prediction == "sample" and self.kind == "pndm":
            raise SettingError("prediction", "'sample' with pndm: allowed are epsilon, v_prediction")
        if self.version != SAMPLER_VERSION:
            raise SettingError(
                "sampler version", f"{self.version}: allowed is {SAMPLER_VERSION}, the one this code computes"
            )

    def _check_clip(self, limit: float) -> None:
        if not limit > 0:
            raise SettingError("clip_sample", f"{limit}: allowed are positive numbers, or null for off")
        if self.kind not in ("ddim", "ddpm"):
            raise SettingError("clip_sample", f"{limit} with {self.kind}: allowed is null, only ddim and ddpm can clip")
