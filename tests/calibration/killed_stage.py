"""A calibration that kills itself: python killed_stage.py CHECKPOINT UNIT ITERATION."""

import os
import signal
import sys
from pathlib import Path

import torch
from workbench import MSE, WEIGHT_RECONSTRUCTION, workbench

from dmqbench.calibration.checkpoint import UnitCheckpoint
from dmqbench.calibration.run import run_stage
from dmqbench.stages.ranges import WeightRange
from dmqbench.stages.reconstruction import WeightReconstruction


class Killed(WeightReconstruction):
    """Gets SIGKILL at the start of one iteration."""

    end: tuple[str, int]

    def iterate(self, unit: str, iteration: int) -> torch.Tensor:
        if (unit, iteration) == self.end:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().iterate(unit, iteration)


if __name__ == "__main__":
    torch.set_num_threads(1)
    path, unit, iteration = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    bench = workbench()
    run_stage(WeightRange.of(bench, **MSE), "cpu", [])
    stage = Killed.of(bench, **WEIGHT_RECONSTRUCTION)
    stage.end = (stage.units()[unit], iteration)
    run_stage(stage, "cpu", [UnitCheckpoint(path)])
