"""Full precision: no stages. Its samples are what paired metrics compare with."""

from dmqbench.calibration.stage import StageFactory

STAGES: dict[str, StageFactory] = {}
