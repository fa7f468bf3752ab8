"""Settings of calibration over several denoising steps."""

from dataclasses import dataclass

from dmqbench.stages.trajectory_gradients import CONTROLS, RULES, GradientRule

LARGEST_RATE = 0.003
"""Of Adam, in logarithms of scales and in grid steps: with few iterations of many calls each, larger ones overshoot."""

REFERENCE = "replayed"
"""The rule that others are compared with: exact, in the memory of one call."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is trained by the error of end states, and by which gradient."""

    horizon: int
    """M, calls that the quantized model runs by itself; more than there are means all."""
    iterations: int
    """Per group. Cost does not depend on M: fewer groups have more calls each."""
    batch: int
    """Trajectories in an iteration."""
    recipe: str
    """``scales`` of activations, or ``joint``: with the weights' rounding and scales, shared by all groups."""
    gradient: str
    """A name of ``trajectory_gradients.RULES`` or ``CONTROLS``."""
    start: str
    """``fp``, the recorded full-precision state; ``quantized``, the state that the calibrated calls before the group
    lead to (at the last check, where groups share parameters); the target is full precision's either way. Held-out
    errors "before" are then those after the calls before were calibrated."""
    scale_travel: float
    """Adam's first rate times iterations, in logarithms of a scale: with the cosine, a scale can move by half of it.
    Less, where iterations are so few that the rate would be above ``LARGEST_RATE``."""
    rounding_travel: float
    """The same for a weight between its two grid points, 0..1."""
    clipping: str = "before_rounding"
    """Which values count as inside the grid when gradients are taken: see ``functional.CLIPPINGS``."""
    checks: int
    """How often the held-out error is looked at; the best state is kept."""

    def rates(self, total: int) -> tuple[float, float]:
        """Return Adam's first rates of scales and of rounding, over ``total`` iterations."""
        return min(self.scale_travel / total, LARGEST_RATE), min(self.rounding_travel / total, LARGEST_RATE)

    @property
    def joint(self) -> bool:
        return self.recipe == "joint"

    @property
    def rule(self) -> GradientRule:
        return (RULES | CONTROLS)[self.gradient]

    @property
    def from_quantized(self) -> bool:
        return self.start == "quantized"
