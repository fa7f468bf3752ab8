"""AccuQuant's stage on a small network: with ranges set, carried out, stopped."""

from functools import cache

from workbench import ACTIVATION_RANGE, MSE, W3A6, sampler, set_min_max_ranges_, workbench

from dmqbench.calibration.run import run_stage
from dmqbench.quant.spec import StepGroups
from dmqbench.stages.ranges import ActivationRange, WeightRange
from dmqbench.stages.trajectory_reconstruction import TrajectoryReconstruction

SETTINGS = {
    "horizon": 2,
    "iterations": 2,
    "batch": 4,
    "recipe": "scales",
    "gradient": "identity",
    "start": "fp",
    "scale_travel": 0.3,
    "rounding_travel": 0.3,
    "checks": 2,
}
NAME = "trajectory_reconstruction"
JOINT = {"recipe": "joint", "scale_travel": 0.02, "rounding_travel": 0.1}

CHAOS = 0.02
"""Relative: a last bit of a sum over another batch changes a code here and there, and that the states after."""


def ranged(bits=W3A6, *, steps=None, **options):
    """A workbench whose activation ranges were set by a look at the bank, W3A6 with ranges per step by default."""
    plan = options.get("plan") or sampler()
    bench = workbench(bits, steps=steps or StepGroups.per_step(plan.network_calls), **options)
    if bits.weight == 32 or bits.activation_levels is None:
        run_stage(WeightRange.of(bench, **MSE), "cpu", [])
        run_stage(ActivationRange.of(bench, **ACTIVATION_RANGE), "cpu", [])
        return bench
    seen = bench.bank.cal.at(bench.bank.cal.spread(8))
    set_min_max_ranges_(bench.adapter, seen.x, seen.timestep, seen.cond, seen.step)
    return bench


def stage_of(bench, cls=TrajectoryReconstruction, **changed):
    return cls.of(bench, **{**SETTINGS, **changed})


def run(bench, **changed):
    stage = stage_of(bench, **changed)
    run_stage(stage, "cpu", [])
    return stage


@cache
def _finished(settings):
    return run(ranged(), **dict(settings))


def finished(**changed):
    """A stage on the usual bench that was carried out without a break, to be looked at only."""
    return _finished(frozenset({**SETTINGS, **changed}.items()))


def interrupted(cls, end, act=None):
    """A stage class that calls ``act(stage)``, or stops, at (number of the unit, iteration)."""

    class Interrupted(cls):
        def iterate(self, unit, iteration):
            if (self.units().index(unit), iteration) == end:
                if act is None:
                    raise KeyboardInterrupt
                act(self)
            return super().iterate(unit, iteration)

    return Interrupted
