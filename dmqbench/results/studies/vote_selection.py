"""How the error of power-of-two scaling falls with the number of calibration samples, by vote and by squared error."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dmqbench.eval.statistics import Interval, student_interval
from dmqbench.results.figure import Axis, Figure, Line, Panel
from dmqbench.results.result import Result
from dmqbench.results.studies.colours import PALETTE
from dmqbench.results.studies.findings import FindingsReader
from dmqbench.results.studies.power_of_two_scaling import PowerOfTwoScaling
from dmqbench.results.studies.study import of_jobs
from dmqbench.store.files import canonical_json

_SHARED = (
    *("seed", "engine", "model", "dataset", "sampler", "calibration", "budget", "bits"),
    *("task_kind", "inputs", "edit"),
)
_VARIED = ("samples", "selection")


class Ratio(NamedTuple):
    """A geometric mean over layers, with Student's 95 % interval over them where there are several."""

    value: float
    ci95: Interval | None


@dataclass(frozen=True)
class SelectionCurves:
    """Of jobs that differ in the samples and the selection of their exponents alone.

    Attributes:
        row: one of the jobs, which says what the others share.
        error: by selection and samples per vote, the held-out output error with exponents over that without: the
            geometric mean over ``layers``; below 1 is a gain.
        contrast: by samples per vote, the error by ``mse`` over that by ``vote`` in the same layers.
        jobs: by selection and samples, the job's id.
    """

    row: Result
    layers: tuple[str, ...]
    error: Mapping[str, Mapping[float, Ratio]]
    contrast: Mapping[float, Ratio]
    jobs: Mapping[str, Mapping[float, str]]
    left_out: int
    """Further sets of jobs that have such curves of their own."""

    @property
    def sentences(self) -> list[str]:
        """What the means are over, how the selections compare at both ends, and how much is not shown."""
        lines = [f"{self.row.model} {self.row.bits}: geometric means over {len(self.layers)} layers"]
        for samples in sorted({*list(self.contrast)[:1], *list(self.contrast)[-1:]}):
            value, ends = self.contrast[samples]
            interval = "" if ends is None else f" [{ends.low:.3f}, {ends.high:.3f}]"
            lines.append(f"{samples:g} samples: the error by mse is {value:.3f}{interval} times that by vote")
        return lines + ([f"{self.left_out} more sets of jobs: --sweep chooses one"] if self.left_out else [])


def selection_curves(rows: Iterable[Result], reader: FindingsReader) -> SelectionCurves | None:
    """Return the curves of the largest set of jobs; None where no set has two numbers of samples."""
    sets: dict[str, list[tuple[Result, PowerOfTwoScaling]]] = defaultdict(list)
    for row in rows:
        powers = reader.of(row, PowerOfTwoScaling)
        if powers is not None and powers.layers:
            sets[_shared_settings(row)].append((row, powers))
    several = [members for members in sets.values() if len({powers.samples for _, powers in members}) > 1]
    if not several:
        return None
    chosen = max(several, key=len)
    return _curves(chosen, len(several) - 1)


def _shared_settings(row: Result) -> str:
    method = {key: value for key, value in row.settings("method").items() if key != "variant"}  # it names both
    own = row.stage_settings(PowerOfTwoScaling.stage)
    method[PowerOfTwoScaling.stage] = {key: value for key, value in own.items() if key not in _VARIED}
    return canonical_json([{name: row.config.get(name) for name in _SHARED}, row.bits, row.scope, row.ranges, method])


def _curves(members: list[tuple[Result, PowerOfTwoScaling]], left_out: int) -> SelectionCurves | None:
    """Compare the layers that every job has and in which there was an error to change."""
    tables = {}
    jobs: dict[str, dict[float, str]] = defaultdict(dict)
    for row, powers in members:
        place = powers.selection, powers.samples / powers.rows
        tables[place] = {
            name: math.log(layer.error / layer.error_before)
            for name, layer in powers.layers.items()
            if layer.error > 0 and layer.error_before > 0
        }
        jobs[place[0]][place[1]] = row.folder.name
    first, *others = tables.values()
    layers = tuple(name for name in first if all(name in other for other in others))
    if not layers:
        return None
    logs = {place: np.array([table[name] for name in layers]) for place, table in tables.items()}
    error: dict[str, dict[float, Ratio]] = defaultdict(dict)
    for selection, samples in sorted(logs):
        error[selection][samples] = _ratio(logs[selection, samples])
    both = sorted(error["vote"].keys() & error["mse"].keys()) if {"vote", "mse"} <= error.keys() else []
    contrast = {samples: _ratio(logs["mse", samples] - logs["vote", samples]) for samples in both}
    return SelectionCurves(members[0][0], layers, dict(error), contrast, dict(jobs), left_out)


def _ratio(logs: np.ndarray) -> Ratio:
    interval = student_interval(logs.tolist())
    ends = None if interval is None else Interval(math.exp(interval.low), math.exp(interval.high))
    return Ratio(math.exp(float(logs.mean())), ends)


def samples_against_votes(curves: SelectionCurves) -> Figure:
    """The held-out error that exponents leave against the samples they were chosen from, for each selection."""
    lines = tuple(
        Line(
            selection,
            list(errors),
            [ratio.value for ratio in errors.values()],
            PALETTE[number % len(PALETTE)],
            precision=".4g",
            jobs=[curves.jobs[selection][samples] for samples in errors],
        )
        for number, (selection, errors) in enumerate(curves.error.items())
    )
    samples = sorted({place for errors in curves.error.values() for place in errors})
    ticks = tuple((place, f"{place:g}") for place in samples)
    x = Axis("calibration samples per vote", log=True, ticks=ticks, word="samples")
    return Figure(
        "Exponents by vote and by squared error, against calibration samples",
        (Panel(lines, x, Axis("held-out error, with over without"), height=1.5),),
        tuple(curves.sentences),
        description="Held-out error against the number of calibration samples, by vote and by squared error",
    )


STUDY = of_jobs("samples", selection_curves, samples_against_votes)
