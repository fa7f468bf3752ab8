"""The sampler that follows a pipeline's scheduler, as overrides of the configuration."""

from collections.abc import Mapping
from typing import Any

from dmqbench.config.errors import ConfigError

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
        problem = "is no sampler of dmqbench; name the one to calibrate with"
        raise ConfigError("sampler", name, _SAMPLERS.values(), problem)
    for key, value in _COMPUTED[own].items():
        if wanted is None and config.get(key, value) != value:
            problem = f"is not computed by the sampler {own}; say sampler={own} to calibrate without it"
            raise ConfigError(f"{name}.{key}", config[key], [value], problem)
    return [f"sampler={own}", *(f"sampler.{key}={value}" for key, value in _settings(own, config).items())]


def _settings(own: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the sampler ``own`` that the scheduler's configuration fixes."""
    if own == "flow":
        return {"spacing": "linspace"}
    if own == "edm":
        return {"solver": "euler"}
    if own == "consistency":
        return {"clip_sample": 1.0 if config["clip_denoised"] else "null"}
    values = {"spacing": config["timestep_spacing"], "steps_offset": config["steps_offset"]}
    if own in ("ddim", "ddpm"):
        values["clip_sample"] = config["clip_sample_range"] if config["clip_sample"] else "null"
    if own in ("ddim", "pndm"):
        values["final_alpha_one"] = config["set_alpha_to_one"]
    if own == "pndm":
        values["skip_prk"] = config["skip_prk_steps"]
    return values
