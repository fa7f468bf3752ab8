"""MPQ-DM (Feng et al., AAAI 2025): outlier-driven mixed quantization, ranges per step, and low-rank tuning."""

from dmqbench.calibration.stage import StageFactory
from dmqbench.stages.low_rank_tuning import LowRankTuning
from dmqbench.stages.outlier_allocation import OutlierAllocation
from dmqbench.stages.ranges import ActivationRange, WeightRange

STAGES: dict[str, StageFactory] = {
    "outlier_allocation": OutlierAllocation,
    "weight_range": WeightRange,
    "activation_range": ActivationRange,
    "low_rank_tuning": LowRankTuning,
}
"""The stages this method may use, by the names that its YAML lists."""
