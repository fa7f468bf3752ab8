"""What a sampler does: a frozen, validated description that needs no torch."""

from dataclasses import dataclass
from typing import Literal

from dmqbench.samplers.timesteps import (
    KINDS,
    SIGMA_KINDS,
    SPACINGS,
    SettingError,
    require_one_of,
    require_strength,
    skipped_steps,
)

PREDICTIONS = ("epsilon", "v_prediction", "sample")
SOLVERS = ("euler", "heun")
SAMPLER_VERSION = 1
"""Raised whenever the numbers of any sampler change; part of every id that depends on a sampler."""

Kind = Literal["ddim", "ddpm", "dpmpp", "pndm", "flow", "edm", "consistency"]
Spacing = Literal["leading", "trailing", "linspace"]
Prediction = Literal["epsilon", "v_prediction", "sample"]
Solver = Literal["euler", "heun"]

_CLIPPING = ("ddim", "ddpm", "consistency")
_PREDICTIONS = {
    "pndm": ("epsilon", "v_prediction"),
    "edm": ("epsilon", "v_prediction"),
    "flow": ("epsilon",),
    "consistency": ("epsilon",),
}
"""What else than all of ``PREDICTIONS`` a sampler takes. Networks of the last two predict what their process says."""


@dataclass(frozen=True)
class SamplerSpec:
    """One sampler with its settings.

    Attributes:
        kind: "ddim" (Song et al. 2021), "ddpm" (ancestral, the smaller fixed variance, Ho et al. 2020),
            "dpmpp" (DPM-Solver++ 2M, midpoint, Lu et al. 2022) or "pndm" (Liu et al. 2022); over noise levels
            "flow" (Euler over flow matching), "edm" (Karras et al. 2022) or "consistency" (Song et al. 2023).
        steps: sampler steps, at least 1; see ``plan_timesteps`` for the number of network calls.
        eta: in [0, 1], DDIM only: 0 is deterministic, 1 adds as much noise as DDPM.
        spacing: how the timesteps are spread over the training timesteps, "leading" never with "flow"; "edm" and
            "consistency" are spread as their process says.
        steps_offset: added to the timesteps of "leading" spacing.
        clip_sample: None for off, else the predicted clean sample is clipped to ±this value; only "ddim", "ddpm" and
            "consistency" have it, as it breaks the linear recursion that the others rely on.
        skip_prk: "pndm" only: no Runge-Kutta start (Stable Diffusion's setting).
        final_alpha_one: "ddim" and "pndm" only: the last step goes to ᾱ = 1 instead of the ᾱ of timestep 0
            (``set_alpha_to_one`` in diffusers). "ddpm" and "dpmpp" always go to 1.
        prediction: what the network's output means: the noise, v = √ᾱ ε - √(1-ᾱ) x0, or the clean sample x0. With
            "flow", "edm" and "consistency" see ``processes``.
        strength: in (0, 1], the share of the steps that is taken, up to the last one: what editing an image does
            after noising it (SDEdit, Meng et al. 2022). Multi-step samplers begin their history there.
        solver: "heun", a second call corrects every step but the last, or "euler"; "heun" is for "edm" only.
        image_tokens: "flow" only: tokens that an image is for the network; read where the shift depends on them.
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
    solver: Solver = "euler"
    image_tokens: int | None = None
    version: int = SAMPLER_VERSION

    def __post_init__(self) -> None:
        require_one_of("sampler kind", self.kind, (*KINDS, *SIGMA_KINDS))
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
        self._check_fit()
        if self.version != SAMPLER_VERSION:
            raise SettingError(
                "sampler version", f"{self.version}: allowed is {SAMPLER_VERSION}, the one this code computes"
            )

    @property
    def skipped(self) -> int:
        """Steps that are left out at the beginning."""
        return skipped_steps(self.steps, self.strength)

    def _check_fit(self) -> None:
        """Whether the values that only some samplers have are those of this one."""
        kind = self.kind
        require_one_of("solver", self.solver, SOLVERS)
        if self.prediction not in (allowed := _PREDICTIONS.get(kind, PREDICTIONS)):
            raise SettingError("prediction", f"{self.prediction!r} with {kind}: allowed are {', '.join(allowed)}")
        if self.solver == "heun" and kind != "edm":
            raise SettingError("solver", f"'heun' with {kind}: allowed is euler, only edm has another")
        if self.spacing == "leading" and kind == "flow":
            raise SettingError("spacing", "'leading' with flow: allowed are linspace, trailing")
        if self.image_tokens is not None and (kind != "flow" or self.image_tokens < 1):
            problem = f"{self.image_tokens} with {kind}: allowed are null, or 1 and more with flow"
            raise SettingError("image_tokens", problem)

    def _check_clip(self, limit: float) -> None:
        if not limit > 0:
            raise SettingError("clip_sample", f"{limit}: allowed are positive numbers, or null for off")
        if self.kind not in _CLIPPING:
            problem = f"{limit} with {self.kind}: allowed is null, only {', '.join(_CLIPPING)} can clip"
            raise SettingError("clip_sample", problem)
