"""The timesteps at which a sampler calls the network, from the standard library alone.

Ids of samples hash this list, and a job that is already done is answered without importing torch.

The spacings are those of Table 2 in Lin et al., "Common Diffusion Noise Schedules and Sample Steps are
Flawed" (2023). The lists equal ``scheduler.timesteps`` of diffusers, with one exception: for some step counts
(61 of 1000 is the first) rounding makes its "trailing" list end with a surplus timestep -1, which does not
exist.
"""

from collections.abc import Sequence
from itertools import pairwise

KINDS = ("ddim", "ddpm", "dpmpp", "pndm")
"""Samplers over the timesteps of a schedule of betas, which this file places."""

SIGMA_KINDS = ("flow", "edm", "consistency")
"""Samplers over noise levels σ, which ``processes`` places."""

SPACINGS = ("leading", "trailing", "linspace")
RUNGE_KUTTA_STEPS = 3
"""PNDM takes its first three steps with four network calls each."""


class SettingError(ValueError):
    """A setting of a sampler is not possible: ``field`` is which; ``str`` is one line that begins with it."""

    def __init__(self, field: str, problem: str) -> None:
        self.field = field
        super().__init__(field, problem)

    def __str__(self) -> str:
        return " ".join(self.args)


def require_one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise a SettingError that names the value and what is allowed, unless ``value`` is among ``allowed``."""
    if value not in allowed:
        raise SettingError(name, f"{value!r}: allowed are {', '.join(allowed)}")


def require_strength(strength: float, kind: str, skip_prk: bool) -> None:
    """Raise a SettingError unless a sampler of this kind can take the last share ``strength`` of its steps."""
    if not 0 < strength <= 1:
        raise SettingError("strength", f"{strength}: allowed are 0 to 1, without 0")
    if strength < 1 and kind == "pndm" and not skip_prk:
        raise SettingError("strength", f"{strength} with pndm and its Runge-Kutta start: allowed is 1, or skip_prk")


def skipped_steps(steps: int, strength: float) -> int:
    """Return how many steps a sampler leaves out at its beginning: all but the share ``strength``, rounded."""
    return steps - max(1, round(strength * steps))


def plan_timesteps(
    kind: str,
    steps: int,
    spacing: str,
    steps_offset: int,
    num_train_timesteps: int,
    skip_prk: bool = True,
    strength: float = 1.0,
) -> tuple[int, ...]:
    """Return the timestep of every network call, in the order of the calls, each in 0..``num_train_timesteps`` − 1.

    The other arguments are those of ``SamplerSpec``; "trailing" and "linspace" ignore ``steps_offset``, as in
    diffusers. PNDM takes more calls than steps: one more with ``skip_prk``, nine more without. ``strength`` is rounded
    to whole steps, at least one, and what is left is planned as if the sampler began there.

    They decrease strictly, but for "pndm", which evaluates some timesteps twice.

    Raises:
        SettingError: an argument is out of its range, or the timesteps would repeat or leave their range.

    >>> plan_timesteps("ddim", 4, "leading", 0, 1000)
    (750, 500, 250, 0)
    >>> plan_timesteps("ddim", 4, "leading", 0, 1000, strength=0.5)
    (250, 0)
    """
    _require_ranges(kind, steps, spacing, steps_offset, num_train_timesteps)
    require_strength(strength, kind, skip_prk)
    ends_at_noise = kind == "dpmpp" and spacing != "trailing"  # the last of one timestep more is never called
    grid = _grid(spacing, steps + ends_at_noise, steps_offset, num_train_timesteps)
    timesteps = grid[skipped_steps(steps, strength) : steps]
    if kind == "pndm":
        timesteps = _pndm(timesteps, skip_prk, half_step=num_train_timesteps // steps // 2)
    if timesteps[0] >= num_train_timesteps:
        first, last = timesteps[0], num_train_timesteps - 1
        problem = f"{steps_offset} with {steps} steps: the first timestep would be {first}, allowed are 0 to {last}"
        raise SettingError("steps_offset", problem)
    if kind != "pndm" and len(set(timesteps)) < len(timesteps):
        allowed = f"allowed are fewer than {num_train_timesteps}"
        raise SettingError("steps", f"{steps} with {kind} and {spacing} spacing: timesteps repeat, {allowed}")
    return tuple(timesteps)


def _require_ranges(kind: str, steps: int, spacing: str, steps_offset: int, num_train_timesteps: int) -> None:
    require_one_of("sampler kind", kind, KINDS)
    require_one_of("spacing", spacing, SPACINGS)
    if not 1 <= steps <= num_train_timesteps:
        allowed = f"allowed are 1 to {num_train_timesteps}, the training timesteps of the model"
        raise SettingError("steps", f"{steps}: {allowed}")
    if steps_offset < 0:
        raise SettingError("steps_offset", f"{steps_offset}: allowed are 0 and more")


def _grid(spacing: str, count: int, offset: int, num_train_timesteps: int) -> list[int]:
    """Return ``count`` evenly spaced timesteps, largest first."""
    if spacing == "leading":
        stride = num_train_timesteps // count
        return [offset + index * stride for index in reversed(range(count))]
    if spacing == "trailing":
        # Rounded as numpy.arange(T, 0, -T / count) is: it multiplies the difference of its first two values.
        stride = (num_train_timesteps - num_train_timesteps / count) - num_train_timesteps
        return [round(num_train_timesteps + index * stride) - 1 for index in range(count)]
    stride = (num_train_timesteps - 1) / max(1, count - 1)
    return [round(index * stride) for index in reversed(range(count))]


def _pndm(grid: list[int], skip_prk: bool, half_step: int) -> list[int]:
    if skip_prk:
        return grid[:1] + grid[1:2] + grid[1:]
    if len(grid) <= RUNGE_KUTTA_STEPS:
        raise SettingError("steps", f"{len(grid)} without skip_prk: allowed are {RUNGE_KUTTA_STEPS + 1} and more")
    timesteps = []
    for start, end in pairwise(grid[: RUNGE_KUTTA_STEPS + 1]):
        timesteps += [start, end + half_step, end + half_step, end]
    return timesteps + grid[RUNGE_KUTTA_STEPS:]
