"""What a checked job is: its method with the stages, its plan, and all that is derived from them."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

from dmqbench.config.inputs import EvaluateConfig
from dmqbench.config.limits import LIMITS, Limits
from dmqbench.config.names import FOREIGN
from dmqbench.config.schema import BitsConfig, CalibrationConfig, JobConfig, SamplerConfig
from dmqbench.quant.plan import PrecisionPlan
from dmqbench.quant.spec import COMMON_SCOPE, ENGINE_NAMES, FULL_PRECISION, Scope

PAPER_SCOPE = {"first_last": False, "embedding": False, "attention": False, "split": True}
"""What is quantized besides ordinary layers, and are skip inputs split; these values are the common scope."""

FURTHER_SCOPE = {"shortcuts": True, "downsampling": True, "bare_attention": True, "ends_at_8": False}
"""What a method's YAML may say besides, with the values that stand where it does not: see ``quant.spec.Scope``."""


@dataclass(frozen=True)
class StageConfig:
    """One stage; ``settings`` are the fields of its settings, of which ``not_in_id`` change no number."""

    name: str
    version: int
    uses: tuple[str, ...]
    settings: dict[str, Any]
    not_in_id: tuple[str, ...] = ()
    not_in_id_when: dict[str, Any] = field(default_factory=dict)
    """Settings that came after the stage had ids, with the value that stands for how it was before them."""
    limits: Limits = field(default=Limits(), repr=False, hash=False)

    @property
    def id_settings(self) -> dict[str, Any]:
        return {
            key: value
            for key, value in self.settings.items()
            if key not in self.not_in_id and (key not in self.not_in_id_when or self.not_in_id_when[key] != value)
        }


@dataclass(frozen=True)
class MethodConfig:
    name: str
    stages: tuple[StageConfig, ...] = ()
    paper_scope: dict[str, bool] = field(default_factory=lambda: dict(PAPER_SCOPE))
    ranges: str = "shared"
    faithful: bool = False
    path: Optional[str] = None
    calibration: str = "common"
    variant: str = ""
    """What sets it apart from the method as its YAML has it; part of the row's name in tables."""


METHOD_KEYS = ("name", "stages", "faithful", "path", "calibration", "ranges", "paper_scope")
"""What every method's YAML has."""

OPTIONAL_METHOD_KEYS = ("variant", "faithful_settings")
"""``faithful_settings``: what ``method.faithful=true`` sets, where the command line does not say otherwise. A method's
further keys are those that settings of its stages refer to."""

STAGE_KEYS = ("version", "uses")
"""What every stage's YAML has."""

SET_IN_YAML_ONLY = ("uses", "not_in_id", "not_in_id_when", LIMITS)
"""Keys of a stage's YAML that a command line cannot set."""

ABOUT_STAGE = ("version", *SET_IN_YAML_ONLY)
"""Keys of a stage's YAML that are no settings."""


@dataclass(frozen=True)
class GivenPlan:
    """The content of ``bits.plan``; ``hash`` is over the weight bits of its layers."""

    hash: str
    plan: PrecisionPlan

    @property
    def name(self) -> str:
        return plan_name(self.hash)


def plan_name(hash: str) -> str:
    """How rows and titles call a precision plan."""
    return f"plan {hash[:8]}"


@dataclass(frozen=True, kw_only=True)
class Job(JobConfig):
    """One validated job; every value is resolved. ``config`` is what it came from, as plain data."""

    method: MethodConfig
    store_root: Path
    config: dict[str, Any] = field(repr=False, hash=False)
    plan: Optional[GivenPlan] = None

    @property
    def calibration_sampler(self) -> SamplerConfig:
        """Whose trajectories the method is calibrated on."""
        return replace(self.sampler, **self.calibration.changes)

    @property
    def diagnosed(self) -> bool:
        """Whether errors are measured per step and layer."""
        return self.diagnose and self.method.name != "fp" and self.undiagnosed is None

    @property
    def undiagnosed(self) -> str | None:
        """Why errors per step are not measured although they were asked for."""
        changed = ", ".join(self.calibration.changes)
        return f"sampled with other {changed} than the trajectories that it measures errors on" if changed else None

    @property
    def device_type(self) -> str:
        return "cuda" if self.trainer.accelerator == "gpu" else "cpu"

    @property
    def strength(self) -> float:
        """The share of the sampler's steps that is taken."""
        return self.edit.strength if self.task_kind == "edit" else 1.0

    @property
    def works_on_images(self) -> bool:
        """Whether it restores or edits images that are given."""
        return self.task_kind != "generate"

    @property
    def foreign(self) -> bool:
        """Whether its network is one that another program quantized."""
        return self.method.name == FOREIGN

    @property
    def title(self) -> str:
        if self.evaluate.samples is not None:
            return f"{self.evaluate.name or Path(self.evaluate.samples).stem} {self.model.label}"
        if self.foreign:
            return f"{Path(str(self.method.path)).name} {self.model.label}"
        words = ", ".join(filter(None, (self.method.variant, self.plan and self.plan.name)))
        variant = f" ({words})" if words else ""
        task = f" edit {self.strength:g}" if self.task_kind == "edit" else ""
        return f"{self.method.name} {self.model.label}{task} {self.bits.name}{variant}"


def full_precision(job: Job) -> Job:
    """The job whose samples the paired metrics of ``job`` compare with."""
    return without_calibration(job, MethodConfig("fp"))


def without_calibration(job: Job, method: MethodConfig) -> Job:
    """The job with a method that calibrates nothing: its samples do not depend on bits, scope, calibration seed and
    plan or engine, so these are set to one value."""
    bits = BitsConfig(FULL_PRECISION, FULL_PRECISION, "common", "shared")
    config = {
        **{key: value for key, value in job.config.items() if key != "calibration"},
        "seed": 0,
        "engine": ENGINE_NAMES[0],
        "bits": bits.facts,
        "method": asdict(method),
        "evaluate": asdict(EvaluateConfig()),
    }
    nothing: dict[str, Any] = {"evaluate": EvaluateConfig(), "calibration": CalibrationConfig(), "plan": None}
    return replace(job, method=method, bits=bits, seed=0, engine=ENGINE_NAMES[0], **nothing, config=config)


def scope_of(job: Job) -> Scope:
    """What the job quantizes beyond ordinary layers: the same for all methods, or what the method's paper does."""
    return Scope(**job.method.paper_scope) if job.bits.scope == "paper" else COMMON_SCOPE
