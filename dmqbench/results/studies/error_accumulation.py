"""How the errors of several methods add up over a trajectory, side by side, from the diagnoses of a store's jobs."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any

from dmqbench.results.diagnosis import diagnosis_of
from dmqbench.results.figure import Axis, Figure, Line, Panel, calls_axis, head
from dmqbench.results.result import Result
from dmqbench.results.seeds import same_but_seed
from dmqbench.results.studies import CHOSEN_ON, boundaries_of
from dmqbench.results.studies.colours import PALETTE
from dmqbench.results.studies.findings import Figures, FindingsReader
from dmqbench.results.studies.settings import setting_of, told_apart
from dmqbench.results.studies.study import Study

MAX_LINES = len(PALETTE)
MAX_PANELS = 12


@dataclass(frozen=True)
class Method:
    """One method: mean squared difference of the states from full precision's, before each call and at the end, [T+1].

    Of several calibration ``seeds`` it is the geometric mean; ``boundaries`` are the states between groups of calls
    over which the method was calibrated.
    """

    name: str
    errors: tuple[float, ...]
    of_seeds: tuple[tuple[float, ...], ...]
    boundaries: tuple[int, ...]


@dataclass(frozen=True)
class Setting:
    """The methods of one model and bit-width, with the same network calls."""

    title: str
    lines: tuple[Method, ...]
    left_out: int


def error_panels(rows: Iterable[Result], reader: FindingsReader) -> tuple[Setting, ...]:
    """Return one panel per bit-width, at most ``MAX_PANELS``, of all jobs that have a sound diagnosis."""
    panels: dict[Any, dict[Any, dict[int, tuple[Result, tuple[float, ...]]]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        diagnosis = diagnosis_of(row)
        if not isinstance(diagnosis, str) and not row.full_precision:
            place = row.model, row.bits, row.scope, tuple(diagnosis["timesteps"]), row.task, _sampler(row)
            panels[place][same_but_seed(row)].setdefault(row.seed, (row, tuple(diagnosis["steps"]["accumulated"])))
    chosen = list(panels.items())[:MAX_PANELS]
    parts = [
        {
            "model": model,
            "bits": bits,
            "scope": f"scope {scope}",
            "calls": f"{len(timesteps)} calls",
            "task": task or "",
            "sampler": sampler,
        }
        for (model, bits, scope, timesteps, task, sampler), _ in chosen
    ]
    if not parts:
        return ()
    shared, apart = told_apart(parts)
    words = [value for key, value in shared.items() if key != "sampler"]  # named only where panels differ in it
    titles = [", ".join(filter(None, (*words, name))) for name in apart]
    return tuple(
        _panel(title, [list(seeds.values()) for seeds in groups.values()], reader)
        for title, (_, groups) in zip(titles, chosen, strict=True)
    )


def _sampler(row: Result) -> str:
    """What errors add up along, as far as timesteps do not say it."""
    sampler = row.settings("sampler")
    settings = [f"{key} {sampler[key]:g}" for key in ("eta", "guidance", "clip_sample") if sampler.get(key) is not None]
    return ", ".join([str(sampler.get("name", "")), *settings])


def _panel(title: str, groups: list[list[tuple[Result, tuple[float, ...]]]], reader: FindingsReader) -> Setting:
    """Methods as their YAML has them come first, then variants."""
    chosen = sorted(groups, key=lambda members: bool(members[0][0].variant))[:MAX_LINES]
    names = _names([members[0][0] for members in chosen])
    lines = [_line(name, members, reader) for name, members in zip(names, chosen, strict=True)]
    return Setting(title, tuple(lines), len(groups) - len(chosen))


def _names(rows: Sequence[Result]) -> list[str]:
    """Labels; where several are equal, with the ranges and budget that set them apart, or else with the job."""
    names = [row.label for row in rows]
    details = [{key: setting_of(row)[key] for key in ("ranges", "budget")} for row in rows]
    for label in {name for name in names if names.count(name) > 1}:
        alike = [place for place, name in enumerate(names) if name == label]
        _, apart = told_apart([details[place] for place in alike])
        for place, words in zip(alike, apart, strict=True):
            own = words if words and apart.count(words) == 1 else f"job {rows[place].folder.name[:8]}"
            names[place] = f"{label}, {own}"
    return names


def _line(name: str, members: list[tuple[Result, tuple[float, ...]]], reader: FindingsReader) -> Method:
    of_seeds = tuple(errors for _, errors in members)
    seeds = f" ({len(members)} seeds)" if len(members) > 1 else ""
    return Method(
        name + seeds,
        tuple(geometric_mean(values) if all(values) else 0.0 for values in zip(*of_seeds, strict=True)),
        of_seeds,
        tuple(boundaries_of(members[0][0], len(of_seeds[0]) - 1, reader) or ()),
    )


def error_figures(rows: Sequence[Result], reader: FindingsReader) -> Figures:
    """Return the figure ``errors`` where there are diagnoses."""
    settings = error_panels(rows, reader)
    if not settings:
        return {}
    methods = [method for setting in settings for method in setting.lines]
    names = list(dict.fromkeys(method.name for method in methods))
    colours = {name: PALETTE[number % len(PALETTE)] for number, name in enumerate(names)}
    panels = tuple(_errors(setting, colours) for setting in settings)
    notes = (CHOSEN_ON,) if any(method.boundaries for method in methods) else ()
    title = "How errors add up over a trajectory"
    return {"errors": Figure(title, panels, notes, columns=min(2, len(panels)))}


def _errors(setting: Setting, colours: Mapping[str, str]) -> Panel:
    left_out = f" (without {setting.left_out} more)" if setting.left_out else ""
    marks = tuple(mark for method in setting.lines for mark in _course(method, colours[method.name]))
    axes = calls_axis(), Axis("mean squared error of the state", log=True)
    return Panel(marks, *axes, title=f"{head(setting.title, 60)}{left_out}", height=1.5)


def _course(method: Method, colour: str) -> list[Line]:
    """The mean, behind it its seeds, and on it a dot at each boundary."""
    states = range(len(method.errors))
    seeds = method.of_seeds if len(method.of_seeds) > 1 else ()
    lines = [Line("", states, errors, colour, points=False, faint=True) for errors in seeds]
    lines.append(Line(method.name, states, method.errors, colour, points=False))
    dots = Line("", method.boundaries, [method.errors[at] for at in method.boundaries], colour, joined=False)
    return [*lines, *([dots] if method.boundaries else [])]


STUDY = Study(pictures=error_figures)
