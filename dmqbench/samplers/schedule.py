"""The noise schedule that a model was trained with."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from dmqbench.samplers import processes
from dmqbench.samplers.processes import Process
from dmqbench.samplers.scheduler_config import read_process, require_schedule, schedule_settings

MAX_COSINE_BETA = 0.999


@dataclass(frozen=True)
class NoiseSchedule:
    """Forward process x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε over timesteps 0..T-1, with ᾱ_t = Π_{i≤t} (1-β_i).

    Attributes:
        num_train_timesteps: T, at least 1.
        beta_start, beta_end: β_0 and β_{T-1}, in (0, 1); not used by "squaredcos_cap_v2".
        beta_schedule: "linear" in β (Ho et al. 2020), "scaled_linear" in √β (latent diffusion), or
            "squaredcos_cap_v2" (Nichol and Dhariwal 2021, eq. 17, β capped at 0.999).
        rescale_betas_zero_snr: √ᾱ is shifted and scaled so that ᾱ of the last timestep is 0 (Lin et al. 2023,
            algorithm 1). There noise is all that is seen, so that a network must predict something else.

    Raises:
        ValueError: a value outside its range.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    rescale_betas_zero_snr: bool = False

    def __post_init__(self) -> None:
        require_schedule(**asdict(self))

    @classmethod
    def from_scheduler_config(cls, config: Mapping[str, Any]) -> "NoiseSchedule":
        """Return the schedule that a diffusers scheduler configuration states; ValueError if that is none of ours."""
        return cls(**schedule_settings(config))

    def alphas_cumprod(self) -> Tensor:
        """Return ᾱ, float64 [T], strictly between 0 and 1 but for a rescaled end: exactly diffusers' float32 table.

        The rounding is kept because 1-ᾱ is about 1e-4 at the first timesteps: a table accurate to float64
        would differ there, by some 1e-4 of 1-ᾱ, from the one that published numbers rest on.
        """
        betas = _rescaled(self._betas()) if self.rescale_betas_zero_snr else self._betas()
        table = (1 - betas).double().cumprod(0).float().double()
        if not ((table[-1] > 0 or self.rescale_betas_zero_snr) and table[0] < 1):
            raise ValueError(f"betas {betas[0]:g} to {betas[-1]:g}: allowed are those that keep ᾱ between 0 and 1")
        return table

    def _betas(self) -> Tensor:
        count = self.num_train_timesteps
        if self.beta_schedule == "linear":
            return torch.linspace(self.beta_start, self.beta_end, count, dtype=torch.float32)
        if self.beta_schedule == "scaled_linear":
            return torch.linspace(self.beta_start**0.5, self.beta_end**0.5, count, dtype=torch.float32) ** 2
        level = [math.cos((index / count + 0.008) / 1.008 * math.pi / 2) ** 2 for index in range(count + 1)]
        betas = [min(1 - after / before, MAX_COSINE_BETA) for before, after in pairwise(level)]
        return torch.tensor(betas, dtype=torch.float32)


def _rescaled(betas: Tensor) -> Tensor:
    roots = (1 - betas).cumprod(0).sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    alphas_cumprod = ((roots - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])


Schedule = NoiseSchedule | Process
"""What a network was trained with."""


def read_schedule(config: Mapping[str, Any]) -> Schedule:
    """Return what a diffusers scheduler configuration states; ValueError if that is none of ours."""
    return read_process(config) or NoiseSchedule.from_scheduler_config(config)


def stated(schedule: Schedule) -> dict[str, Any]:
    """Return a configuration that states the schedule, and as little else as can be."""
    if not isinstance(schedule, NoiseSchedule):
        return processes.stated(schedule)
    return {key: value for key, value in asdict(schedule).items() if value is not False}
