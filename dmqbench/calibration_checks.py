"""Checks of how a model is calibrated: activation ranges, calibration points, and another plan than that of sampling.

Imports neither torch nor Hydra.
"""

from dataclasses import replace

from dmqbench.config_error import ConfigError, closest
from dmqbench.ids import needs_match, timesteps
from dmqbench.quant.spec import group_size
from dmqbench.schema import FULL_PRECISION, CalibrationConfig, Job, MethodConfig, SamplerConfig

WHOSE_PARAMETERS = {
    "nearest": "the activation parameters of the calibrated call at the nearest timestep",
    "interpolate": "activation parameters between those of the two calibrated calls around its timestep",
}
"""What every sampled call has, by ``calibration.match``."""


def check_ranges(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a word that is neither among ``allowed``, whose last stands for all groups, nor a group."""
    try:
        if value not in allowed[:-1]:
            group_size(value)
    except ValueError:
        digits = "".join(filter(str.isdecimal, value))[:9]
        nearest = f"group{max(1, int(digits))}" if digits else closest(value, allowed)
        raise ConfigError(key, value, allowed, nearest=nearest) from None


def check_points(samples: int, ranges: str, calls: int) -> None:
    """Every group of calls needs a calibration point; the bank spreads them over the calls, the first ones first."""
    size = group_size(ranges)
    if size is None:
        return
    groups = -(-calls // size)
    needed = (groups - 1) * size + 1
    if samples < needed:
        what = "network calls" if size == 1 else "groups of network calls"
        problem = f"leaves some of the {groups} {what} without a calibration point, and bits.ranges={ranges} needs one"
        raise ConfigError("budget.samples", samples, [needed], problem)


def check_windows(method: MethodConfig, calls: int) -> None:
    """Refuse a window of consecutive network calls that is longer than the trajectories."""
    for stage in method.stages:
        window = stage.settings.get("window", 1)
        if window > calls:
            problem = f"is longer than the trajectories, of {calls} network {'call' if calls == 1 else 'calls'}"
            raise ConfigError(f"method.{stage.name}.window", window, [f"1 to {calls}"], problem, calls)


def resolved_calibration(calibration: CalibrationConfig, sampler: SamplerConfig) -> CalibrationConfig:
    """The same calibration, null wherever it is what the sampler is."""
    same = {key: None for key, value in calibration.changes.items() if getattr(sampler, key) == value}
    return replace(calibration, **same)  # type: ignore[arg-type]


def check_plans(job: Job) -> None:
    """Refuse to sample at timesteps for which a calibrated model has no parameters, unless told whose to take."""
    if job.calibration.match != "refuse" or not needs_match(job):
        return
    plans = (timesteps(each, job.model, job.strength) for each in (job.calibration_sampler, job.sampler))
    kept, wanted = map(_shown, plans)
    problem = (
        f"calibrates {kept}, and sampler.steps={job.sampler.steps} samples with {wanted}, for which "
        f"bits.ranges={job.bits.ranges} has no parameters; calibration.match=nearest takes the nearest timestep's, "
        f"calibration.match=interpolate those between two"
    )
    raise ConfigError("calibration.steps", job.calibration.steps, [job.sampler.steps], problem)


def check_trained(job: Job) -> None:
    """Refuse a last stage that would be the name of the row and train nothing."""
    for stage in job.method.stages:
        scales_alone = stage.settings.get("recipe") == "scales"
        if stage.name == "trajectory_reconstruction" and scales_alone and job.bits.activation == FULL_PRECISION:
            problem = "trains activation scales, and bits.activation=32 has none"
            raise ConfigError(f"method.{stage.name}.recipe", "scales", ["joint"], problem)


def _shown(plan: tuple[int, ...]) -> str:
    return f"{len(plan)} network calls at timesteps {plan[0]} to {plan[-1]}"
