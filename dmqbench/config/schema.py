"""What a job is made of: the names that are known, and one frozen dataclass per configuration group.

The same dataclasses are Hydra's schemas and what the code below ``run.py`` is given. Standard library only.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

from dmqbench.config.limits import LIMITS, Limits
from dmqbench.models.folders import SHIPPED, ModelSource
from dmqbench.quant.plan import PrecisionPlan
from dmqbench.quant.spec import COMMON_SCOPE, ENGINE_NAMES, FULL_PRECISION, Scope
from dmqbench.samplers.spec import SAMPLER_VERSION, SamplerSpec

REQUIRED: Any = "???"
"""OmegaConf's mark of a value that a YAML must give."""

DTYPE = "float32"

FOREIGN = "foreign"
"""The method of networks, and of samples, that were made elsewhere."""

UNCALIBRATED = ("fp", FOREIGN)
"""Methods whose samples depend neither on bits nor on a calibration of ours."""

RUNNABLE_NETWORKS = ("UNet2DModel",)
"""Denoiser classes that a job can run; those conditioned on text need prompts, which are not built yet."""

TASKS = ("run", "trajectories", "calibrate", "sample", "evaluate", "plan", "cost", "anatomy")
COUNTING_TASKS = ("plan", "cost")
"""Tasks that need no weights."""

TASK_KINDS = ("generate", "restore", "edit")
"""What samples are: drawn from noise alone; restored from a degraded image; edited from an image that was noised."""


CONDITIONS = ("super_resolution",)
"""Images that a network may read beside its state; see ``data.degradation``."""

SCOPES = ("common", "paper")
RANGES = ("shared", "step", "groupN")
"""Network calls that share activation parameters: all, none, or each N consecutive ones (``quant.spec.group_size``)."""
CALIBRATIONS = ("common", "paper")
MATCHES = ("refuse", "nearest", "interpolate")
WEIGHT_BITS = (*range(1, 9), FULL_PRECISION)
ACTIVATION_BITS = (*range(2, 9), 16, FULL_PRECISION)
ACCELERATORS = ("cpu", "gpu", "auto")
DIAGNOSIS = "diagnosis.json"
"""Errors per step and layer, beside the result."""

DIAGNOSIS_VERSION = 1

FINDINGS = "findings.json"
"""What a stage found out, for the report, beside its state; not every stage has something to say."""

STAND_IN = "stand-in-"
"""How a metric's name begins that was computed with a network of the right interface but other weights, in tests;
no table shows it."""

UNKNOWN = "unknown"
"""What stands for a fact about samples or models made elsewhere that this program cannot know."""

INCEPTIONS = ("clean", "legacy_tensorflow", "legacy_pytorch", "adm")
"""Protocols of ``fid``, ``fid2fp32`` and ``kid``: clean-fid's modes, and that of the ADM evaluation suite."""

LPIPS_BACKBONES = ("alex", "vgg", "squeeze")

TO_COME = {
    "method": (
        *("smoothquant", "ptq4dm", "ptqd", "tfmq_dm", "eda_dm", "quest", "svdquant"),
        "compose",
    ),
    "model": (
        *("scenes", "ddpm_cifar10", "ldm4_bedroom", "ldm8_church", "ldm4_ffhq", "ldm4_celebahq"),
        *("sd14", "dit_xl_256"),
    ),
    "dataset": (
        *("scenes", "cifar10", "lsun_bedroom", "lsun_church", "ffhq", "celebahq", "imagenet"),
        *("coco2014", "coco2017"),
    ),
}
"""Options that are planned and refused as such until their YAML exists."""


def model_label(name: str, path: str | None) -> str:
    """How a model is called: a folder or repository of one's own by its own name, others by that of their YAML."""
    if path is None or name not in ("local", "hub"):
        return name
    return (Path(path).name if name == "local" else path) or name


