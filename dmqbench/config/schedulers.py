"""What a diffusers scheduler says of sampling, as values of ``sampler``."""

from collections.abc import Mapping
from typing import Any

from dmqbench.config.errors import ConfigError, shown
from dmqbench.samplers.scheduler_config import PROCESSES, fitting_samplers

_SAMPLERS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "PNDMScheduler": "pndm",
    "DPMSolverMultistepScheduler": "dpmpp",
    "FlowMatchEulerDiscreteScheduler": "flow",
    "EDMEulerScheduler": "edm",
    "CMStochasticIterativeScheduler": "consistency",
}
_COMPUTED: Mapping[str, Mapping[str, Any]] = {
    "ddim": {"thresholding": False},
    "ddpm": {"thresholding": False, "variance_type": "fixed_small"},
    **{"pndm": {}, "flow": {}, "edm": {"final_sigmas_type": "zero"}, "consistency": {}},
    "dpmpp": {
        **{"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "thresholding": False},
        **{"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False},
        **{"use_lu_lambdas": False, "use_flow_sigmas": False, "euler_at_final": False, "final_sigmas_type": "zero"},
    },
}
"""Settings of a scheduler without a key in ``sampler``, and the value under which calibration follows it."""


def sampler_overrides(scheduler: Any, wanted: str | None) -> list[str]:
    """Return the overrides for the sampler that makes calibration trajectories.

    Args:
        scheduler: of diffusers.
        wanted: the sampler asked for; None: the scheduler's own, whose settings must be ones that it computes.

    Raises:
        ConfigError: the scheduler is none of this project's samplers, or has settings that they do not compute.
    """
    name, config = type(scheduler).__name__, dict(scheduler.config)
    own = _SAMPLERS.get(name)
    if wanted not in (None, own):
        return [f"sampler={wanted}"]
    if own is None:
        problem = "is no sampler of dmqbench; name the one to calibrate with, and call the pipeline as ever afterwards"
        allowed = fitting_samplers(PROCESSES.get(name), bool(config.get("rescale_betas_zero_snr")))
        raise ConfigError("sampler", name, allowed, problem, nearest=allowed[0])
    for key, value in not_computed(own, config).items() if wanted is None else ():
        problem = f"is not computed by the sampler {own}; say sampler={own} to calibrate without it"
        raise ConfigError(f"{name}.{key}", value, [_COMPUTED[own][key]], problem)
    return [f"sampler={own}", *as_overrides(_settings(own, config))]


def not_computed(sampler: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in a scheduler's configuration that ``sampler`` does not compute."""
    return {key: config[key] for key, value in _COMPUTED[sampler].items() if config.get(key, value) != value}


def as_overrides(settings: Mapping[str, Any]) -> list[str]:
    return [f"sampler.{key}={shown(value)}" for key, value in settings.items()]


def _settings(own: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the sampler ``own`` that the scheduler's configuration fixes."""
    if own == "flow":
        return {"spacing": "linspace"}
    if own == "edm":
        return {"solver": "euler"}
    if own == "consistency":
        return {"clip_sample": 1.0 if config["clip_denoised"] else None}
    return stated_settings(own, config)


_STATED = {
    "spacing": "timestep_spacing",
    "steps_offset": "steps_offset",
    "clip_sample": "clip_sample",
    "final_alpha_one": "set_alpha_to_one",
    "skip_prk": "skip_prk_steps",
}
"""Key of ``sampler`` → what schedulers over betas call it."""

_READ = {
    "ddim": ("spacing", "steps_offset", "clip_sample", "final_alpha_one"),
    "ddpm": ("spacing", "steps_offset", "clip_sample"),
    "dpmpp": ("spacing", "steps_offset"),
    "pndm": ("spacing", "steps_offset", "final_alpha_one", "skip_prk"),
}
"""Samplers over betas, and which of these keys change what they compute."""


def stated_settings(sampler: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of ``sampler`` that a scheduler's configuration states; none for one over noise levels."""
    found = {key: config[_STATED[key]] for key in _READ.get(sampler, ()) if _STATED[key] in config}
    if "clip_sample" in found:
        found["clip_sample"] = float(config.get("clip_sample_range", 1.0)) if found["clip_sample"] else None
    return found
