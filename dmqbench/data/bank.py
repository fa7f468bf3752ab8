"""The bank of full-precision trajectories that all methods calibrate on.

Each trajectory is followed once and every step is kept: O(T) network calls, where restarting for every step costs
O(T²).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CONDITION = "cond."


@dataclass(frozen=True)
class CalibrationBatch:
    """Inputs of one network call; the samples may be at different steps."""

    x: Tensor
    """[B, C, H, W]."""
    timestep: Tensor
    """Diffusion time, [B]; whole, or real over noise levels."""
    step: Tensor
    """Network-call index, int64 [B]."""
    cond: dict[str, Tensor]


@dataclass(frozen=True)
class Trajectories:
    """Full-precision trajectories of one stream.

    ``x`` [N, T+1, C, H, W] holds the state before every call and the final one, ``output`` [N, T, C, H, W] what the
    network predicted (guidance included), ``cond`` what it was conditioned on, ``timesteps`` the time of each call.
    """

    x: Tensor
    output: Tensor
    cond: dict[str, Tensor]
    timesteps: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.x)

    @property
    def calls(self) -> int:
        return len(self.timesteps)

    @property
    def points(self) -> int:
        """Number of (trajectory, call) pairs."""
        return len(self) * self.calls

    def at(self, points: Tensor) -> CalibrationBatch:
        """Return the network inputs of points 0..N·T−1, numbered call by call within a trajectory."""
        trajectory, call = points // self.calls, points % self.calls
        return CalibrationBatch(
            x=self.x[trajectory, call],
            timestep=torch.tensor(self.timesteps)[call],
            step=call,
            cond={name: value[trajectory] for name, value in self.cond.items()},
        )

    def spread(self, count: int) -> Tensor:
        """Return ``count`` points (or all), evenly over calls and, for each call, over different trajectories.

        Consecutive picks walk through the calls and shift the trajectory, so that no step and no trajectory is
        favoured.
        """
        count = min(count, self.points)
        pick = torch.arange(count)
        call = pick % self.calls
        return ((pick // self.calls + call) % len(self)) * self.calls + call

    def to_tensors(self) -> dict[str, Tensor]:
        conditions = {CONDITION + name: value for name, value in self.cond.items()}
        tensors = {"x": self.x, "output": self.output, "timesteps": torch.tensor(self.timesteps), **conditions}
        return {name: tensor.contiguous() for name, tensor in tensors.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "Trajectories":
        cond = {name.removeprefix(CONDITION): value for name, value in tensors.items() if name.startswith(CONDITION)}
        return cls(tensors["x"], tensors["output"], cond, tuple(tensors["timesteps"].tolist()))


def join(parts: Sequence[Trajectories]) -> Trajectories:
    """Concatenate trajectories that follow the same plan."""
    if len({part.timesteps for part in parts}) != 1:
        raise ValueError("trajectories of different samplers cannot be joined")
    return Trajectories(
        x=torch.cat([part.x for part in parts]),
        output=torch.cat([part.output for part in parts]),
        cond={name: torch.cat([part.cond[name] for part in parts]) for name in parts[0].cond},
        timesteps=parts[0].timesteps,
    )


@dataclass(frozen=True)
class TrajectoryBank:
    """The calibration and the validation trajectories of one model, sampler and calibration seed."""

    cal: Trajectories
    val: Trajectories
    seed: int
