"""The words that configurations and results use, and what they stand for."""

from typing import Any

from dmqbench.quant.spec import FULL_PRECISION

REQUIRED: Any = "???"
"""OmegaConf's mark of a value that a YAML must give."""

FOREIGN = "foreign"
"""The method of networks, and of samples, that were made elsewhere."""

UNCALIBRATED = ("fp", FOREIGN)
"""Methods whose samples depend neither on bits nor on a calibration of ours."""

TASKS = ("run", "trajectories", "calibrate", "sample", "evaluate", "plan", "cost", "anatomy")

COUNTING_TASKS = ("plan", "cost")
"""Tasks that need no weights."""

CALIBRATING_TASKS = ("trajectories", "calibrate")
"""Tasks that evaluate nothing."""

IMAGELESS_TASKS = (*CALIBRATING_TASKS, "cost")
"""Tasks that make no images."""

TASK_KINDS = ("generate", "restore", "edit")
"""What samples are: drawn from noise alone; restored from a degraded image; edited from an image that was noised."""

LABELS = ("balanced", "random")
"""How the samples of a model of classes have their labels."""

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
