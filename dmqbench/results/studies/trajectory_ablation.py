"""How calibration over several denoising steps depends on its horizon and on its gradient, from a store's jobs."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import geometric_mean, mean
from typing import Any, Literal

from dmqbench.config.checked_job import ABOUT_STAGE
from dmqbench.config.limits import limits_of
from dmqbench.results.compare import Comparison, compare
from dmqbench.results.correlations import correlate
from dmqbench.results.figure import Axis, Figure, Line, Panel, ratio_axis
from dmqbench.results.result import Result
from dmqbench.results.studies.colours import PALETTE
from dmqbench.results.studies.findings import Figures, FindingsReader
from dmqbench.results.studies.settings import setting_of, told_apart
from dmqbench.results.studies.study import Study
from dmqbench.results.studies.trajectory_reconstruction import TrajectoryReconstruction
from dmqbench.store.files import canonical_json

METRIC = "psnr"
MAX_CURVES = 6
TRAJECTORY = TrajectoryReconstruction.stage

Varied = Literal["horizon", "gradient"]
VARIED: tuple[Varied, Varied] = ("horizon", "gradient")
VARIED_TITLES = {"horizon": "calls that the model runs by itself (horizon)", "gradient": "gradient"}

GRADIENTS = tuple(limits_of(TRAJECTORY).choices["gradient"])
REFERENCE, DEFAULT = "replayed", "identity"
"""The exact gradient, and the paper's, which is compared with it."""

_FREE = ("task", "diagnose", "method", "metrics", "tracker", "trainer", "evaluate")
"""Parts of a configuration that may differ: the method is compared stage by stage, the protocol when values are."""


_SAID = ("model", "bits", "ranges", "budget", "seed", "start", "recipe")
"""What is named although all curves share it."""


@dataclass(frozen=True)
class Trial:
    """One job.

    Attributes:
        over_untuned: its PSNR against that of the same job without calibration over several steps; None without one.
        error: held-out squared error of the end states, after over before: the geometric mean over groups.
        cosine: of the first gradient and the exact one, mean over the sets of groups that are trained together.
        ratio: norm of the first gradient over that of the exact one, their geometric mean.
    """

    row: Result
    place: int | str
    over_untuned: Comparison | None
    error: float | None
    cosine: float | None
    ratio: float | None

    @property
    def value(self) -> float | None:
        return self.row.value(METRIC)


@dataclass(frozen=True)
class Curve:
    """Jobs that differ in their horizon or gradient alone; ``name`` is what sets them apart from other curves."""

    name: str
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Ablation:
    """All curves over one of ``VARIED``; ``setting`` is what they have in common."""

    varied: Varied
    setting: str
    curves: tuple[Curve, ...]
    left_out: int

    @property
    def places(self) -> list[int | str]:
        """Values of what is varied, in its order."""
        return sorted({trial.place for curve in self.curves for trial in curve.trials}, key=_order)

    @property
    def compared(self) -> bool:
        """Whether every job has an un-tuned one to be compared with."""
        return all(trial.over_untuned is not None for curve in self.curves for trial in curve.trials)

    def gain(self, trial: Trial) -> float | None:
        """Return a trial's PSNR over its un-tuned job's if all have one, else its PSNR, in dB."""
        return trial.over_untuned.difference if self.compared and trial.over_untuned else trial.value

    def ends(self, trial: Trial) -> tuple[float, float] | None:
        """Return the 95 % interval of the ``gain``."""
        return trial.over_untuned.ci95 if self.compared and trial.over_untuned else trial.row.measurements[METRIC].ci95

    @property
    def sentences(self) -> list[str]:
        """What is held equal, how the gain goes with what is varied, and what the errors are."""
        by_horizon = self.varied == "horizon"
        claims = [(curve.name, self._followed(curve) if by_horizon else _against_exact(curve)) for curve in self.curves]
        notes = [self.setting, *(f"{name}: {claim}" if name else claim for name, claim in claims if claim)]
        notes.append("end-state error: on validation trajectories, by which the best state was chosen; geometric mean")
        if by_horizon:
            notes.append("errors of other horizons are errors after other numbers of calls")
            notes.append("at equal cost a longer horizon has fewer optimizer steps")
        return notes + ([f"{self.left_out} more curves: --sweep chooses"] if self.left_out else [])

    def _followed(self, curve: Curve) -> str | None:
        """Whether PSNR goes with the logarithm of the horizon."""
        points = [(trial.place, self.gain(trial)) for trial in curve.trials]
        known = [(math.log2(place), gain) for place, gain in points if isinstance(place, int) and gain is not None]
        correlation = correlate([place for place, _ in known], [gain for _, gain in known])
        if correlation is None:
            return None
        return f"PSNR {correlation.direction} the horizon ({correlation.text}, {len(known)} jobs)"


