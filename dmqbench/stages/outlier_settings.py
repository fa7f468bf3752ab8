"""Settings of outlier-driven mixed quantization."""

from dataclasses import dataclass

from dmqbench.stages.ranges import RangeSettings

STRENGTHS: dict[str, tuple[float, ...]] = {"none": (), "always": (1.0,), "searched": (0.0, 0.5, 1.0)}


@dataclass(frozen=True, kw_only=True)
class Settings(RangeSettings):
    """How rows are ordered and how many get other bits; ranges are those of weights and activations during the pass."""

    samples: int
    """Bank points in the pass, all in one batch: about five copies of the largest layer's input are live."""
    largest_tenths: int
    """At most so many tenths of the rows are promoted, and as many demoted: 0 to 5."""
    inputs: str
    """On what output errors are compared: the layer's inputs ``quantized``, or as the quantized layers before it hand
    them on (``fp``, the published form); what it hands on is made of quantized ones in both cases."""
    rows: str
    """The order of the rows: see ``row_order``; ``error`` is that of their outputs at the plain bits."""
    prescale: str
    """The equivalent scale: ``always`` the published τ; ``searched``: of τ, √τ and 1 that with the least output error
    at the plain bits; ``none``. A grouped convolution never has one."""
    plus: bool
    """Whether a tenth of the rows gets a bit more and none a bit less, without a search (MPQ-DM[+])."""

    @property
    def strengths(self) -> tuple[float, ...]:
        """Exponents of τ that are considered."""
        return STRENGTHS[self.prescale]

    @property
    def on_quantized_inputs(self) -> bool:
        return self.inputs == "quantized"
