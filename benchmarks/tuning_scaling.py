"""How far scales may move under ``budget=quick``: chosen by the held-out errors of the layers on the validation stream.

Each point learns on ``cal`` and compares the layers' output errors on ``val`` with those without scaling; it takes
about a minute on one core.

Run: python -m benchmarks.tuning_scaling
"""

import math

import torch

from benchmarks.equivalent_scaling import SETTINGS, workbench
from dmqbench.calibration.run import run_stage
from dmqbench.stages.equivalent_scaling import EquivalentScaling

POINTS = ((100, 1.0), (100, 3.0), (100, 6.0), (50, 3.0))
"""(iterations, travel)."""


def main() -> None:
    torch.set_num_threads(1)
    print("| iterations | travel | held-out error left | layers made worse |\n|---|---|---|---|", flush=True)
    for iterations, travel in POINTS:
        varied = {"iterations": iterations, "travel": travel, "weighting": "uniform"}
        stage = EquivalentScaling.of(workbench(), **{**SETTINGS, **varied}, schedule="joint")
        run_stage(stage, "cpu", [])
        layers = stage.findings()["layers"].values()
        left = [layer["held_out_error"] / layer["held_out_error_before"] for layer in layers]
        mean = math.exp(sum(map(math.log, left)) / len(left))
        print(f"| {iterations} | {travel:g} | {mean:.3f} | {sum(one > 1 for one in left)} of {len(left)} |", flush=True)


if __name__ == "__main__":
    main()
