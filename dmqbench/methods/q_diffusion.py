"""Q-Diffusion (Li et al., ICCV 2023): calibration along the deployment sampler, split skip inputs, block
reconstruction with AdaRound on the quantized prefix, then learned activation steps.
"""

from dmqbench.calibration.stage import StageFactory
from dmqbench.stages.ranges import ActivationRange, WeightRange
from dmqbench.stages.reconstruction import ActivationReconstruction, WeightReconstruction

STAGES: dict[str, StageFactory] = {
    "weight_range": WeightRange,
    "weight_reconstruction": WeightReconstruction,
    "activation_range": ActivationRange,
    "activation_reconstruction": ActivationReconstruction,
}
"""The stages this method may use, by the names that its YAML lists."""
