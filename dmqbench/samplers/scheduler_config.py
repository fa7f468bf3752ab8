"""The noise schedule that the configuration of a diffusers scheduler states, read without torch; none is invented."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from dmqbench.samplers.processes import Consistency, Edm, Flow, Process
from dmqbench.samplers.timesteps import KINDS, SettingError, require_one_of

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")

_KEYS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
_LINEAR = dict(zip(_KEYS, (1000, 0.0001, 0.02, "linear"), strict=True))
_LINEAR_BY_DEFAULT = frozenset(
    f"{name}Scheduler"
    for name in (
        *("DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel", "PNDM", "DEISMultistep", "EulerDiscrete"),
        *("DPMSolverMultistep", "DPMSolverMultistepInverse", "DPMSolverSinglestep", "EulerAncestralDiscrete"),
        *("LMSDiscrete", "RePaint", "SASolver", "UniPCMultistep"),
    )
)
"""Schedulers of diffusers that have ``_LINEAR`` where their file leaves something out."""

_OTHER_PROCESSES = {
    "trained_betas": (None,),
    "use_flow_sigmas": (None, False),
    "timestep_type": (None, "discrete"),
}
"""Keys that change the process of training, and the values under which they do not."""

_RESCALED = "rescale_betas_zero_snr"

PROCESSES: Mapping[str, type[Process]] = {
    "FlowMatchEulerDiscreteScheduler": Flow,
    "EDMEulerScheduler": Edm,
    "EDMDPMSolverMultistepScheduler": Edm,
    "CMStochasticIterativeScheduler": Consistency,
}
"""Schedulers of diffusers that state a process over noise levels."""

_COMPUTED: Mapping[type[Process], Mapping[str, tuple[Any, ...]]] = {
    Flow: {
        **{f"use_{kind}_sigmas": (None, False) for kind in ("karras", "exponential", "beta")},
        **{"invert_sigmas": (None, False), "stochastic_sampling": (None, False), "shift_terminal": (None, 0)},
        "prediction_type": (None, "epsilon"),
    },
    Edm: {"prediction_type": (None, "epsilon", "v_prediction")},
    Consistency: {"prediction_type": (None, "epsilon")},
}
"""Keys that would change these processes, and the values under which they do not."""

_LEAST_LEVEL = math.log(2.0**-150)
"""Logarithm of what float32 rounds to 0."""


def schedule_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``NoiseSchedule`` takes.

    Raises:
        SettingError: the configuration states another process or none, such as that of score SDEs, or betas that leave
            ᾱ no number between 0 and 1.
    """
    allowed = f"allowed is a beta_schedule of {', '.join(BETA_SCHEDULES)}"
    for key, usual in _OTHER_PROCESSES.items():
        if config.get(key) not in usual:
            raise SettingError(key, f"is of another process: {allowed}")
    kind, name = config.get("beta_schedule"), config.get("_class_name")
    needed = [key for key in _KEYS if kind != "squaredcos_cap_v2" or not key.startswith("beta_")]
    lacking = [key for key in needed if key not in config]
    if lacking and name not in _LINEAR_BY_DEFAULT:
        raise SettingError("_class_name", f"has no {', '.join(lacking)}, and no noise schedule is invented: {allowed}")
    found = {**_LINEAR, **{key: config[key] for key in _KEYS if key in config}}
    require_schedule(**found)
    _require_levels(**found)
    return {**found, _RESCALED: True} if config.get(_RESCALED) else found


def read_process(config: Mapping[str, Any]) -> Process | None:
    """Return the process over noise levels that a scheduler's configuration states; None: it is of betas.

    Raises:
        SettingError: it states something that is not computed here.
    """
    kind = PROCESSES.get(config.get("_class_name", ""))
    if kind is None:
        return None
    for key, usual in _COMPUTED[kind].items():
        if config.get(key) not in usual:
            allowed = ", ".join(str(value) for value in usual if value is not None)
            raise SettingError(key, f"is not computed for {kind.title}: allowed is {allowed}")
    return kind(**{item.name: config[item.name] for item in fields(kind) if item.name in config})


def fitting_samplers(process: type[Process] | None, rescaled: bool = False) -> tuple[str, ...]:
    """Return the kinds of samplers for a process, or for betas, whose last ᾱ is 0 if they are ``rescaled``."""
    if process is not None:
        return process.samplers
    return tuple(kind for kind in KINDS if kind != "pndm" or not rescaled)


def require_fit(kind: str, prediction: str, process: type[Process] | None, rescaled: bool = False) -> None:
    """Raise a SettingError unless a sampler and a prediction can be over a process, or over betas."""
    require_one_of("sampler kind", kind, fitting_samplers(process, rescaled))
    if rescaled and prediction == "epsilon":
        problem = "'epsilon' with rescale_betas_zero_snr, where noise says nothing of the image"
        raise SettingError("prediction", f"{problem}: allowed are v_prediction, sample")


def require_schedule(
    num_train_timesteps: int,
    beta_start: float,
    beta_end: float,
    beta_schedule: str,
    rescale_betas_zero_snr: bool = False,
) -> None:
    """Raise a SettingError unless this can be a noise schedule."""
    require_one_of("beta_schedule", beta_schedule, BETA_SCHEDULES)
    if num_train_timesteps < 1:
        raise SettingError("num_train_timesteps", f"{num_train_timesteps}: allowed are 1 and more")
    if not 0 < beta_start <= beta_end < 1:
        problem = f"{beta_start}, beta_end {beta_end}: allowed are 0 < beta_start <= beta_end < 1"
        raise SettingError("beta_start", problem)


def _require_levels(num_train_timesteps: int, beta_start: float, beta_end: float, beta_schedule: str) -> None:
    """Refuse betas of which it is plain that ᾱ is 1 at the start in float32, or 0 at the end."""
    if beta_schedule == "squaredcos_cap_v2":
        return
    if 1 - beta_start > 1 - 2**-25:
        raise SettingError("beta_start", f"{beta_start}: allowed are betas that keep ᾱ below 1")
    middle = (beta_start + beta_end) / 2 if beta_schedule == "linear" else math.sqrt(beta_start * beta_end)
    mean = middle if beta_schedule == "linear" else (beta_start + middle + beta_end) / 3
    if num_train_timesteps * math.log1p(-mean) < _LEAST_LEVEL:  # at the end ᾱ is at most (1 − mean β)^T
        problem = f"{beta_end} over {num_train_timesteps} timesteps: allowed are betas that keep ᾱ above 0"
        raise SettingError("beta_end", problem)
