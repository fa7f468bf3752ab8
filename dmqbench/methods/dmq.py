"""DMQ (Lee et al., ICCV 2025): learned equivalent scaling under timestep weighting, then rounding reconstruction of the
scaled weights, activation ranges per step, and power-of-two scaling of skip inputs.

``method.faithful=true`` sets the switches named in the YAML. What the published code does and no switch here does: soft
rounding of the second half of split layers while activations are calibrated; a moving average of ranges that the first
batch of LES starts and that goes on during the votes; activation grids that are not widened to hold zero; timestep
bins of 50 training steps (here equal runs of network calls); other trajectories for every step, from weights that are
not averaged. The slopes of ``linear`` and ``quadratic`` weighting are not stated: ``strength`` is that of ``adaptive``.
In a diffusers network ``layers: all`` has no attention projections, which are linear layers there. Not published:
``equivalent_scaling.absorb``, with which layers that read the same channels share a scale that nothing divides by.
"""

from dmqbench.calibration.stage import StageFactory
from dmqbench.stages.activation_ema import ActivationEma
from dmqbench.stages.equivalent_scaling import EquivalentScaling
from dmqbench.stages.power_of_two_scaling import PowerOfTwoScaling
from dmqbench.stages.ranges import ActivationRange, WeightRange
from dmqbench.stages.reconstruction import ActivationReconstruction, WeightReconstruction

STAGES: dict[str, StageFactory] = {
    "equivalent_scaling": EquivalentScaling,
    "weight_range": WeightRange,
    "weight_reconstruction": WeightReconstruction,
    "activation_range": ActivationRange,
    "activation_ema": ActivationEma,
    "activation_reconstruction": ActivationReconstruction,
    "power_of_two_scaling": PowerOfTwoScaling,
}
"""The stages this method may use, by the names that its YAML lists."""
