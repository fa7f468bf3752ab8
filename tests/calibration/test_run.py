"""What is left when a stage has run."""

import gc
import weakref

from workbench import MSE, WEIGHT_RECONSTRUCTION, workbench

from dmqbench.calibration.run import run_stage
from dmqbench.stages.ranges import WeightRange
from dmqbench.stages.reconstruction import WeightReconstruction


def test_a_stage_goes_with_its_last_user_and_needs_no_garbage_collection():
    """Beside the next one would lie what it was trained with: captured inputs, gradients, the optimizer's state."""
    bench = workbench()
    run_stage(WeightRange.of(bench, **MSE), "cpu", [])
    gc.disable()
    try:
        stage = WeightReconstruction.of(bench, **WEIGHT_RECONSTRUCTION)
        run_stage(stage, "cpu", [])
        assert stage.state()
        left = weakref.ref(stage)
        del stage
        assert left() is None
    finally:
        gc.enable()
