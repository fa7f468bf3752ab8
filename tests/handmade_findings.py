"""Findings as the stages of DMQ, AccuQuant and MPQ-DM write them, and stores whose jobs have them, filled by hand."""

import json
from typing import Any

from handmade import Bench, diagnosis

WEIGHTS = ("weight_range", "weight_reconstruction", "activation_range")
SCALING, POWERS, TRAJECTORY = "equivalent_scaling", "power_of_two_scaling", "trajectory_reconstruction"
ALLOCATION, TUNING = "outlier_allocation", "low_rank_tuning"
RUNG_METHODS: dict[str, dict[str, Any]] = {
    "q_diffusion": {"name": "q_diffusion", "stages": [*WEIGHTS, "activation_reconstruction"]},
    "reconstruction": {"name": "q_diffusion", "stages": list(WEIGHTS)},
    "scaling": {"name": "dmq", "stages": [SCALING, *WEIGHTS], SCALING: {"weighting": "uniform"}},
    "weighting": {"name": "dmq", "stages": [SCALING, *WEIGHTS], SCALING: {"weighting": "adaptive"}},
    "powers": {
        "name": "dmq",
        "stages": [SCALING, *WEIGHTS, POWERS],
        SCALING: {"weighting": "adaptive"},
        POWERS: {"selection": "vote", "layers": "skip", "samples": 512},
    },
}
"""What a job's configuration says of each rung of the dose."""


def scaling(disparity: float | None = 3.0, layers: int = 3, channels: int = 5, calls: int = 4) -> dict[str, Any]:
    """Findings of equivalent scaling; the first layer has ``disparity``, the others 4 times and a quarter of it."""
    names = [f"blocks.{number}.conv" for number in range(layers)]
    largest = [1.0 + 2 * channel for channel in range(channels)]
    scale = [2.0 ** (channel % 5) for channel in range(channels)]
    return {
        "weighting": {
            "name": "adaptive",
            "lambda": [0.1 * (1 + place) for place in range(calls)],
            "error": [0.4 - 0.1 * place for place in range(calls)],
            "bin_of_call": list(range(calls)),
        },
        "layers": {
            name: {
                "held_out_error_before": 0.4,
                "held_out_error": 0.2,
                "disparity": None if disparity is None else disparity * (1.0, 4.0, 0.25)[number % 3],
            }
            for number, name in enumerate(names)
        },
        "channels": {
            name: {
                "scale": scale,
                "input_before": largest,
                "input_after": [value / one for value, one in zip(largest, scale, strict=True)],
                "weight_before": [0.5] * channels,
                "weight_after": [0.5 * one for one in scale],
            }
            for name in names[:2]
        },
    }


def powers(
    selection: str = "vote", samples: int = 80, rows: int = 4, layers: int = 3, factor: float = 0.5
) -> dict[str, Any]:
    """Findings of power-of-two scaling: each layer's held-out error is ``factor`` times what it was."""
    return {
        "layers": {
            f"blocks.{number}.conv": {
                "exponents": {"-3": 1, "-2": 0, "-1": 2 + number, "0": 5},
                "agreement": [0.5 + 0.1 * ((row + number) % 5) for row in range(rows)],
                "scaled": 3 / 8,
                "held_out_error_before": 0.4 * (1 + number),
                "held_out_error": 0.4 * (1 + number) * factor,
            }
            for number in range(layers)
        },
        "selection": selection,
        "samples": samples,
    }


def trajectory(
    horizon: int = 2,
    gradient: str = "identity",
    calls: int = 4,
    factor: float = 0.5,
    cosine: float | None = 0.9,
    ratio: float | None = 1.2,
) -> dict[str, Any]:
    """Findings of calibration over several steps: each group's error is ``factor`` times what it was, or twice that."""
    groups = [range(start, min(start + horizon, calls)) for start in range(0, calls, horizon)]
    before = [0.01 * group.stop for group in groups]
    return {
        "settings": {"horizon": min(horizon, calls), "gradient": gradient, "joint": False},
        "spans": [
            {
                "groups": [[group.start, group.stop - 1]],
                "best_iteration": 20,
                "gradient_cosine": cosine,
                "gradient_ratio": ratio,
                "error_before": [error],
                "error_after": [error * factor * (1 + place % 2)],
            }
            for place, (group, error) in enumerate(zip(groups, before, strict=True))
        ],
    }


def allocation(layers: int = 3, bits: int = 2, rows: int = 10, tenths: int = 5) -> dict[str, Any]:
    """Findings of mixed precision: layer i promotes i tenths of its rows, at most ``tenths``, and demotes as many."""
    found = []
    for number in range(layers):
        chosen = min(number, tenths)
        moved = chosen * rows // 10
        errors = [0.3 * (1 + 0.1 * abs(tenth - chosen)) for tenth in range(tenths + 1)]
        widths = [bits + 1] * moved + [bits] * (rows - 2 * moved) + [bits - 1] * moved
        found.append(
            {"name": f"blocks.{number}.conv", "rows": rows, "moved": moved, "tenths": chosen, "errors": errors,
             "bits": widths, "kurtosis": [3.0 + row for row in range(rows)]}
        )  # fmt: skip
    settings = {"rows": "kurtosis", "largest_tenths": tenths, "inputs": "quantized", "prescale": True, "plus": False}
    return {"settings": settings, "mean_bits": float(bits), "limit": None, "layers": found}


