"""A network quantized or changed by another program: no stages here. It is loaded from ``method.path``, sampled as all
others are, and compared with the full-precision model.
"""

from dmqbench.calibration.stage import StageFactory

STAGES: dict[str, StageFactory] = {}
