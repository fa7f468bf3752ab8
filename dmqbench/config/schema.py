"""What a job is made of: the names that are known, and one frozen dataclass per configuration group.

The same dataclasses are Hydra's schemas and what the code below ``run.py`` is given. Standard library only.
"""

from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Optional

from dmqbench.config.inputs import EditConfig, EvaluateConfig, InputsConfig
from dmqbench.config.names import REQUIRED
from dmqbench.models.folders import OWN, SHIPPED, ModelSource
from dmqbench.models.planted import Planted
from dmqbench.models.precision import FLOAT32
from dmqbench.quant.spec import GRANULARITIES
from dmqbench.samplers.spec import SAMPLER_VERSION, SamplerSpec


def model_label(
    name: str, path: str | None, dtype: str = FLOAT32, size: Sequence[int] | None = None, planted: str = ""
) -> str:
    """How a model is called: a folder or repository of one's own by its own name, others by that of their YAML; with
    the size of its images and what it computes in, unless these are the file's and float32, and what was planted."""
    if path is not None and name in ("local", "hub"):
        name = (Path(path).name if name == "local" else path) or name
    further = ("×".join(map(str, size or ())), dtype if dtype != FLOAT32 else "", planted)
    return ", ".join([name, *filter(None, further)])


@dataclass(frozen=True)
class ModelConfig:
    """``datasets``: what it can be compared with; ``sample_shape``: (C, H, W), or empty: read from it.

    ``scheduler``: the file that states the noise schedule, or a folder that holds it; null: the model's own.
    ``dtype``: one of ``DTYPES``, of the network's weights and activations; all that quantizers hold, compute and learn,
    samplers, decoders and text encoders are float32 always.
    ``size``: of images, in pixels: (height, width), or in a job one number for both; null: as the network's file says.
    ``planted``: outliers that change no picture of full precision.
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
    scheduler: Optional[str] = None
    dtype: str = FLOAT32
    size: Any = None
    planted: Planted = field(default_factory=Planted)

    @property
    def facts(self) -> dict[str, Any]:
        """All values, as a result keeps them; a scheduler or a size that is not given is none, nor is the usual
        precision, or nothing planted, and what lives in a script lies nowhere."""
        usual = {"scheduler": None, "dtype": FLOAT32, "size": None, "planted": asdict(Planted())}
        found = {key: value for key, value in asdict(self).items() if key not in usual or value != usual[key]}
        return found | ({"path": None} if self.source == OWN else {})

    @property
    def label(self) -> str:
        return model_label(self.name, self.path, self.dtype, self.size, self.planted.text)

    @property
    def shapes_only(self) -> bool:
        """Whether it has no weights: of what is shipped as shapes alone, the user has them, or nobody."""
        return self.source == "architecture" and self.path is None

    @property
    def checkpoint(self) -> ModelSource:
        """What ``models.adapter.load_adapter`` takes."""
        kind: Any = self.source
        if kind == "architecture" and self.path is not None:
            kind = "local" if self.revision is None else "hub"
        location = self.name if kind in SHIPPED else self.path
        if location is None:
            raise ValueError(f"model.path=null is not allowed with model.source={self.source}")
        channels, classes = self.condition_channels or 0, self.classes or None
        further = self.scheduler, self.dtype, self.size, self.planted
        return ModelSource(kind, location, self.revision, classes, channels, *further)


@dataclass(frozen=True)
class BitsConfig:
    """Bits of weights and activations, 32 for full precision. In a job, ``ranges`` is resolved.

    ``granularity``: see ``quant.spec.GRANULARITIES``.

    ``plan``: a precision plan (``plan.json``), or a folder that has one, whose weight bits the rows of every layer
    get; their mean must round to ``weight``.
    """

    weight: int = REQUIRED
    activation: int = REQUIRED
    scope: str = "common"
    ranges: str = "method"
    plan: Optional[str] = None
    granularity: str = GRANULARITIES[0]

    @property
    def name(self) -> str:
        return f"w{self.weight}a{self.activation}"

    @property
    def facts(self) -> dict[str, Any]:
        """All values, as a result keeps them; a plan that is not given is none, nor is the usual granularity."""
        usual = {"plan": None, "granularity": GRANULARITIES[0]}
        return {key: value for key, value in asdict(self).items() if key not in usual or value != usual[key]}

    @property
    def ranges_title(self) -> str:
        """What shares a range, as tables show it: network calls, and tokens unless it is the whole tensor."""
        return self.ranges if self.granularity == GRANULARITIES[0] else f"{self.ranges}, {self.granularity}"


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
    solver: str = "euler"
    image_tokens: Optional[int] = None

    @property
    def facts(self) -> dict[str, Any]:
        """All values but those of keys that came after samplers had ids, where they are as before them."""
        return {key: value for key, value in asdict(self).items() if key not in _BEFORE or _BEFORE[key] != value}

    def spec(self, prediction: str = "epsilon", strength: float = 1.0) -> SamplerSpec:
        """The sampler for a network that predicts ``prediction``; ValueError, one line, if there is none."""
        shared = {key: value for key, value in asdict(self).items() if key not in _NOT_IN_SPEC}
        return SamplerSpec(kind=self.name, prediction=prediction, strength=strength, **shared)  # type: ignore[arg-type]


_NOT_IN_SPEC = ("name", "guidance", "chunk", "batch")
_BEFORE = {"solver": "euler", "image_tokens": None}


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
    """Calibration sizes and iteration counts, never clocks.

    ``memory_gib``: a stage of calibration holds no more, of a GPU's memory or else of the host's; null: what it takes.
    """

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
    memory_gib: Optional[float] = None

    @property
    def facts(self) -> dict[str, Any]:
        """All values that are given."""
        return {key: value for key, value in asdict(self).items() if value is not None}


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
class CalibrationConfig:
    """How the plan that is calibrated on differs from that of sampling; null is as the sampler has it.

    bias_correction: whether the mean error of every layer's outputs is taken back in the end, whatever the method.
    match: what a call does for whose timestep no activation parameters were calibrated: ``refuse`` the job, take
    those of the ``nearest`` calibrated timestep, or ``interpolate`` between the two around it.
    """

    steps: Optional[int] = None
    eta: Optional[float] = None
    guidance: Optional[float] = None
    match: str = "refuse"
    bias_correction: bool = False

    @property
    def changes(self) -> dict[str, Any]:
        """The sampler's settings that are others while calibrating."""
        plan = ("steps", "eta", "guidance")
        return {key: value for key in plan if (value := getattr(self, key)) is not None}

    @property
    def facts(self) -> dict[str, Any]:
        """What results keep: as it was before there was a correction, where there is none."""
        return {key: value for key, value in asdict(self).items() if key != "bias_correction" or value}


@dataclass(frozen=True)
class JobConfig:
    """What a job is given besides its method and its store; ``diagnose``: errors per step and layer are measured."""

    task: str = "run"
    task_kind: str = "generate"
    seed: int = 0
    engine: str = "simulate"
    diagnose: bool = True
    model: ModelConfig = field(default_factory=ModelConfig)
    bits: BitsConfig = field(default_factory=BitsConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    inputs: InputsConfig = field(default_factory=InputsConfig)
    edit: EditConfig = field(default_factory=EditConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)


@dataclass(frozen=True)
class RootConfig(JobConfig):
    """The whole configuration. ``method`` is typed by its own YAML."""

    method: dict[str, Any] = field(default_factory=dict)
    store: StoreConfig = field(default_factory=StoreConfig)


_KINDS: dict[str, Any] = {item.name: item.default_factory for item in fields(JobConfig) if item.default is MISSING}

NODES = {name: _KINDS[name] for name in ("evaluate", "inputs", "edit", "calibration")}
"""Schema of what a job is given besides its groups."""

GROUPS = {name: kind for name, kind in _KINDS.items() if name not in NODES}
"""Schema of every group but ``method``."""

OPTION_GROUPS = ("method", *GROUPS)
"""Groups of which a user chooses an option."""