def tuning(distillation: str = "relation", window: int = 2, calls: int = 6, factor: float = 0.5) -> dict[str, Any]:
    """Findings of low-rank tuning: every error is ``factor`` times what it was."""
    noise = [0.01 * (1 + call) for call in range(calls)]
    distilled = [0.1 * (1 + place) for place in range(-(-calls // window))]
    known = distillation != "none"
    return {
        "settings": {"rank": 32, "distillation": distillation, "window": window},
        "best_iteration": 80,
        "noise_error_before": noise,
        "noise_error_after": [factor * error for error in noise],
        "distilled_error_before": distilled if known else None,
        "distilled_error_after": [factor * error for error in distilled] if known else None,
    }


class FindingsBench(Bench):
    """A run store whose jobs name stages with findings."""

    def stage(self, findings: Any) -> str:
        """Publish an artifact of a stage and return its id; ``findings`` None for a stage that found nothing."""
        self.count += 1
        id = f"{self.count + 0x5000:016x}"
        files: dict[str, dict | str] = {"plan.json": "{}"}
        if findings is not None:
            files["findings.json"] = findings if isinstance(findings, str) else json.dumps(findings)
        self.publish("quantized", id, files)
        return id

    def made(self, method: str, bits: str, psnr: float, stages: dict[str, Any], **changes) -> str:
        """Publish a job whose ``stages`` found this, and return its id."""
        listed = [[name, self.stage(found)] for name, found in stages.items()]
        artifacts = {"trajectories": "a" * 16, "stages": listed, "samples": "b" * 16}
        return self.job(method, bits, psnr, artifacts=artifacts, **changes).name

    def rung(
        self, model: str, rung: str, psnr: float, disparity: float | None = 3.0, bits: str = "w4a4", **changes
    ) -> str:
        """Publish one job of the dose: ``psnr`` in the mean of 16 images that all rungs of a model share."""
        method = RUNG_METHODS[rung]
        found = {name: {SCALING: scaling(disparity), POWERS: powers()}.get(name) for name in method["stages"]}
        values = [psnr + 0.5 * (index % 4) - 0.75 for index in range(16)]
        config = {
            "method": method,
            "seed": 0,
            "engine": "simulate",
            "budget": {"name": "ladder"},
            "sampler": {"name": "ddim", "steps": 4, "eta": 0.0, "guidance": 1.0},
        } | changes.pop("config", {})
        settings = {"ranges": "step", "diagnosis": diagnosis(), "protocol": {"n": 16}, "per_image": values}
        return self.made(method["name"], bits, psnr, found, model=model, config=config, **settings | changes)

    def precision(self, method: str = "mpq_dm", variant: str = "", psnr: float = 20.0, **changes) -> str:
        """Publish one job of EfficientDM or MPQ-DM, of 16 images that differ."""
        found: dict[str, Any] = {"weight_range": None, TUNING: tuning("relation" if method == "mpq_dm" else "none")}
        if method == "mpq_dm":
            found = {ALLOCATION: allocation(), **found}
        config = {
            "method": {"name": method, "stages": list(found), "variant": variant},
            "seed": 0,
            "bits": {"weight": 2, "activation": 4, "plan": None},
            "budget": {"name": "quick"},
            "sampler": {"name": "ddim", "steps": 4},
        } | changes.pop("config", {})
        values = [psnr + 0.5 * (index % 4) - 0.75 + 0.1 * ((index * len(variant)) % 3) for index in range(16)]
        settings = {"ranges": "step", "protocol": {"n": 16}, "per_image": values, "bits": "w2a4"} | changes
        bits = settings.pop("bits")
        named = {"variant": variant} if variant else {}
        return self.made(method, bits, float(sum(values) / 16), found, config=config, **named, **settings)

    def trial(self, horizon: int | None, gradient: str = "identity", psnr: float = 30.0, **changes) -> str:
        """Publish one job of an ablation, of 16 images that differ; without a ``horizon`` the un-tuned one.

        ``own`` are settings of the stage, ``found`` arguments of ``trajectory``.
        """
        own = {"horizon": horizon, "gradient": gradient, "recipe": "scales", "start": "fp"} | changes.pop("own", {})
        facts = changes.pop("found", {})
        stages = [*WEIGHTS, *([TRAJECTORY] if horizon else [])]
        found: dict[str, Any] = dict.fromkeys(stages)
        if horizon:
            found[TRAJECTORY] = trajectory(horizon, gradient, **facts)
        config = {
            "method": {"name": "accuquant", "stages": stages, TRAJECTORY: own},
            "seed": 0,
            "engine": "simulate",
            "budget": {"name": "ladder"},
            "sampler": {"name": "ddim", "steps": 4},
        } | changes.pop("config", {})
        values = [psnr + 0.5 * (index % 4) - 0.75 + 0.1 * ((index * len(gradient)) % 3) for index in range(16)]
        settings = {"ranges": "group5", "protocol": {"n": 16}, "per_image": values, "bits": "w4a6"} | changes
        return self.made("accuquant", settings.pop("bits"), float(sum(values) / 16), found, config=config, **settings)
