"""What a job is made of: the names that are known, and one frozen dataclass per configuration group.

The same dataclasses are Hydra's schemas and what the code below ``run.py`` is given. Standard library only.
"""

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Optional

from dmqbench.models.folders import ModelSource
from dmqbench.samplers.spec import SAMPLER_VERSION, SamplerSpec

REQUIRED: Any = "???"
"""OmegaConf's mark of a value that a YAML must give."""

FULL_PRECISION = 32
DTYPE = "float32"

RUNNABLE_NETWORKS = ("UNet2DModel",)
"""Denoiser classes that a job can run; those conditioned on text need prompts, which are not built yet."""

TASKS = ("run", "trajectories", "calibrate", "sample", "evaluate", "plan", "cost")
TASKS_TO_COME = ("anatomy",)
ENGINES = ("simulate", "int_reference")
SCOPES = ("common", "paper")
RANGES = ("shared", "step")
CALIBRATIONS = ("common", "paper")
WEIGHT_BITS = (*range(1, 9), FULL_PRECISION)
ACTIVATION_BITS = (*range(2, 9), 16, FULL_PRECISION)
ACCELERATORS = ("cpu", "gpu", "auto")
TRACKER_MODES = ("auto", "online", "offline", "disabled")
METRICS = {"psnr": 1, "ssim": 1, "mse": 1, "fd_digits": 1, "fd2fp32_digits": 1}
"""Version of every metric, raised when its numbers change."""

METRICS_TO_COME = ("lpips", "fid", "sfid", "is", "kid", "precision", "recall", "fid2fp32", "clip")
EMBEDDED_METRICS = ("fd_", "fd2fp32_")
"""How metrics begin whose extractor is shipped with this package."""

PAIRED_METRICS = ("psnr", "ssim", "mse", "lpips")
"""Metrics over ``metrics.pairs`` pairs of images; the others are over ``metrics.samples`` images."""

TO_COME = {
    "method": (
        *("smoothquant", "ptq4dm", "ptqd", "tfmq_dm", "eda_dm", "efficient_dm", "quest", "svdquant"),
        *("dmq", "mpq_dm", "accuquant", "compose", "foreign"),
    ),
    "model": (
        *("scenes", "ddpm_cifar10", "ldm4_bedroom", "ldm8_church", "ldm4_ffhq", "ldm4_celebahq"),
        *("ldm4_imagenet", "sd14", "dit_xl_256"),
    ),
    "dataset": (
        *("scenes", "cifar10", "lsun_bedroom", "lsun_church", "ffhq", "celebahq", "imagenet"),
        *("coco2014", "coco2017"),
    ),
}
"""Options that are planned and refused as such until their YAML exists."""


@dataclass(frozen=True)
class ModelConfig:
    """``datasets``: what it can be compared with; ``sample_shape``: (C, H, W), or empty: read from it."""

    name: str = REQUIRED
    source: str = REQUIRED
    path: Optional[str] = None
    revision: Optional[str] = None
    sample_shape: tuple[int, ...] = ()
    classes: Optional[int] = None
    datasets: tuple[str, ...] = ()

    @property
    def checkpoint(self) -> ModelSource:
        """What ``models.adapter.load_adapter`` takes."""
        location = self.name if self.source == "embedded" else self.path
        if location is None:
            raise ValueError(f"model.path=null is not allowed with model.source={self.source}")
        return ModelSource(self.source, location, self.revision, self.classes or None)  # type: ignore[arg-type]


@dataclass(frozen=True)
class BitsConfig:
    """Bits of weights and activations, 32 for full precision. In a job, ``ranges`` is resolved."""

    weight: int = REQUIRED
    activation: int = REQUIRED
    scope: str = "common"
    ranges: str = "method"

    @property
    def name(self) -> str:
        return f"w{self.weight}a{self.activation}"


@dataclass(frozen=True)
class DatasetConfig:
    """What images are compared with; ``none`` for a model whose training images are not known here."""

    name: str = REQUIRED


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

    def spec(self, prediction: str = "epsilon") -> SamplerSpec:
        """The sampler for a network that predicts ``prediction``; ValueError, one line, if there is none."""
        shared = {key: value for key, value in asdict(self).items() if key not in _NOT_IN_SPEC}
        return SamplerSpec(kind=self.name, prediction=prediction, **shared)  # type: ignore[arg-type]


_NOT_IN_SPEC = ("name", "guidance", "chunk", "batch")


@dataclass(frozen=True)
class MetricsConfig:
    """``samples`` images are always drawn; paired metrics take the first ``pairs`` of them."""

    names: tuple[str, ...] = REQUIRED
    pairs: int = REQUIRED
    samples: int = REQUIRED
    seed: int = 0


@dataclass(frozen=True)
class BudgetConfig:
    """Calibration sizes and iteration counts, never clocks."""

    name: str = REQUIRED
    trajectories: int = REQUIRED
    validation: int = REQUIRED
    samples: int = REQUIRED
    weight_iterations: int = REQUIRED
    activation_iterations: int = REQUIRED
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
    """Archives of images made elsewhere, for ``task=evaluate``."""

    samples: Optional[str] = None
    fp_samples: Optional[str] = None


@dataclass(frozen=True)
class RootConfig:
    """The whole configuration. ``method`` is typed by its own YAML."""

    task: str = "run"
    seed: int = 0
    engine: str = "simulate"
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


PAPER_SCOPE = {"first_last": False, "embedding": False, "attention": False, "split": True}
"""What is quantized besides ordinary layers, and are skip inputs split; these values are the common scope."""


@dataclass(frozen=True)
class StageConfig:
    """One stage; ``settings`` are its constructor's arguments, of which ``not_in_id`` change no number."""

    name: str
    version: int
    uses: tuple[str, ...]
    settings: dict[str, Any]
    not_in_id: tuple[str, ...] = ()

    @property
    def id_settings(self) -> dict[str, Any]:
        return {key: value for key, value in self.settings.items() if key not in self.not_in_id}


@dataclass(frozen=True)
class MethodConfig:
    name: str
    stages: tuple[StageConfig, ...] = ()
    paper_scope: dict[str, bool] = field(default_factory=lambda: dict(PAPER_SCOPE))
    ranges: str = "shared"
    faithful: bool = False
    path: Optional[str] = None
    calibration: str = "common"


METHOD_KEYS = ("name", *(item.name for item in fields(MethodConfig) if item.name != "name"))


@dataclass(frozen=True)
class Job:
    """One validated job; every value is resolved. ``config`` is what it came from, as plain data."""

    task: str
    seed: int
    engine: str
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

    @property
    def device_type(self) -> str:
        return "cuda" if self.trainer.accelerator == "gpu" else "cpu"

    @property
    def title(self) -> str:
        return f"{self.method.name} {self.model.name} {self.bits.name}"


def full_precision(job: Job) -> Job:
    """The job whose samples the paired metrics of ``job`` compare with.

    Its samples do not depend on bits, scope, calibration seed or engine, so these are set to one value.
    """
    bits = BitsConfig(FULL_PRECISION, FULL_PRECISION, "common", "shared")
    method = MethodConfig("fp")
    config = {
        **job.config,
        "seed": 0,
        "engine": ENGINES[0],
        "bits": asdict(bits),
        "method": asdict(method),
    }
    return replace(job, method=method, bits=bits, seed=0, engine=ENGINES[0], config=config)
