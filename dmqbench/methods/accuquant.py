"""AccuQuant (Lee et al., NeurIPS 2025): calibration over several denoising steps.

The paper's text and code are not public; this follows the project's page, its abstract and a review. Certain are the
groups of consecutive steps, the common start, the end-state loss, and a gradient that skips the network's Jacobians
between the steps. Decided here: the skipped Jacobians are taken as the identity, which the figure suggests; rounding
starts from block reconstruction; which parameters are trained, M, and all rates.
"""

from dmqbench.stages.ranges import ActivationRange, WeightRange
from dmqbench.stages.reconstruction import WeightReconstruction
from dmqbench.stages.trajectory_reconstruction import TrajectoryReconstruction

STAGES = {stage.name: stage for stage in (WeightRange, WeightReconstruction, ActivationRange, TrajectoryReconstruction)}
