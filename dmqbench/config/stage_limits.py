"""What the settings of stages may be, so that a wrong one is refused before anything is computed. Imports no torch."""

import math

CHOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "weight_range": {"observer": ("min_max", "mse", "percentile")},
    "activation_range": {"observer": ("min_max", "mse", "percentile")},
    "activation_ema": {"skip_part": ("moving", "last")},
    "weight_reconstruction": {"regularized_groups": ("all", "first")},
    "equivalent_scaling": {
        "ranges": ("batch", "deployed"),
        "weighting": ("uniform", "linear", "quadratic", "adaptive"),
        "bin_error": ("mean", "sum"),
        "schedule": ("auto", "joint", "cached"),
    },
    "outlier_allocation": {
        "observer": ("min_max", "mse", "percentile"),
        "inputs": ("quantized", "fp"),
        "rows": ("kurtosis", "error", "random", "head_tail"),
        "prescale": ("searched", "always", "none"),
    },
    "power_of_two_scaling": {"layers": ("skip", "all"), "selection": ("vote", "mse")},
    "trajectory_reconstruction": {
        "recipe": ("scales", "joint"),
        "gradient": (
            *("independent", "exact", "replayed", "identity", "scalar", "spectral", "online"),
            *("truncated", "linear"),
        ),
        "start": ("fp", "quantized"),
    },
    "low_rank_tuning": {"distillation": ("none", "relation", "feature"), "loss": ("normalised", "published")},
}
"""Stage → setting → the words it may be."""


def check_choice(stage: str, key: str, value: str) -> None:
    """Raise ValueError, one line, unless ``value`` is a word that the setting ``key`` of ``stage`` may be."""
    allowed = CHOICES[stage][key]
    if value not in allowed:
        raise ValueError(f"{key}={value} is not known (allowed: {', '.join(allowed)})")


_COUNTS = {"iterations": (1, math.inf), "batch": (1, math.inf), "samples": (1, math.inf)}

LARGEST_MOMENTUM = 0.9999
"""With 1 an average would never move."""

BOUNDS: dict[str, dict[str, tuple[float, float]]] = {
    "activation_ema": {**_COUNTS, "ema_batch": (1, math.inf), "momentum": (0, LARGEST_MOMENTUM)},
    "equivalent_scaling": {
        **_COUNTS,
        "travel": (1e-6, math.inf),
        "strength": (0, math.inf),
        "momentum": (0, LARGEST_MOMENTUM),
        "bins": (0, math.inf),
        "patience": (0, math.inf),
        "memory_mib": (0, math.inf),
    },
    "outlier_allocation": {"samples": (1, math.inf), "candidates": (1, 100), "largest_tenths": (0, 5)},
    "power_of_two_scaling": {**_COUNTS, "agreement": (0, 1), "depth": (0, 7)},
    "trajectory_reconstruction": {
        "iterations": (1, math.inf),
        "batch": (1, math.inf),
        "horizon": (1, math.inf),
        "scale_travel": (0, math.inf),
        "rounding_travel": (0, math.inf),
        "checks": (1, math.inf),
    },
    "low_rank_tuning": {
        "iterations": (1, math.inf),
        "batch": (1, math.inf),
        "rank": (1, math.inf),
        "adapter_travel": (0, math.inf),
        "weight_scale_travel": (0, math.inf),
        "activation_scale_travel": (0, math.inf),
        "distillation_weight": (0, math.inf),
        "window": (1, math.inf),
        "checks": (1, math.inf),
    },
}
"""Stage → setting → its smallest and largest value."""

_RANGES = ("activation_range", "activation_ema")

NEEDS_BEFORE: dict[str, tuple[tuple[str, ...], ...]] = {
    "weight_range": (),
    "activation_range": (),
    "activation_ema": (),
    "equivalent_scaling": (),
    "outlier_allocation": (),
    "weight_reconstruction": (("weight_range",),),
    "activation_reconstruction": (_RANGES,),
    "power_of_two_scaling": (_RANGES,),
    "trajectory_reconstruction": (("weight_range",), _RANGES),
    "low_rank_tuning": (("weight_range",), _RANGES),
}
"""Stage → sets of stages of each of which one must come before it: without ranges it has nothing to work on."""

NEEDS_AFTER: dict[str, tuple[str, ...]] = {
    "equivalent_scaling": ("weight_range",),
    "outlier_allocation": ("weight_range", "activation_range"),
}
"""Stage → stages that must follow it: another scale, or other bits, make what they found worthless."""
