"""DMQ (Lee et al., ICCV 2025): learned equivalent scaling under timestep weighting, then rounding reconstruction of the
scaled weights, activation ranges per step, and power-of-two scaling of skip inputs.
"""

from dmqbench.methods.activation_ema import ActivationEma
from dmqbench.methods.base import StageFactory
from dmqbench.methods.equivalent_scaling import EquivalentScaling
from dmqbench.methods.power_of_two import PowerOfTwoScaling
from dmqbench.methods.ranges import ActivationRange, WeightRange
from dmqbench.methods.reconstruction import ActivationReconstruction, WeightReconstruction

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