def ablation(rows: Iterable[Result], reader: FindingsReader, varied: Varied) -> Ablation | None:
    """Return the curves over ``varied``, those of most jobs first; None where no two jobs differ in it alone."""
    [held] = [name for name in VARIED if name != varied]
    untuned: dict[str, Result] = {}
    sets: dict[tuple[str, str], dict[int | str, tuple[Result, TrajectoryReconstruction]]] = defaultdict(dict)
    for row in rows:
        if METRIC not in row.measurements or row.full_precision:
            continue
        before, own = _settings(row)
        if own is None:
            untuned.setdefault(before, row)
        elif (findings := reader.of(row, TrajectoryReconstruction)) is not None:
            others = {key: value for key, value in own.items() if key not in VARIED} | {held: getattr(findings, held)}
            sets[before, canonical_json(others)].setdefault(getattr(findings, varied), (row, findings))
    several = [place for place in sorted(sets, key=lambda place: -len(sets[place])) if len(sets[place]) > 1]
    if not several:
        return None
    places = several[:MAX_CURVES]
    shared, names = told_apart([_parts(*next(iter(sets[place].values())), held) for place in places])
    setting = ", ".join(shared[key] for key in (*_SAID, held) if shared.get(key))
    curves = [
        Curve(
            name, tuple(_trial(*sets[place][at], at, untuned.get(place[0])) for at in sorted(sets[place], key=_order))
        )
        for name, place in zip(names, places, strict=True)
    ]
    return Ablation(varied, setting, tuple(curves), len(several) - len(places))


def _order(place: int | str) -> tuple[int, str]:
    if isinstance(place, int):
        return place, ""
    return (GRADIENTS.index(place), "") if place in GRADIENTS else (len(GRADIENTS), place)


def _settings(row: Result) -> tuple[str, Mapping[str, Any] | None]:
    """What a job shares with its un-tuned one, and the settings of calibration over several steps, if it has any."""
    method = row.settings("method")
    stages = method.get("stages") or []
    before = [[name, method.get(name)] for name in stages if name != TRAJECTORY]
    shared = {key: value for key, value in row.config.items() if key not in _FREE} | {"budget": row.budget_sizes}
    own = row.stage_settings(TRAJECTORY) if TRAJECTORY in stages else None
    return canonical_json([row.model, row.bits, row.scope, row.ranges, row.seed, shared, before]), own


def _parts(row: Result, findings: TrajectoryReconstruction, held: str) -> dict[str, str]:
    own = {key: value for key, value in row.stage_settings(TRAJECTORY).items() if key not in (*VARIED, *ABOUT_STAGE)}
    own = {held: getattr(findings, held), **own}
    return setting_of(row) | {key: f"{key} {value}" for key, value in own.items()}


def _trial(row: Result, findings: TrajectoryReconstruction, place: int | str, untuned: Result | None) -> Trial:
    both = zip(*findings.errors.values(), strict=True)
    ratios = [after / before for before, after in both if before > 0 and after > 0]
    cosines = [span.cosine for span in findings.spans if span.cosine is not None]
    norms = [span.ratio for span in findings.spans if span.ratio]
    return Trial(
        row,
        place,
        None if untuned is None else _compared(row, untuned),
        geometric_mean(ratios) if ratios else None,
        mean(cosines) if cosines else None,
        geometric_mean(norms) if norms else None,
    )


