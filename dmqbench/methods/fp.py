"""Full precision: no stages. Its samples are what paired metrics compare with."""

from dmqbench.methods.base import StageFactory

STAGES: dict[str, StageFactory] = {}