@dataclass(frozen=True)
class ModelConfig:
    """``datasets``: what it can be compared with; ``sample_shape``: (C, H, W), or empty: read from it.

    ``condition``: one of ``CONDITIONS``, for a network that reads ``condition_channels`` more channels than the C of
    its state; ``condition_factor``: how many times a low-resolution image is smaller.
    """

    name: str = REQUIRED
    source: str = REQUIRED
    path: Optional[str] = None
    revision: Optional[str] = None
    sample_shape: tuple[int, ...] = ()
    classes: Optional[int] = None
    datasets: tuple[str, ...] = ()
    condition: Optional[str] = None
    condition_channels: Optional[int] = None
    condition_factor: Optional[int] = None

    @property
    def label(self) -> str:
        return model_label(self.name, self.path)

    @property
    def shapes_only(self) -> bool:
        """Whether it has no weights."""
        return self.source == "architecture"

    @property
    def checkpoint(self) -> ModelSource:
        """What ``models.adapter.load_adapter`` takes."""
        location = self.name if self.source in SHIPPED else self.path
        if location is None:
            raise ValueError(f"model.path=null is not allowed with model.source={self.source}")
        kind: Any = self.source
        return ModelSource(kind, location, self.revision, self.classes or None, self.condition_channels or 0)


@dataclass(frozen=True)
class BitsConfig:
    """Bits of weights and activations, 32 for full precision. In a job, ``ranges`` is resolved.

    ``plan``: a precision plan (``plan.json``), or a folder that has one, whose weight bits the rows of every layer
    get; their mean must round to ``weight``.
    """

    weight: int = REQUIRED
    activation: int = REQUIRED
    scope: str = "common"
    ranges: str = "method"
    plan: Optional[str] = None

    @property
    def name(self) -> str:
        return f"w{self.weight}a{self.activation}"

    @property
    def facts(self) -> dict[str, Any]:
        """All values, as a result keeps them; a plan that is not given is none."""
        return {key: value for key, value in asdict(self).items() if key != "plan" or value is not None}


@dataclass(frozen=True)
class DatasetConfig:
    """What images are compared with; ``none`` for a model whose training images are not known here.

    ``reference``: a folder of images, an archive of them (npz), or an archive of statistics (npz).
    """

    name: str = REQUIRED
    reference: Optional[str] = None


@dataclass(frozen=True)
class SamplerConfig:
    """See ``SamplerSpec``. ``chunk`` samples are computed together, always the same; ``batch`` bounds what is
    computed at once where that changes no number."""

    name: str = REQUIRED
    steps: int = REQUIRED
    eta: float = 0.0
    guidance: float = 1.0
    chunk: int = 32
    batch: int = 32
    spacing: str = "leading"
    steps_offset: int = 0
    clip_sample: Optional[float] = None
    skip_prk: bool = True
    final_alpha_one: bool = True
    version: int = SAMPLER_VERSION

    def spec(self, prediction: str = "epsilon", strength: float = 1.0) -> SamplerSpec:
        """The sampler for a network that predicts ``prediction``; ValueError, one line, if there is none."""
        shared = {key: value for key, value in asdict(self).items() if key not in _NOT_IN_SPEC}
        return SamplerSpec(kind=self.name, prediction=prediction, strength=strength, **shared)  # type: ignore[arg-type]


_NOT_IN_SPEC = ("name", "guidance", "chunk", "batch")


@dataclass(frozen=True)
class MetricsConfig:
    """``samples`` images are always drawn; paired metrics take the first ``pairs`` of them.

    weights: folder in which weights of feature networks are looked for first; download: fetch those that are in no
    cache, where there is a network; inception, lpips, clip: which protocol, backbone and CLIP model (a repository on
    the hub or a folder).
    """

    names: tuple[str, ...] = REQUIRED
    pairs: int = REQUIRED
    samples: int = REQUIRED
    seed: int = 0
    weights: Optional[str] = None
    download: bool = True
    inception: str = "clean"
    lpips: str = "alex"
    clip: str = "openai/clip-vit-large-patch14"


@dataclass(frozen=True)
class BudgetConfig:
    """Calibration sizes and iteration counts, never clocks."""

    name: str = REQUIRED
    trajectories: int = REQUIRED
    validation: int = REQUIRED
    samples: int = REQUIRED
    scale_iterations: int = REQUIRED
    weight_iterations: int = REQUIRED
    activation_iterations: int = REQUIRED
    trajectory_iterations: int = REQUIRED
    tuning_iterations: int = REQUIRED
    batch: int = REQUIRED


@dataclass(frozen=True)
class TrackerConfig:
    mode: str = "auto"


@dataclass(frozen=True)
class TrainerConfig:
    """In a job, ``auto`` has become ``cpu`` or ``gpu``."""

    accelerator: str = "auto"


