"""EfficientDM (He et al., ICLR 2024): quantization-aware fine-tuning of low-rank adapters, without data."""

from dmqbench.calibration.stage import StageFactory
from dmqbench.stages.low_rank_tuning import LowRankTuning
from dmqbench.stages.ranges import ActivationRange, WeightRange

STAGES: dict[str, StageFactory] = {
    "weight_range": WeightRange,
    "activation_range": ActivationRange,
    "low_rank_tuning": LowRankTuning,
}
"""The stages this method may use, by the names that its YAML lists."""
