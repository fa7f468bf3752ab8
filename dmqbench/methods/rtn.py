"""Round to nearest: MSE ranges for weights and activations, nothing learned."""

from dmqbench.calibration.stage import StageFactory
from dmqbench.stages.ranges import ActivationRange, WeightRange

STAGES: dict[str, StageFactory] = {"weight_range": WeightRange, "activation_range": ActivationRange}
"""The stages this method may use, by the names that its YAML lists."""