@dataclass(frozen=True)
class StoreConfig:
    root: Optional[str] = None


@dataclass(frozen=True)
class EvaluateConfig:
    """Images made elsewhere (npz or folder), for ``task=evaluate``.

    ``name`` and ``bits`` are how their row is called and what its author says of them; ``prompts`` is a text file
    with one prompt a line, in the order of the images.
    """

    samples: Optional[str] = None
    fp_samples: Optional[str] = None
    name: Optional[str] = None
    bits: Optional[str] = None
    prompts: Optional[str] = None


@dataclass(frozen=True)
class CalibrationConfig:
    """How the plan that is calibrated on differs from that of sampling; null is as the sampler has it.

    match: what a call does for whose timestep no activation parameters were calibrated: ``refuse`` the job, take
    those of the ``nearest`` calibrated timestep, or ``interpolate`` between the two around it.
    """

    steps: Optional[int] = None
    eta: Optional[float] = None
    guidance: Optional[float] = None
    match: str = "refuse"

    @property
    def changes(self) -> dict[str, Any]:
        """The sampler's settings that are others while calibrating."""
        return {key: value for key, value in asdict(self).items() if key != "match" and value is not None}


@dataclass(frozen=True)
class InputsConfig:
    """What is restored or edited: a folder or an archive (npz) of images; null: those shipped for the dataset."""

    images: Optional[str] = None


@dataclass(frozen=True)
class EditConfig:
    """``strength``: in (0, 1], the share of the sampler's steps that an edited image is noised for and taken back."""

    strength: float = 0.5


@dataclass(frozen=True)
class RootConfig:
    """The whole configuration. ``method`` is typed by its own YAML."""

    task: str = "run"
    task_kind: str = "generate"
    seed: int = 0
    engine: str = "simulate"
    diagnose: bool = True
    method: dict[str, Any] = field(default_factory=dict)
    model: ModelConfig = field(default_factory=ModelConfig)
    bits: BitsConfig = field(default_factory=BitsConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    inputs: InputsConfig = field(default_factory=InputsConfig)
    edit: EditConfig = field(default_factory=EditConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)


GROUPS = {
    "model": ModelConfig,
    "bits": BitsConfig,
    "dataset": DatasetConfig,
    "sampler": SamplerConfig,
    "metrics": MetricsConfig,
    "budget": BudgetConfig,
    "tracker": TrackerConfig,
    "trainer": TrainerConfig,
}
"""Schema of every group but ``method``."""

NODES = {
    "evaluate": EvaluateConfig,
    "inputs": InputsConfig,
    "edit": EditConfig,
    "calibration": CalibrationConfig,
}
"""Schema of what a job is given besides its groups."""


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

ABOUT_STAGE = (*STAGE_KEYS, "not_in_id", "not_in_id_when", LIMITS)
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


@dataclass(frozen=True)
class Job:
    """One validated job; every value is resolved. ``config`` is what it came from, as plain data.

    diagnose: measure errors per step and layer beside the metrics.
    """

    task: str
    seed: int
    engine: str
    diagnose: bool
    method: MethodConfig
    model: ModelConfig
    bits: BitsConfig
    dataset: DatasetConfig
    sampler: SamplerConfig
    metrics: MetricsConfig
    budget: BudgetConfig
    tracker: TrackerConfig
    trainer: TrainerConfig
    evaluate: EvaluateConfig
    store_root: Path
    config: dict[str, Any] = field(repr=False, hash=False)
    task_kind: str = "generate"
    inputs: InputsConfig = InputsConfig()
    edit: EditConfig = EditConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    plan: Optional[GivenPlan] = None

    @property
    def calibration_sampler(self) -> SamplerConfig:
        """Whose trajectories the method is calibrated on."""
        return replace(self.sampler, **self.calibration.changes)

    @property
    def has_rows(self) -> bool:
        """Whether calibration gives network calls activation parameters of their own, or their group's."""
        calibrated = any("activation" in stage.uses for stage in self.method.stages)
        return calibrated and self.bits.ranges != "shared" and self.bits.activation != FULL_PRECISION

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
        return f"{self.method.name} {self.model.label}{self._task_word} {self.bits.name}{variant}"

    @property
    def _task_word(self) -> str:
        return f" edit {self.strength:g}" if self.task_kind == "edit" else ""


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
