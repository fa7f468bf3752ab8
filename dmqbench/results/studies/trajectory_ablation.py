"""How calibration over several denoising steps depends on its horizon, and on its gradient, from the jobs of a store.

Imports no torch.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import geometric_mean, mean
from typing import Any, Literal

from dmqbench.config.checked_job import ABOUT_STAGE
from dmqbench.config.limits import limits_of
from dmqbench.results.compare import Comparison, compare
from dmqbench.results.correlations import correlate
from dmqbench.results.result import Result
from dmqbench.results.studies.findings import FindingsReader
from dmqbench.results.studies.settings import setting_of, told_apart
from dmqbench.results.studies.trajectory_reconstruction import TrajectoryReconstruction
from dmqbench.store.files import canonical_json

METRIC = "psnr"
MAX_CURVES = 6
TRAJECTORY = TrajectoryReconstruction.stage

Varied = Literal["horizon", "gradient"]
VARIED: tuple[Varied, Varied] = ("horizon", "gradient")

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
        found = correlate([place for place, _ in known], [gain for _, gain in known])
        if found is None:
            return None
        return f"PSNR {found.direction} the horizon ({found.text}, {len(known)} jobs)"


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
        elif (found := reader.of(row, TrajectoryReconstruction)) is not None:
            others = {key: value for key, value in own.items() if key not in VARIED} | {held: getattr(found, held)}
            sets[before, canonical_json(others)].setdefault(getattr(found, varied), (row, found))
    several = sorted((place for place, members in sets.items() if len(members) > 1), key=lambda one: -len(sets[one]))
    if not several:
        return None
    shown = several[:MAX_CURVES]
    shared, names = told_apart([_parts(*next(iter(sets[place].values())), held) for place in shown])
    setting = ", ".join(shared[key] for key in (*_SAID, held) if shared.get(key))
    curves = [
        Curve(
            name, tuple(_trial(*sets[place][at], at, untuned.get(place[0])) for at in sorted(sets[place], key=_order))
        )
        for name, place in zip(names, shown, strict=True)
    ]
    return Ablation(varied, setting, tuple(curves), len(several) - len(shown))


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


def _parts(row: Result, found: TrajectoryReconstruction, held: str) -> dict[str, str]:
    own = {key: value for key, value in row.stage_settings(TRAJECTORY).items() if key not in (*VARIED, *ABOUT_STAGE)}
    own = {held: getattr(found, held), **own}
    return setting_of(row) | {key: f"{key} {value}" for key, value in own.items()}


def _trial(row: Result, found: TrajectoryReconstruction, place: int | str, untuned: Result | None) -> Trial:
    both = zip(*found.errors.values(), strict=True)
    ratios = [after / before for before, after in both if before > 0 and after > 0]
    cosines = [span.cosine for span in found.spans if span.cosine is not None]
    norms = [span.ratio for span in found.spans if span.ratio]
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
    found = _compared(by_gradient[DEFAULT], by_gradient[REFERENCE])
    if found is None or found.difference is None or found.ci95 is None:
        return None
    interval = f"[{found.ci95.low:.2f}, {found.ci95.high:.2f}]"
    return f"{DEFAULT} against {REFERENCE}: {found.difference:+.2f} dB {interval}, {found.verdict}"