def _compared(row: Result, other: Result) -> Comparison | None:
    try:
        return compare(row, other, METRIC)
    except ValueError:  # other protocols: nothing to subtract
        return None


def _against_exact(curve: Curve) -> str | None:
    """The paper's gradient against the exact one."""
    by_gradient = {trial.place: trial.row for trial in curve.trials}
    if not {DEFAULT, REFERENCE} <= by_gradient.keys():
        return None
    comparison = _compared(by_gradient[DEFAULT], by_gradient[REFERENCE])
    if comparison is None or comparison.difference is None or comparison.ci95 is None:
        return None
    interval = f"[{comparison.ci95.low:.2f}, {comparison.ci95.high:.2f}]"
    return f"{DEFAULT} against {REFERENCE}: {comparison.difference:+.2f} dB {interval}, {comparison.verdict}"


def ablation_figures(rows: Sequence[Result], reader: FindingsReader) -> Figures:
    """Return a figure for each of ``VARIED`` of which there are jobs enough."""
    ablations = {varied: ablation(rows, reader, varied) for varied in VARIED}
    return {varied: curves_of(curves) for varied, curves in ablations.items() if curves is not None}


def ablation_pictures(rows: Sequence[Result], reader: FindingsReader) -> Figures:
    """Return one figure ``ablation`` with a column for each that there is."""
    figures = ablation_figures(rows, reader)
    if not figures:
        return {}
    panels = tuple(panel for row in zip(*(figure.panels for figure in figures.values()), strict=True) for panel in row)
    notes = tuple(f"by {varied}: {'; '.join(figure.notes)}" for varied, figure in figures.items())
    return {"ablation": Figure("Calibration over several denoising steps", panels, notes, columns=len(figures))}


def curves_of(curves: Ablation) -> Figure:
    """Against the horizon or gradient, from the top: PSNR, end-state error, cosine and norm of the gradient."""
    trials = [trial for curve in curves.curves for trial in curve.trials]
    x = Axis(VARIED_TITLES[curves.varied], names=tuple(str(place) for place in curves.places))
    gain = Axis("PSNR (dB)")
    if curves.compared:
        gain = Axis("PSNR over un-tuned (dB)", "dB over un-tuned", reference=0.0)
    error = ratio_axis("end-state error, after / before", "error, after / before", [trial.error for trial in trials])
    norm = ratio_axis("gradient: norm over the exact one's", "ratio of norms", [trial.ratio for trial in trials])
    cosine = Axis("gradient: cosine with the exact one", "cosine")
    panels = (
        Panel(_lines(curves, curves.gain, curves.ends), x, gain, f"by {curves.varied}", height=1.3),
        Panel(_lines(curves, lambda trial: trial.error), x, error),
        Panel(_lines(curves, lambda trial: trial.cosine), x, cosine, height=0.9),
        Panel(_lines(curves, lambda trial: trial.ratio), x, norm, height=0.8),
    )
    return Figure(
        f"Calibration over several steps, by {curves.varied}",
        panels,
        tuple(curves.sentences),
        description=f"PSNR, error of the end states and agreement with the exact gradient, by {curves.varied}",
        narrow=True,
    )


def _lines(
    curves: Ablation,
    value: Callable[[Trial], float | None],
    ends: Callable[[Trial], tuple[float, float] | None] | None = None,
) -> tuple[Line, ...]:
    """One line per curve; it has a name where there are several."""
    return tuple(
        Line(
            curve.name if len(curves.curves) > 1 else "",
            [curves.places.index(trial.place) for trial in curve.trials],
            [value(trial) for trial in curve.trials],
            PALETTE[number],
            joined=curves.varied == "horizon",
            symbol=number,
            ends=[ends(trial) for trial in curve.trials] if ends else (),
            texts=[_sentence(trial) for trial in curve.trials],
            precision=".4g",
            jobs=[trial.row.folder.name for trial in curve.trials],
        )
        for number, curve in enumerate(curves.curves)
    )


def _sentence(trial: Trial) -> str:
    return trial.over_untuned.sentence if trial.over_untuned else f"{trial.row.label} {trial.row.bits}"


STUDY = Study(ablation_figures, ablation_pictures)
