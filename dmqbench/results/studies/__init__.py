"""What jobs say of parts of methods, one file a study; drawn by the page and by the plots. Imports no torch."""

from dmqbench.results.studies.dose_response import dose_figures
from dmqbench.results.studies.equivalent_scaling import EquivalentScaling
from dmqbench.results.studies.error_accumulation import error_figures
from dmqbench.results.studies.low_rank_tuning import LowRankTuning
from dmqbench.results.studies.outlier_allocation import OutlierAllocation
from dmqbench.results.studies.power_of_two_scaling import PowerOfTwoScaling
from dmqbench.results.studies.precision_ablation import precision_figures
from dmqbench.results.studies.study import Study, of_jobs, of_stage
from dmqbench.results.studies.trajectory_ablation_figures import ablation_figures, ablation_pictures
from dmqbench.results.studies.trajectory_reconstruction import TrajectoryReconstruction
from dmqbench.results.studies.vote_selection import sample_figures

STUDIES: tuple[Study, ...] = (
    of_stage(EquivalentScaling),
    of_stage(PowerOfTwoScaling),
    of_jobs(dose_figures),
    of_jobs(sample_figures),
    of_stage(OutlierAllocation),
    of_stage(LowRankTuning),
    of_jobs(precision_figures),
    of_stage(TrajectoryReconstruction),
    Study(ablation_figures, ablation_pictures),
    Study(pictures=error_figures),
)
"""In the order in which they are shown; a new one is a file and a line here."""
