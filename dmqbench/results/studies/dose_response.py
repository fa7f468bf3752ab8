"""What each part of DMQ wins, against how uneven a model's skip channels are: the dose-response curve of a store."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import geometric_mean
from typing import Any

from dmqbench.results.compare import Comparison, compare
from dmqbench.results.correlations import correlate
from dmqbench.results.diagnosis import load_diagnosis
from dmqbench.results.figure import Axis, Figure, Line, Panel, tail
from dmqbench.results.result import Result
from dmqbench.results.studies.colours import PALETTE
from dmqbench.results.studies.equivalent_scaling import EquivalentScaling
from dmqbench.results.studies.findings import FindingsReader
from dmqbench.results.studies.power_of_two_scaling import PowerOfTwoScaling
from dmqbench.results.studies.settings import setting_of
from dmqbench.results.studies.study import of_jobs
from dmqbench.store.files import canonical_json

METRIC = "psnr"
SCALING, POWERS = EquivalentScaling.stage, PowerOfTwoScaling.stage
FEWEST_MODELS = 3
"""Below, there is no curve."""

BASE = "q_diffusion"
RUNGS = (BASE, "reconstruction", "scaling", "weighting", "powers")
"""What is compared, each with one part more: Q-Diffusion; its weights alone; with equivalent scales, learned with equal
weights for all steps; with adaptive ones; with powers of two, voted for skip inputs."""

RUNG_NAMES = {
    BASE: "Q-Diffusion",
    "reconstruction": "weights of Q-Diffusion alone",
    "scaling": "+ equivalent scales (LES)",
    "weighting": "+ adaptive step weights",
    "powers": "+ powers of two (PTS)",
}

_WEIGHTS = ("weight_range", "weight_reconstruction", "activation_range")
_PARTS = {
    (*_WEIGHTS, "activation_reconstruction"): BASE,
    _WEIGHTS: "reconstruction",
    (SCALING, *_WEIGHTS): "scaling",
    (SCALING, *_WEIGHTS, POWERS): "powers",
}
_SHARED = ("seed", "engine", "calibration", "budget", "task_kind", "inputs", "edit")
_SHARED_SAMPLER = ("name", "steps", "eta", "guidance")


@dataclass(frozen=True)
class DosePoint:
    """One model's ``rung``: what it changes against Q-Diffusion, and against the ``previous`` rung that there is."""

    model: str
    disparity: float
    rung: str
    previous: str
    row: Result
    over_base: Comparison
    over_previous: Comparison


@dataclass(frozen=True)
class DoseCurve:
    """The points of models with equal bits, ranges, budget, seed and settings, by rising disparity.

    ``left_out`` says of each model that has the jobs why it has no point.
    """

    points: tuple[DosePoint, ...]
    setting: str
    left_out: Mapping[str, str]

    def of(self, rung: str) -> list[DosePoint]:
        return [point for point in self.points if point.rung == rung]

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(point.model for point in self.points))

    @property
    def sentences(self) -> list[str]:
        """What is held equal, whether each rung's gain goes with log disparity, and which models are not shown."""
        gains = filter(None, map(self._followed, RUNGS[1:]))
        return [self.setting, *gains, *(f"{model} is left out: {why}" for model, why in self.left_out.items())]

    def _followed(self, rung: str) -> str | None:
        """Whether the gain of a rung goes with the logarithm of disparity."""
        gains = [(math.log10(point.disparity), point.over_base.difference) for point in self.of(rung)]
        known = [(place, gain) for place, gain in gains if gain is not None]
        correlation = correlate((place for place, _ in known), (gain for _, gain in known))
        if correlation is None:
            return None
        numbers = f"{correlation.text}, Spearman {correlation.spearman:.2f}, {len(known)} models"
        return f"{RUNG_NAMES[rung]}: the gain {correlation.direction} disparity ({numbers})"


PUBLISHED_POWERS = {"selection": "vote", "layers": "skip", "agreement": 0.85, "depth": 3}
"""Settings of power-of-two scaling under which a row belongs to the curve; its samples are the budget's."""


def rung_of(config: Mapping[str, Any]) -> str | None:
    """Say which rung a job's configuration is, by its stages alone, whatever its method is called; None for another."""
    method = config.get("method") or {}
    rung = _PARTS.get(tuple(method.get("stages") or ()))
    if rung in (None, BASE, "reconstruction"):
        return rung
    weighting = (method.get(SCALING) or {}).get("weighting")
    powers = method.get(POWERS) or {}
    if rung == "powers":
        samples = (config.get("budget") or {}).get("samples")
        usual = PUBLISHED_POWERS | ({} if samples is None else {"samples": samples})
        as_published = all(powers.get(key, value) == value for key, value in usual.items())
        return rung if weighting == "adaptive" and as_published and powers else None
    return {"uniform": "scaling", "adaptive": "weighting"}.get(str(weighting))


def dose_curve(rows: Iterable[Result], reader: FindingsReader) -> DoseCurve | None:
    """Return the curve of the settings that most models were run with; None for fewer than three models."""
    curves = [_curve(ladder, reader) for ladder in _ladders(rows)]
    best = max(curves, key=lambda curve: len(curve.models), default=None)
    return best if best is not None and len(best.models) >= FEWEST_MODELS else None


