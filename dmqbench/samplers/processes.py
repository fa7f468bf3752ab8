"""Processes of training over noise levels σ: flow matching, EDM and consistency models. Needs no torch.

What a process states, and σ and timestep of every step, are those of diffusers' schedulers. Every σ is a number of
float32, as theirs are.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from dmqbench.samplers.levels import Level, Rounding, karras, linspace, single
from dmqbench.samplers.spec import SamplerSpec
from dmqbench.samplers.timesteps import SettingError


@dataclass(frozen=True)
class Flow:
    """x_σ = (1-σ) x_0 + σ ε, σ from 1 to 0 (Lipman et al. 2023; Liu et al. 2023).

    The network is told σ T and predicts the velocity ε - x_0. More time is spent on noisy states (Esser et al. 2024,
    eq. 23) by ``shift``, or by one that grows with the number of image tokens: its logarithm, or with "linear" itself,
    is on the line through ``base_shift`` and ``max_shift``.
    """

    samplers: ClassVar[tuple[str, ...]] = ("flow",)
    title: ClassVar[str] = "flow matching"
    noise_scale: ClassVar[float] = 1.0

    num_train_timesteps: int = 1000
    shift: float = 1.0
    use_dynamic_shifting: bool = False
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    time_shift_type: Literal["exponential", "linear"] = "exponential"

    def __post_init__(self) -> None:
        _require_positive(self, "num_train_timesteps", "shift", "base_shift", "max_shift")
        if not self.base_image_seq_len < self.max_image_seq_len:
            problem = f"{self.max_image_seq_len}: allowed are more than base_image_seq_len {self.base_image_seq_len}"
            raise SettingError("max_image_seq_len", problem)

    def sigmas(self, spec: SamplerSpec) -> tuple[float, ...]:
        """Return σ of every step.

        "linspace" is the scheduler's own grid. It ends at the smallest σ of training, which a fixed shift has moved
        already, and is shifted again. "trailing" is 1, 1 - 1/N, …, 1/N, which the pipeline of FLUX hands over.
        """
        shifted = self._shifting(spec.image_tokens)
        if spec.spacing == "trailing":
            return tuple(shifted(single(sigma), single) for sigma in linspace(1.0, 1 / spec.steps, spec.steps))
        ends = [1.0, single(1 / self.num_train_timesteps)]
        if not self.use_dynamic_shifting:
            ends = [shifted(sigma, single) for sigma in ends]
        times = linspace(*(sigma * self.num_train_timesteps for sigma in ends), spec.steps)
        return tuple(single(shifted(time / self.num_train_timesteps, float)) for time in times)

    def _shifting(self, image_tokens: int | None) -> Callable[[float, Rounding], float]:
        """(σ, how every operation is rounded) → σ shifted."""
        if not self.use_dynamic_shifting:
            return lambda sigma, r: r(r(r(self.shift) * sigma) / r(1 + r(r(self.shift - 1) * sigma)))
        if image_tokens is None:
            raise SettingError("image_tokens", "must be given: the shift of this model depends on the size of images")
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        mu = image_tokens * slope + (self.base_shift - slope * self.base_image_seq_len)
        factor = math.exp(mu) if self.time_shift_type == "exponential" else mu
        return lambda sigma, r: r(r(factor) / r(r(factor) + r(r(1 / sigma) - 1)))

    def last(self) -> float:
        """σ of the final state."""
        return 0.0

    def timestep(self, sigma: float) -> float:
        return single(sigma * self.num_train_timesteps)

    def level(self, sigma: float) -> Level:
        return Level.of(1 - sigma, sigma)


@dataclass(frozen=True)
class Edm:
    """x_σ = x_0 + σ ε with a preconditioned network F (Karras et al. 2022, table 1).

    D(x; σ) = c_skip x + c_out F(c_in x; ln(σ)/4) predicts x_0; a network of "v_prediction" has the other sign.
    """

    samplers: ClassVar[tuple[str, ...]] = ("edm",)
    title: ClassVar[str] = "EDM"

    num_train_timesteps: int = 1000
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    rho: float = 7.0
    sigma_schedule: Literal["karras", "exponential"] = "karras"

    def __post_init__(self) -> None:
        _require_sigmas(self)

    @property
    def noise_scale(self) -> float:
        """Standard deviation of the first state of generation, as diffusers has it."""
        return math.sqrt(self.sigma_max**2 + 1)

    def sigmas(self, spec: SamplerSpec) -> tuple[float, ...]:
        if self.sigma_schedule == "exponential":
            if spec.steps < 2:
                raise SettingError("steps", f"{spec.steps} over exponential noise levels: allowed are 2 and more")
            ends = math.log(self.sigma_max), math.log(self.sigma_min)
            return tuple(single(math.exp(log)) for log in linspace(*ends, spec.steps))
        ramps = linspace(0.0, 1.0, spec.steps)
        return tuple(single(karras(ramp, self.sigma_max, self.sigma_min, self.rho)) for ramp in ramps)

    def last(self) -> float:
        return 0.0

    def timestep(self, sigma: float) -> float:
        return single(0.25 * math.log(sigma))

    def level(self, sigma: float) -> Level:
        return Level.of(1.0, sigma)

    def input_scale(self, sigma: float) -> float:
        """c_in."""
        return 1 / math.sqrt(sigma**2 + self.sigma_data**2)


@dataclass(frozen=True)
class Consistency:
    """x_σ = x_0 + σ ε with a network that goes to x_0 in one call (Song et al. 2023, appendix C).

    Between steps the predicted x_0 is noised again, to the next of ``num_train_timesteps`` levels.
    """

    samplers: ClassVar[tuple[str, ...]] = ("consistency",)
    title: ClassVar[str] = "a consistency model"

    num_train_timesteps: int = 40
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    rho: float = 7.0
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        _require_sigmas(self)
        if self.num_train_timesteps < 2:
            raise SettingError("num_train_timesteps", f"{self.num_train_timesteps}: allowed are 2 and more")

    @property
    def noise_scale(self) -> float:
        return self.sigma_max

    def sigmas(self, spec: SamplerSpec) -> tuple[float, ...]:
        count = self.num_train_timesteps
        if spec.steps > count:
            raise SettingError("steps", f"{spec.steps}: allowed are 1 to {count}, the noise levels of the model")
        ramps = (index * (count // spec.steps) / (count - 1) for index in range(spec.steps))
        return tuple(single(karras(ramp, self.sigma_max, self.sigma_min, self.rho)) for ramp in ramps)

    def last(self) -> float:
        return self.sigma_min

    def timestep(self, sigma: float) -> float:
        return single(250 * math.log(sigma + 1e-44))

    def level(self, sigma: float) -> Level:
        return Level.of(1.0, sigma)

    def input_scale(self, sigma: float) -> float:
        return 1 / math.sqrt(sigma**2 + self.sigma_data**2)


Process = Flow | Edm | Consistency
OF_SAMPLER: dict[str, type[Process]] = {"flow": Flow, "edm": Edm, "consistency": Consistency}


def _require_positive(process: Process, *keys: str) -> None:
    for key in keys:
        if not getattr(process, key) > 0:
            raise SettingError(key, f"{getattr(process, key)}: allowed are positive numbers")


def _require_sigmas(process: Edm | Consistency) -> None:
    _require_positive(process, "num_train_timesteps", "sigma_min", "sigma_data", "rho")
    if not process.sigma_min < process.sigma_max:
        raise SettingError("sigma_max", f"{process.sigma_max}: allowed are numbers above sigma_min {process.sigma_min}")


def step_sigmas(spec: SamplerSpec, process: Process) -> tuple[float, ...]:
    """Return σ before every step that is taken, and of the final state."""
    return (*process.sigmas(spec)[spec.skipped :], process.last())


def call_sigmas(spec: SamplerSpec, process: Process) -> tuple[float, ...]:
    """Return σ of every network call: Heun's method evaluates each but the first twice."""
    first, *others = step_sigmas(spec, process)[:-1]
    return (first, *(sigma for sigma in others for _ in range(2 if spec.solver == "heun" else 1)))


def process_timesteps(spec: SamplerSpec, process: Process) -> tuple[float, ...]:
    """Return the timestep of every network call, in the order of the calls."""
    return tuple(map(process.timestep, call_sigmas(spec, process)))


def stated(process: Process) -> dict[str, Any]:
    """Return the configuration of a scheduler of diffusers that states the process."""
    names = {Flow: "FlowMatchEulerDiscrete", Edm: "EDMEuler", Consistency: "CMStochasticIterative"}
    return {"_class_name": f"{names[type(process)]}Scheduler", **asdict(process)}
