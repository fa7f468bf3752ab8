"""What is computed in portions, with blocks computed again and inputs in files, is what is computed at once."""

import gc
import weakref
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from rollouts import SETTINGS as TRAJECTORIES
from stages.test_outlier_allocation import SETTINGS as ALLOCATION
from tiny import smallest_unet
from tuning import SETTINGS as TUNING
from workbench import (
    ACTIVATION_RANGE,
    ACTIVATION_RECONSTRUCTION,
    EQUIVALENT_SCALING,
    MSE,
    WEIGHT_RECONSTRUCTION,
    adapter_of,
    recompute_blocks_,
    topology_of,
    workbench,
)

from dmqbench.calibration.capture import capture_inputs
from dmqbench.calibration.offloading import weights_elsewhere
from dmqbench.calibration.rows import Shelf
from dmqbench.calibration.run import run_stage
from dmqbench.models.portions import Portions
from dmqbench.quant.spec import BitWidth, StepGroups
from dmqbench.stages.activation_ema import ActivationEma
from dmqbench.stages.bias_correction import BiasCorrection
from dmqbench.stages.equivalent_scaling import EquivalentScaling
from dmqbench.stages.low_rank_tuning import LowRankTuning
from dmqbench.stages.outlier_allocation import OutlierAllocation
from dmqbench.stages.power_of_two_scaling import PowerOfTwoScaling
from dmqbench.stages.ranges import ActivationRange, WeightRange
from dmqbench.stages.reconstruction import ActivationReconstruction, WeightReconstruction
from dmqbench.stages.trajectory_reconstruction import TrajectoryReconstruction

AT_ONCE = 3
POWERS = {"samples": 16, "batch": 8, "depth": 3, "selection": "vote", "agreement": 0.85, "layers": "all"}
EMA = {"samples": 16, "ema_batch": 4, "later_batch": 4, "later_passes": 0, "momentum": 0.95}
EMA |= {"carry": False, "skip_part": "moving"}

STAGES: dict[str, tuple[Any, dict[str, Any], bool]] = {
    "weight_reconstruction": (WeightReconstruction, WEIGHT_RECONSTRUCTION, True),
    "activation_reconstruction": (ActivationReconstruction, ACTIVATION_RECONSTRUCTION, True),
    "activation_range": (ActivationRange, ACTIVATION_RANGE, True),
    "power_of_two_scaling": (PowerOfTwoScaling, POWERS, True),
    "low_rank_tuning": (LowRankTuning, TUNING, True),
    "low_rank_tuning that distils": (LowRankTuning, TUNING | {"distillation": "relation"}, True),
    "trajectory_reconstruction": (TrajectoryReconstruction, TRAJECTORIES, True),
    "bias_correction": (BiasCorrection, {"samples": 16, "batch": 8}, True),
    "equivalent_scaling from memory": (EquivalentScaling, EQUIVALENT_SCALING | {"schedule": "cached"}, True),
    # Which learn of a whole batch.
    "equivalent_scaling": (EquivalentScaling, EQUIVALENT_SCALING, False),
    "outlier_allocation": (OutlierAllocation, ALLOCATION, False),
    "activation_ema": (ActivationEma, EMA, False),
}


def outcome(stage_type, settings, portions, seen):
    """The state that a stage leaves and what it records, behind ranges that are the same for all."""
    bench = workbench(BitWidth(3, 6), steps=StepGroups.per_step(4), guidance=2.0)
    elsewhere = weights_elsewhere(bench.network, Shelf(moved=True)) if portions.offloaded else nullcontext()
    with elsewhere:
        return of_stage(bench, stage_type, settings, portions, seen)


def of_stage(bench, stage_type, settings, portions, seen):
    run_stage(WeightRange.of(bench, **MSE), "cpu", [])
    if stage_type is not OutlierAllocation:
        run_stage(ActivationRange.of(bench, **ACTIVATION_RANGE), "cpu", [])
    stage = stage_type.of(bench, **settings)
    bench.network.conv_in.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    with bench.adapter.computing(portions):
        run_stage(stage, "cpu", [])
        found = stage.findings()
    numbers = [value for event in bench.record.of("unit") for value in event.values() if isinstance(value, float)]
    return stage.state(), torch.tensor(numbers), stage.network_forwards, found


@pytest.mark.parametrize(("stage_type", "settings", "divisible"), STAGES.values(), ids=STAGES.keys())
def test_a_stage_leaves_the_same_behind(stage_type, settings, divisible):
    blocks = tuple(unit.name for unit in topology_of(adapter_of(smallest_unet())).units)
    batches: list[int] = []
    parts: list[int] = []
    state, numbers, forwards, found = outcome(stage_type, settings, Portions(), batches)
    portions = Portions(samples=AT_ONCE, recomputed=blocks, moved=True, offloaded=True)
    again, numbers_again, forwards_again, found_again = outcome(stage_type, settings, portions, parts)
    assert forwards == pytest.approx(forwards_again) or (stage_type is OutlierAllocation and forwards < forwards_again)
    torch.testing.assert_close(numbers, numbers_again, rtol=1e-2, atol=1e-4)
    assert state.keys() == again.keys()
    assert found.keys() == found_again.keys()
    for name, value in state.items():
        if value.is_floating_point():
            torch.testing.assert_close(again[name], value, rtol=2e-3, atol=1e-5, equal_nan=True, msg=name)
        else:  # a code that lies between two may become the other
            assert (again[name] != value).double().mean() < 0.01, name
    assert max(batches) > AT_ONCE
    assert (max(parts) <= AT_ONCE) == divisible


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_gradients_of_portions_and_of_blocks_computed_again_add_up(guidance):
    bench = workbench(guidance=guidance)
    point = bench.bank.cal.at(bench.bank.cal.spread(5))
    weights = [parameter for parameter in bench.network.parameters() if parameter.requires_grad]

    def gradients(x):
        cond = point.cond
        output = bench.adapter.denoise(x, point.timestep, cond, point.step, guidance=guidance)
        return torch.autograd.grad(output.square().mean(), [x, *weights], allow_unused=True)

    expected = gradients(point.x.clone().requires_grad_())
    ways = (Portions(2), recompute_blocks_(bench.adapter), Portions(2, bench.adapter.portions.recomputed))
    for way in ways:
        bench.adapter.portions = way
        found = gradients(point.x.clone().requires_grad_())
        for gradient, reference in zip(found, expected, strict=True):
            assert (gradient is None) == (reference is None)
            if reference is not None:
                torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-6)
    assert not any("forward" in vars(module) for module in bench.network.modules())


def test_nothing_is_left_of_calls_that_hooks_end():
    bench, kept = workbench(), list[weakref.ref[torch.Tensor]]()
    bench.adapter.portions = Portions(AT_ONCE)
    middle, block = map(bench.network.get_submodule, ("mid_block", "mid_block.resnets.1"))
    middle.register_forward_pre_hook(lambda _, args: kept.append(weakref.ref(args[0])))
    points = bench.bank.cal.spread(2 * AT_ONCE)
    gc.disable()
    try:
        capture_inputs(bench.denoising, block, bench.bank.cal, points, len(points))
        assert [each() for each in kept] == [None, None]
    finally:
        gc.enable()
