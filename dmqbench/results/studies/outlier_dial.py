"""What a dose of planted outliers does to each method: PSNR against the dose, from a store's jobs."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from dmqbench.config.schema import model_label
from dmqbench.models.planted import Planted
from dmqbench.results.figure import Axis, Figure, Line, Panel
from dmqbench.results.result import Result
from dmqbench.results.seeds import same_but_seed, spread
from dmqbench.results.studies.colours import PALETTE
from dmqbench.results.studies.findings import FindingsReader
from dmqbench.results.studies.settings import setting_of, told_apart
from dmqbench.results.studies.study import of_jobs
from dmqbench.store.files import canonical_json

METRIC = "psnr"
MAX_DIALS = 4


@dataclass(frozen=True)
class DosePoint:
    """One method's jobs at a dose, each of another seed."""

    dose: float
    rows: tuple[Result, ...]

    @property
    def values(self) -> list[float]:
        return [value for row in self.rows if (value := row.value(METRIC)) is not None]

    @property
    def value(self) -> float:
        return mean(self.values)

    @property
    def ends(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean over seeds; None of one seed."""
        if len(self.values) < 2:
            return None
        found = spread(self.values)
        return found.mean - found.half, found.mean + found.half

    @property
    def sentence(self) -> str:
        return f"{self.rows[0].label}, seeds {', '.join(str(row.seed) for row in self.rows)}"


@dataclass(frozen=True)
class Dial:
    """Curves of methods over doses planted into the same channels of one model, at equal bits, ranges and budget."""

    said: Mapping[str, str]
    """What all its jobs share, in words."""
    curves: dict[str, tuple[DosePoint, ...]]

    @property
    def doses(self) -> list[float]:
        return sorted({point.dose for points in self.curves.values() for point in points})

    @property
    def seeds(self) -> int:
        """The fewest that a point has."""
        return min(len(point.rows) for points in self.curves.values() for point in points)


def dials(rows: Iterable[Result], reader: FindingsReader) -> list[Dial] | None:
    """Return the dials of most jobs first; what has nothing planted belongs to each of its model. None without any."""
    plain: dict[str, list[Result]] = defaultdict(list)
    planted: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for row in rows:
        if row.full_precision or row.value(METRIC) is None:
            continue
        channels = _planted(row)
        if channels:
            planted[_setting(row), canonical_json([channels.share, channels.where, channels.seed])].append(row)
        else:
            plain[_setting(row)].append(row)
    found = [[*plain[setting], *members] for (setting, _), members in planted.items()]
    several = [dial for members in sorted(found, key=len, reverse=True) if len((dial := _dial(members)).doses) > 1]
    return several[:MAX_DIALS] or None


def _planted(row: Result) -> Planted:
    return Planted.stated(row.settings("model").get("planted"))


def _setting(row: Result) -> str:
    """All but the method, the seed and what is planted."""
    model = {key: value for key, value in row.settings("model").items() if key != "planted"}
    shared = [row.config.get(name) for name in ("sampler", "metrics", "engine", "inputs", "calibration")]
    return canonical_json([row.model_name, model, row.bits, row.scope, row.ranges, row.budget_sizes, shared])


def _dial(rows: Sequence[Result]) -> Dial:
    """Group jobs by their methods and doses; of several of one seed the first counts."""
    methods: dict[str, dict[float, dict[int, Result]]] = defaultdict(lambda: defaultdict(dict))
    names: dict[str, str] = {}
    for row in rows:
        key = canonical_json(same_but_seed(row))
        names[key] = row.label
        methods[key][_planted(row).dose].setdefault(row.seed, row)
    curves = {}
    for key, doses in methods.items():
        alike = [other for other in names if names[other] == names[key]]
        name = names[key] if len(alike) == 1 else f"{names[key]} ({alike.index(key) + 1})"
        curves[name] = tuple(DosePoint(dose, tuple(doses[dose].values())) for dose in sorted(doses))
    return Dial(_said(next(row for row in rows if _planted(row))), curves)


def _said(row: Result) -> dict[str, str]:
    model, channels = row.settings("model"), _planted(row)
    seed = f", seed {channels.seed}" if channels.seed else ""
    where = f"{channels.share:.3g} of the channels of each {' and '.join(channels.where)}{seed}"
    own = {key: words for key, words in setting_of(row).items() if key != "seed"}
    return own | {"model": model_label(row.model_name, model.get("path")), "channels": where}


def figure(found: list[Dial]) -> Figure:
    """One panel a dial: PSNR over the dose, a line a method; the same method has the same colour in all."""
    methods = list(dict.fromkeys(name for dial in found for name in dial.curves))
    shared, names = told_apart([dial.said for dial in found])
    seeds = min(dial.seeds for dial in found)
    interval = f"intervals: 95 % of the mean over seeds, {seeds} of each point or more" if seeds > 1 else _ONE
    notes = (", ".join(filter(None, shared.values())), "in full precision doses change last bits at most", interval)
    panels = tuple(
        Panel(
            tuple(_line(name, points, methods.index(name)) for name, points in dial.curves.items()),
            Axis("dose: factor of the planted channels", log=True, ticks=tuple((d, f"{d:g}") for d in dial.doses)),
            Axis("PSNR (dB)"),
            names[number] if len(found) > 1 else "",
            height=1.4,
        )
        for number, dial in enumerate(found)
    )
    return Figure("PSNR against the dose of planted outliers", panels, notes)


_ONE = "some points are of one seed, and one seed is one seed: they have no interval"


def _line(name: str, points: Sequence[DosePoint], number: int) -> Line:
    return Line(
        name,
        [point.dose for point in points],
        [point.value for point in points],
        PALETTE[number % len(PALETTE)],
        symbol=number,
        ends=[point.ends for point in points],
        texts=[point.sentence for point in points],
        precision=".4g",
        jobs=[point.rows[0].folder.name for point in points],
    )


STUDY = of_jobs("dial", dials, figure)