def disparity_of(rows: Iterable[Result], reader: FindingsReader) -> float | None:
    """Return the geometric mean, over the layers that read a skip, of the disparity of their input channels.

    A layer's disparity is the largest over the median of the channels' largest magnitudes. The first of ``rows`` that
    has one is asked; None if none has, or a layer's is not finite.
    """
    for row in rows:
        scaling = reader.of(row, EquivalentScaling)
        skips = _skip_layers(row)
        if scaling is not None and skips:
            disparities = [scaling.layers[name].disparity for name in skips if name in scaling.layers]
            known = [disparity for disparity in disparities if disparity]
            if known and len(known) == len(disparities):
                return geometric_mean(known)
    return None


Ladder = dict[str, dict[str, Result]]
"""Model → rung → its result."""


def _ladders(rows: Iterable[Result]) -> list[Ladder]:
    """Group results that differ in model and rung alone; what has no scales belongs to every ladder that has them."""
    plain: dict[str, Ladder] = defaultdict(lambda: defaultdict(dict))
    scaled: dict[str, dict[str, Ladder]] = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    for row in rows:
        rung = rung_of(row.config)
        if rung is None or row.full_precision or METRIC not in row.measurements:
            continue
        shared = _shared_settings(row)
        if rung in (BASE, "reconstruction"):
            plain[shared][row.model].setdefault(rung, row)
        else:
            scaled[shared][_scale_settings(row)][row.model].setdefault(rung, row)
    return [
        {model: plain[shared].get(model, {}) | rungs for model, rungs in ladder.items()}
        for shared, ladders in scaled.items()
        for ladder in ladders.values()
    ]


def _shared_settings(row: Result) -> str:
    stages = {name: row.settings("method").get(name) for name in _WEIGHTS}
    groups = {name: row.config.get(name) for name in _SHARED}
    sampler = {name: row.settings("sampler").get(name) for name in _SHARED_SAMPLER}
    return canonical_json([row.bits, row.scope, row.ranges, groups, sampler, stages])


def _scale_settings(row: Result) -> str:
    """All settings of equivalent scaling but the weighting, which rungs differ in."""
    settings = {key: value for key, value in row.stage_settings(SCALING).items() if key != "weighting"}
    return canonical_json([settings, row.settings("method").get("faithful")])


def _curve(ladder: Ladder, reader: FindingsReader) -> DoseCurve:
    points: list[DosePoint] = []
    left_out: dict[str, str] = {}
    for model, rungs in ladder.items():
        disparity = disparity_of([rungs[rung] for rung in reversed(RUNGS) if rung in rungs], reader)
        if BASE not in rungs:
            left_out[model] = f"no {BASE} with the same settings"
        elif disparity is None:
            left_out[model] = "its disparity is not known"
        else:
            try:
                points += _points(model, disparity, rungs)
            except ValueError as error:  # other protocols: nothing to subtract
                left_out[model] = str(error)
    points.sort(key=lambda point: point.disparity)
    some = next(iter(next(iter(ladder.values())).values()))
    setting = ", ".join(words for key, words in setting_of(some).items() if words and key != "model")
    return DoseCurve(tuple(points), setting, left_out)


def _points(model: str, disparity: float, rungs: Mapping[str, Result]) -> list[DosePoint]:
    present: Sequence[str] = [rung for rung in RUNGS if rung in rungs]
    return [
        DosePoint(
            model,
            disparity,
            rung,
            previous,
            rungs[rung],
            compare(rungs[rung], rungs[BASE], METRIC),
            compare(rungs[rung], rungs[previous], METRIC),
        )
        for previous, rung in pairwise(present)
    ]


def _skip_layers(row: Result) -> list[str]:
    """The layers that read a concatenation with a skip, as the diagnosis beside the result names them."""
    try:
        layers = (load_diagnosis(row.folder) or {}).get("layers") or {}
        return [name for name, skip in zip(layers["names"], layers["skip"], strict=True) if skip]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def dose(curve: DoseCurve) -> Figure:
    """The gain in PSNR against disparity: over Q-Diffusion above, over the rung before below."""
    models = {point.model: point.disparity for point in curve.points}
    ticks = tuple((value, f"{tail(model)}: {value:.3g}") for model, value in models.items())
    x = Axis("disparity of skip channels: largest over median", log=True, ticks=ticks)
    axes = (
        Axis(f"PSNR over {RUNG_NAMES[BASE]} (dB)", f"dB over {BASE}", reference=0.0),
        Axis("PSNR over the part before (dB)", "dB over the part before", reference=0.0),
    )
    rungs = [(curve.of(rung), PALETTE[number]) for number, rung in enumerate(RUNGS[1:]) if curve.of(rung)]
    compared = (lambda point: point.over_base, lambda point: point.over_previous)
    panels = (
        Panel(tuple(_line(points, comparison, colour) for points, colour in rungs), x, y, height=1.4)
        for comparison, y in zip(compared, axes, strict=True)
    )
    return Figure(
        "Gain in PSNR against the disparity of skip channels",
        tuple(panels),
        tuple(curve.sentences),
        description="Gain in PSNR of each part of the method against the disparity of the model's skip channels",
    )


def _line(points: Sequence[DosePoint], comparison: Callable[[DosePoint], Comparison], colour: str) -> Line:
    """One rung's gain, over Q-Diffusion or over the rung before."""
    return Line(
        RUNG_NAMES[points[0].rung],
        [point.disparity for point in points],
        [comparison(point).difference for point in points],
        colour,
        ends=[comparison(point).ci95 for point in points],
        texts=[f"{point.model}, {comparison(point).sentence}" for point in points],
        precision="",
        jobs=[point.row.folder.name for point in points],
    )


STUDY = of_jobs("dose", dose_curve, dose)
